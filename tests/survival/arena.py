"""A whole installation in one directory, every part a process of its own that may be killed: two ranks that train with
PyTorch, the shipped agent with its NVML helper over simulated GPUs, and an OTLP collector."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import components
import msgspec
from survival.collector import received
from survival.stepped_clock import HOUR_NS, SteppedClock
from survival.trainer import losses

from rankscope.agent.config import (
    ExportSettings,
    ProbeSettings,
    RecordingSettings,
    RingSettings,
    Settings,
)
from rankscope.agent.plan import Plan, write_plan
from rankscope.agent.processes import descendants, process_stat
from rankscope.agent.supervisor import AgentProcess
from rankscope.exporters.outbox import Balance, Outbox
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.state import NodeState

HERE = Path(__file__).parent
RANKS = 2
#: What a rank sleeps after each step, ms.
PAUSE_MS = 4.0
#: What these tests are not about.
DISABLED = ("kernel-log", "cpu-clock", "numa", "edac", "pressure", "cgroup", "disk", "filesystem", "nfs", "lustre")


#: What may happen to the clocks of the agent, its helper and the ranks; the collector's is another machine's.
CLOCKS: dict[str, Callable[[SteppedClock], None]] = {
    "clock set forward": lambda clock: clock.set_wall(HOUR_NS),
    "clock set back": lambda clock: clock.set_wall(-HOUR_NS),
    "asleep": lambda clock: clock.sleep(HOUR_NS),
}
#: Everything as often as may be, so that much happens between two faults.
HASTY = Settings(
    recording=RecordingSettings(commit_seconds=0.1),
    rings=RingSettings(poll_seconds=0.05),
    probes=ProbeSettings(disabled=DISABLED),
    # Every reading leaves: what was recorded is to be what arrived.
    export=ExportSettings(period_seconds=0.3, interval_seconds=0.0, drain_seconds=30.0),
)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for a condition, however slow the machine is today."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


@contextmanager
def small_file_systems(place: Path, *sizes_bytes: int) -> Iterator[list[Path]]:
    """File systems of their own that can really be full; none where this process may not mount."""
    mounted: list[Path] = []
    try:
        for number, size in enumerate(sizes_bytes):
            target = place / f"small.{number}"
            target.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "rankscope-test", str(target)]
            if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
                break
            mounted.append(target)
        yield mounted if len(mounted) == len(sizes_bytes) else []
    finally:
        for target in mounted:
            subprocess.run(["umount", "--lazy", target], check=True)


def fill(directory: Path) -> None:
    """Take all the room that is left, to the last byte."""
    with (directory / "filler").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


class Arena:
    """Starts everything; `stop` ends it in order. Nothing here is told of a kill: whoever kills starts anew."""

    def __init__(
        self,
        place: Path,
        *,
        state: Path | None = None,
        shm: Path | None = None,
        settings: Settings = HASTY,
        pause_ms: float = PAUSE_MS,
    ) -> None:
        """`state` is where the recording lies, `shm` where the rings do."""
        self.place = place
        self._pause_ms = pause_ms
        self.rings = (shm or place) / "rings"
        self.training = place / "training"
        self.kept = place / "collector"
        for directory in (self.rings, self.training, self.kept):
            directory.mkdir(parents=True)
        self.recording = (state or place) / "arena.db"
        self._node = NodeState.create(place / "node", profile="H100-SXM5-80GB", gpus=RANKS)
        library = build(place / "library")
        self._port = components.free_port()
        replace = msgspec.structs.replace
        self.settings = replace(
            settings,
            export=replace(settings.export, endpoint=f"http://127.0.0.1:{self._port}"),
            roots=replace(settings.roots, nvml_library=str(library / LIBRARY)),
        )
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RANKSCOPE", "OTEL"))}
        self.clock = SteppedClock(place)
        clean |= self.clock.environment()
        self._environ = clean | self._node.environment(library)
        self._rank_environ = clean | {"RANKSCOPE_DIR": str(self.rings), "RANKSCOPE_JOB": "arena"}
        self._starts = 0
        self.agent: AgentProcess | None = None
        self.collector: subprocess.Popen[bytes] | None = None
        self.launchers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Everything at once."""
        self.start_collector()
        self.start_agent()
        for rank in range(RANKS):
            self.launchers.append(self._launch(self.training, rank, 0, self._rank_environ))
        wait_until(lambda: all(self.rank_pid(rank) for rank in range(RANKS)), "the ranks")
        wait_until(lambda: len(list(self.rings.glob("*.ring"))) >= RANKS, "the rings")

    def _launch(self, directory: Path, rank: int, steps: int, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        words = [str(directory), str(rank), str(steps), str(0 if steps else self._pause_ms)]
        return subprocess.Popen([sys.executable, HERE / "trainer.py", *words], env=environ, cwd=self.place)

    def start_agent(self) -> None:
        """An agent, for the first time or in place of one that is gone."""
        if self.agent is not None:
            self.agent.close()
        plan = self.place / "plan.json"
        write_plan(Plan("arena", str(self.recording), str(self.rings), self.settings, self._starts), plan)
        self._starts += 1
        self.agent = AgentProcess(plan, self._environ, self.place / "agent.log")

    def start_collector(self) -> None:
        """A collector on the port of the one before."""
        self.collector = subprocess.Popen([sys.executable, HERE / "collector.py", self.kept, str(self._port)])
        # Somebody may be waiting for it, or not: nothing waits for it to listen.

    def rank_pid(self, rank: int) -> int | None:
        """The process that trains now; None while there is none."""
        try:
            pid = int((self.training / f"pid.{rank}").read_text() or 0)
        except FileNotFoundError:
            return None
        found = process_stat(pid)
        return pid if pid and found is not None and found.state != "Z" else None

    def helper_pid(self) -> int | None:
        """The agent's NVML helper; None while there is none."""
        assert self.agent is not None
        for pid in descendants(self.agent.pid):
            try:
                if b"nvml_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            except OSError:
                continue
        return None

    def kill(self, victim: str) -> int | None:
        """SIGKILL to "agent", "helper", "collector" or "rank N", and start it again where nobody else does.

        Returns the process id, None where there was no such process at this moment.
        """
        if victim == "agent":
            assert self.agent is not None
            pid = self.agent.pid
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.start_agent()
        elif victim == "collector":
            assert self.collector is not None
            pid = self.collector.pid
            self.collector.kill()
            self.collector.wait()
            self.start_collector()
        else:
            found = self.helper_pid() if victim == "helper" else self.rank_pid(int(victim.split()[1]))
            if found is None:
                return None
            pid = found
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return None
        return pid

    def begin(self, fault: str) -> None:
        """What lasts: "disk full" (with "agent": it has to begin then), "rings full" for a rank that begins,
        "collector MODE"; and what does not go back: the wall clock set by an hour, or an hour asleep."""
        if fault in CLOCKS:
            CLOCKS[fault](self.clock)
            return
        if fault.startswith("collector"):
            (self.kept / "mode").write_text(fault.split()[1])
            return
        fill(self.rings if "rings" in fault else self.recording.parent)
        if fault == "agent, disk full":
            self.kill("agent")
        elif fault == "rank, rings full":
            self.kill("rank 0")

    def end(self, fault: str) -> None:
        """It is over; an agent that could not begin is started again, as `rankscope run` does."""
        if fault in CLOCKS:
            return
        if fault.startswith("collector"):
            (self.kept / "mode").unlink()
            return
        ((self.rings if "rings" in fault else self.recording.parent) / "filler").unlink(missing_ok=True)
        assert self.agent is not None
        found = process_stat(self.agent.pid)
        if found is None or found.state == "Z":
            os.waitpid(self.agent.pid, 0)
            self.start_agent()

    def end_training(self) -> list[int]:
        """Let the ranks end by themselves; the exit status of each launcher."""
        for launcher in self.launchers:
            launcher.terminate()
        return [launcher.wait(60) for launcher in self.launchers]

    def end_agent(self) -> int:
        """Let the agent finish; its exit status."""
        assert self.agent is not None
        wait_until(lambda: self.agent is not None and (self.agent.wait_ready() or True), "the agent")
        self.agent.stop()
        status = os.waitstatus_to_exitcode(os.waitpid(self.agent.pid, 0)[1])
        self.agent.close()
        self.agent = None
        return status

    def clear(self) -> None:
        """End whatever still runs."""
        if self.agent is not None:
            self.agent.kill()
            os.waitpid(self.agent.pid, 0)
            self.agent.close()
            self.agent = None
        for process in (*self.launchers, self.collector):
            if process is not None:
                for pid in descendants(process.pid):
                    os.kill(pid, signal.SIGKILL)
                process.kill()
                process.wait()

    def balance(self) -> Balance | None:
        """The export's accounts at this moment; None before there is an outbox."""
        if not self.recording.exists():
            return None
        connection = sqlite3.connect(self.recording, isolation_level=None, timeout=30)
        try:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox_account'").fetchone():
                return None
            return Outbox(connection).balance()
        finally:
            connection.close()

    def received(self) -> list[tuple[str, bytes]]:
        """Requests that the collector kept, each once."""
        return list(dict.fromkeys(received(self.kept)))

    def curve_differs(self) -> str:
        """Where the losses differ from those of the same training alone; "" where they are equal to the last bit."""
        clean = {key: value for key, value in self._rank_environ.items() if not key.startswith("RANKSCOPE")}
        # On a busy machine a rank may be killed again and again before its first step is over.
        watched = {rank: of for rank in range(RANKS) if (of := losses(self.training, rank))}
        alone = self.place / "alone"
        alone.mkdir()
        trained = [self._launch(alone, rank, max(of) + 1, clean) for rank, of in watched.items()]
        if any(process.wait(300) for process in trained):
            return "it does not train alone"
        for rank, of in watched.items():
            for step, loss in losses(alone, rank).items():
                if of.get(step) != loss:
                    return f"rank {rank} step {step}: {of.get(step)} watched, {loss} alone"
        return ""


@contextmanager
def arena(
    place: Path,
    *,
    state: Path | None = None,
    shm: Path | None = None,
    settings: Settings = HASTY,
    pause_ms: float = PAUSE_MS,
) -> Iterator[Arena]:
    """An arena that runs, cleared at the end."""
    made = Arena(place, state=state, shm=shm, settings=settings, pause_ms=pause_ms)
    try:
        made.start()
        yield made
    finally:
        made.clear()
