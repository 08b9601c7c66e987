"""A scenario run by the same code as any watched job: `rankscope demo`, and every run that is scored."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope.agent.config import BudgetSettings, HangSettings, RecordingSettings, RootSettings, RuleSettings, Settings
from rankscope.agent.load import open_reader
from rankscope.agent.run import RunResult, run_job
from rankscope.agent.supervisor import SignalsHeld
from rankscope.errors import RankscopeError, RecordingError, SimulatorError
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.node import SimulatedNode
from rankscope.simulator.scenario import Scenario

if TYPE_CHECKING:
    from rich.console import Console

#: Silence after which a rank of a simulated job hangs: a hundred of its steps.
_HANG_SECONDS = 5.0
#: Between the report of a hang and the end of the job: time for the stacks of all ranks.
_AFTER_HANG_SECONDS = 3.0
#: No scenario takes longer; what does is stuck.
_LONGEST_SECONDS = 600.0
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ScenarioRun:
    """A scenario that ran, with the result of watching it."""

    scenario: Scenario
    result: RunResult
    #: A person ended it, by Ctrl-C or a signal.
    interrupted: bool

    @property
    def gpu_hours(self) -> float:
        """GPU time in the window that was judged."""
        window = self.result.window
        if window is None:
            return 0.0
        return (window.end_ns - window.begin_ns) / 3.6e12 * self.scenario.workload.ranks


def cache_directory() -> Path:
    """Where what is built once lies: `$XDG_CACHE_HOME/rankscope`, else `~/.cache/rankscope`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "rankscope"


def run_scenario(
    scenario: Scenario,
    directory: Path,
    *,
    say: Callable[[str], None],
    progress: Callable[[Path], None] = lambda _recording: None,
    adapt: Callable[[Settings], Settings] = lambda settings: settings,
    job: str = "",
) -> ScenarioRun:
    """Run a scenario in `directory` as `rankscope run -- torchrun ...` would run a job.

    `adapt` changes the settings of its agent; `job` is the job's name, the kind of its workload where it has none.
    Call it from the main thread. Raises SimulatorError where PyTorch, a compiler or the NVML header is missing, and
    RankscopeError where the job could not be watched.
    """
    if importlib.util.find_spec("torch") is None:
        raise SimulatorError("no PyTorch", where=sys.executable, todo="pip install 'rankscope[torch]'")
    if (why := scenario.why_not_real) is not None:
        todo = "score it with --mode generated"
        raise SimulatorError(f"cannot run as a real job: {why}", where=scenario.name, todo=todo)
    library = build(cache_directory())
    ranks = scenario.workload.ranks
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # Else torchrun makes a directory for its logs and leaves it.
    command += ["--log-dir", str(directory / "torchrun"), "-m", "rankscope.simulator.rank"]
    # The node's threads are started with the supervisor's signals blocked, so that those reach the main thread only.
    with SignalsHeld():
        node = SimulatedNode(scenario, directory).__enter__()
    stopper = _Stopper()

    def look(recording: Path) -> None:
        stopper.look(recording)
        progress(recording)

    try:
        result = run_job(
            command,
            settings=adapt(_settings(node, directory, library)),
            job=job or scenario.workload.kind,
            job_environ=node.job_environment() | {"OMP_NUM_THREADS": "1"},
            agent_environ=node.agent_environment(),
            output=directory / "job.log",
            say=say,
            progress=look,
        )
    finally:
        node.__exit__(None, None, None)
    return ScenarioRun(scenario, result, result.interrupted and not stopper.stopped)


def _settings(node: SimulatedNode, directory: Path, library: Path) -> Settings:
    return Settings(
        recording=RecordingSettings(state_directory=str(directory / "recordings")),
        hang=HangSettings(floor_seconds=_HANG_SECONDS),
        rules=RuleSettings(period_seconds=2.0),
        # Seconds must tell here what minutes do in a job: the governor may not thin the readings meanwhile.
        budget=BudgetSettings(cpu_ratio=0.1),
        roots=RootSettings(
            proc=str(node.proc_root),
            kernel_log=str(node.kernel_log_path),
            nvml_library=str(library / LIBRARY),
        ),
    )


