"""The simulated machine of one run: its GPUs, kernel log and storage, and the faults that happen to it in time.

    with SimulatedNode(scenario, directory) as node:
        ...start the job with node.job_environment(), the agent on node.proc_root, node.kernel_log_path, ...

A driver thread follows the step each rank is in and puts faults on and takes them off when their steps come.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

from rankscope.device import DEVICE_CLOCK_VARIABLE
from rankscope.errors import ScenarioError
from rankscope.simulator import competitor
from rankscope.simulator.faults import FaultKind
from rankscope.simulator.kernel_log import KernelLog
from rankscope.simulator.physics import Physics
from rankscope.simulator.scenario import Confounder, Fault, Scenario
from rankscope.simulator.scenario_file import SCENARIO_VARIABLE, SEED_VARIABLE
from rankscope.simulator.state import STATE_VARIABLE, NodeState
from rankscope.simulator.storage import CALM, SLOW, SimulatedStorage

DEVICE_CLOCK = "rankscope.simulator.device:device_clock"
#: How often the driver looks at the ranks: well below the length of a step.
_PERIOD_SECONDS = 0.01
_GPU_KINDS = frozenset(kind.value for kind in FaultKind)
_CONFOUNDER_KINDS = {
    "power-cap": FaultKind.POWER_CAP,
    "old-xid": FaultKind.OLD_XID,
    "ecc-history": FaultKind.ECC_HISTORY,
    "silicon-spread": FaultKind.SILICON_SPREAD,
}


class SimulatedNode:
    """One simulated host for one run, in `directory`. Raises SimulatorError where it cannot be made."""

    def __init__(self, scenario: Scenario, directory: Path, *, proc: Path = Path("/proc")) -> None:
        if scenario.path is None:
            raise ScenarioError("no file", where=scenario.name, todo="load it by load_scenario")
        self.scenario = scenario
        self._path = scenario.path
        self._proc = proc
        self.kernel_log_path = directory / "kmsg"
        self.proc_root = directory / "proc"
        self.kernel_log = KernelLog(self.kernel_log_path)
        self.state = NodeState.create(
            directory / "node",
            profile=scenario.node.gpu,
            gpus=scenario.node.gpus,
            driver=scenario.node.driver,
            seed=scenario.seed,
        )
        self.physics = Physics(self.state, kernel_log=self.kernel_log)
        self.storage = SimulatedStorage(self.proc_root, proc=proc)
        self._changes = [change for fault in scenario.faults for change in self._fault_changes(fault)]
        self._changes += [change for odd in scenario.confounders for change in self._confounder_changes(odd)]
        self._competitors: list[subprocess.Popen[bytes]] = []
        self._pinned: set[int] = set()
        self._core = max(os.sched_getaffinity(0))
        self._stopping = threading.Event()
        self._driver = threading.Thread(target=self._drive, name="simulated-node", daemon=True)

    def job_environment(self) -> dict[str, str]:
        """What the simulated ranks need beside the environment of any job."""
        return {
            DEVICE_CLOCK_VARIABLE: DEVICE_CLOCK,
            STATE_VARIABLE: str(self.state.path.absolute()),
            SCENARIO_VARIABLE: str(self._path),
            SEED_VARIABLE: str(self.scenario.seed),
        }

    def agent_environment(self) -> dict[str, str]:
        """What the agent needs so that the NVML library shows it this machine; not what is wrong with it."""
        return {STATE_VARIABLE: str(self.state.path.absolute())}

    @property
    def step(self) -> int:
        """The step that the furthest rank is in; -1 before the first."""
        return max(self._steps())

    def __enter__(self) -> SimulatedNode:
        self.physics.start()
        self._driver.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._driver.join()
        self._dismiss()
        self.physics.stop()
        self.storage.close()
        self.kernel_log.close()

    def _steps(self) -> list[int]:
        return [gpu.step for gpu in self.state.gpus[: self.scenario.workload.ranks]]

    def _drive(self) -> None:
        waiting = list(self._changes)
        while True:
            self.storage.tick()
            self._pin_victims()
            steps = self._steps()
            due = [change for change in waiting if change.due(steps)]
            waiting = [change for change in waiting if change not in due]
            for change in due:
                change.apply()
            if self._stopping.wait(_PERIOD_SECONDS):
                return

    def _fault_changes(self, fault: Fault) -> list[_Change]:
        """What to do at the begin and end of a fault; those that live inside a rank need nothing here."""
        begin: Callable[[], object]
        end: Callable[[], object]
        if fault.class_slug in _GPU_KINDS and fault.gpu is not None:
            twin = {"counters": fault.counters, "slowdown": fault.slowdown, "xid": fault.xid}
            begin = partial(self.physics.apply, fault.gpu, fault.class_slug, fault.severity, **twin)
            end = partial(self.physics.clear, fault.gpu, fault.class_slug)
        elif fault.class_slug == "slow-storage" and fault.counters:
            begin, end = partial(self.storage.set_load, SLOW), partial(self.storage.set_load, CALM)
        elif fault.class_slug == "cpu-contention":
            begin, end = partial(self._compete, round(fault.severity)), self._dismiss
        else:
            return []
        place = fault.rank if fault.rank is not None else fault.gpu
        changes = [_Change(place, fault.from_step, begin)]
        if fault.to_step < self.scenario.workload.steps:
            changes.append(_Change(place, fault.to_step, end))
        return changes

    def _confounder_changes(self, odd: Confounder) -> list[_Change]:
        """What is odd about GPUs; more work is the rank's own affair."""
        kind = _CONFOUNDER_KINDS.get(odd.kind)
        if kind is None:
            return []
        severity = 1.0 + odd.severity if kind is FaultKind.SILICON_SPREAD else odd.severity
        changes = []
        for gpu in range(len(self.state.gpus)) if odd.gpu is None else (odd.gpu,):
            # What is there from the start was there before the job.
            begin = odd.from_step if odd.from_step > 0 else -1
            changes.append(_Change(gpu, begin, partial(self.physics.apply, gpu, kind, severity)))
            if odd.to_step < self.scenario.workload.steps:
                changes.append(_Change(gpu, odd.to_step, partial(self.physics.clear, gpu, kind)))
        return changes

    def _pin_victims(self) -> None:
        """Hold the rank that is to be contended on one core from the start, so that only the contention is new."""
        for fault in self.scenario.faults:
            if fault.class_slug == "cpu-contention" and fault.rank is not None:
                for pid in self.state.gpus[fault.rank].processes():
                    if pid not in self._pinned and _pin(pid, {self._core}, self._proc):
                        self._pinned.add(pid)

    def _compete(self, count: int) -> None:
        command = [sys.executable, "-I", "-S", str(Path(competitor.__file__).absolute())]
        command += [str(self._core), str(os.getpid())]
        for _ in range(count):
            # In sessions of their own, as other jobs are: the kernel shares a core by session first.
            self._competitors.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))

    def _dismiss(self) -> None:
        for process in self._competitors:
            process.kill()
        for process in self._competitors:
            process.wait()
        self._competitors.clear()


class _Change:
    """Something to do once, when the rank at `place` (None: any rank) has come to `step`."""

    def __init__(self, place: int | None, step: int, apply: Callable[[], object]) -> None:
        self._place = place
        self._step = step
        self.apply = apply

    def due(self, steps: list[int]) -> bool:
        """Whether its time has come; a GPU without a rank follows the ranks there are."""
        if self._place is None or self._place >= len(steps):
            return max(steps) >= self._step
        return steps[self._place] >= self._step


def _pin(pid: int, cores: set[int], proc: Path) -> bool:
    """Bind every thread of a process; False where it has gone."""
    try:
        for task in (proc / str(pid) / "task").iterdir():
            os.sched_setaffinity(int(task.name), cores)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True