class _Stopper:
    """Ends a job that hangs, once the stacks were taken: by a signal to ourselves, as a person would."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._hung_at: float | None = None
        self.stopped = False

    def look(self, recording: Path) -> None:
        now = time.monotonic()
        if self._hung_at is None and _has_event(recording, "rank-hung"):
            self._hung_at = now
        hung = self._hung_at is not None and now - self._hung_at > _AFTER_HANG_SECONDS
        if not self.stopped and (hung or now - self._began > _LONGEST_SECONDS):
            self.stopped = True
            # To this thread, which waits for it: a thread of a library might have it unblocked and end the process.
            signal.raise_signal(signal.SIGTERM)


def _has_event(recording: Path, kind: str) -> bool:
    rows = _rows(recording, "SELECT 1 FROM events WHERE kind = ? LIMIT 1", (kind,))
    return bool(rows)


def _rows(recording: Path, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Rows of a recording that is being written; none where it is not there yet."""
    import sqlite3

    try:
        connection = open_reader(recording)
    except RecordingError:
        return []
    try:
        return connection.execute(statement, parameters).fetchall()
    except sqlite3.Error:
        return []
    finally:
        connection.close()


class Display:
    """Progress of a scenario: a live table on a terminal, else a line now and then."""

    _LINE_SECONDS = 5.0

    def __init__(self, scenario: Scenario, console: Console) -> None:
        from rich.live import Live

        self._steps = scenario.workload.steps
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._due = 0.0
        self._told: set[str] = set()

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, recording: Path) -> None:
        """Show what the recording says now, once a second at most."""
        from rankscope.agent.top import picture, picture_table

        now = time.monotonic()
        if now < self._due:
            return
        try:
            seen = picture(recording)
        except RecordingError:
            return
        step = max((rank.step for rank in seen.ranks if rank.step is not None), default=None)
        if step is None:
            self._due = now + _LOOK_SECONDS
            return
        findings = self._findings(recording)
        if self._live is not None:
            from rich.console import Group
            from rich.text import Text

            self._due = now + _LOOK_SECONDS
            title = Text(f"step {step + 1} of {self._steps}", style="bold")
            told = Text("\n".join(findings), style="yellow")
            self._live.update(Group(title, picture_table(seen), told), refresh=True)
            return
        self._due = now + self._LINE_SECONDS
        slowest = max(rank.step_ms or 0.0 for rank in seen.ranks)
        self._console.print(f"step {step + 1} of {self._steps}, {slowest:.1f} ms a step", highlight=False)
        for line in findings:
            if line not in self._told:
                self._told.add(line)
                self._console.print(line, highlight=False)

    @staticmethod
    def _findings(recording: Path) -> list[str]:
        rows = _rows(recording, "SELECT class, side, rank FROM findings ORDER BY id DESC LIMIT 3")
        return [f"found: {slug} ({side})" + ("" if rank is None else f" at rank {rank}") for slug, side, rank in rows]


def demonstrate(scenario: Scenario, console: Console, *, keep: Path | None = None) -> ScenarioRun:
    """Run a scenario with progress on `console`; `keep` is where recording and log stay. Raises RankscopeError."""
    if keep is not None:
        _empty(keep)
    directory = keep or Path(tempfile.mkdtemp(prefix="rankscope-demo-"))
    workload, node = scenario.workload, scenario.node
    job = f"{workload.ranks} ranks, {workload.steps} steps of {workload.step_ms:g} ms"
    console.print(f"{job} on {node.gpus} simulated {node.gpu}", highlight=False)
    try:
        with Display(scenario, console) as display:
            done = run_scenario(
                scenario, directory, say=lambda line: console.print(line, highlight=False), progress=display.update
            )
        if done.result.verdict is None:
            tail = _last_lines(directory / "job.log")
            raise RankscopeError("the run gave no verdict" + (f"; its output ends: {tail}" if tail else ""))
        return done
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)


def _empty(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        used = any(directory.iterdir())
    except OSError as error:
        raise RankscopeError(f"cannot be used ({error.strerror})", where=str(directory)) from error
    if used:
        raise RankscopeError("not empty", where=str(directory), todo="name a new directory")


def _last_lines(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
