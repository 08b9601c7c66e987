"""How full the job's filesystems are, and which of them do not answer.

A filesystem whose server is gone keeps whoever asks it waiting, for hours where it is mounted hard. So a thread asks,
and whoever reads the probe never waits for it: a thread that does not come back is left to its filesystem, and a new
one goes on with the others. At most one thread a filesystem is ever lost, and it comes back with the server.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankscope.probes.held_file import translated
from rankscope.probes.mounts import Mount, parse
from rankscope.probes.sysfs import read_text
from rankscope.reading import Event, Group, Outcome, ProbeResult, Reading, Severity

_NS = 10**9
#: Filesystems that are told at most.
MAX_MOUNTS = 32
#: A filesystem that has not answered for this long is stalled, ns.
DEADLINE_NS = 3 * _NS
#: How long a read waits for what is answered at once, s.
GRACE_S = 0.05
#: Mounts are looked for this often, ns.
_LOOK_NS = 60 * _NS


class Usage:
    """What statvfs says, in the names it has there."""

    def __init__(self, answer: os.statvfs_result) -> None:
        self.total_bytes = answer.f_blocks * answer.f_frsize
        self.available_bytes = answer.f_bavail * answer.f_frsize
        self.inodes = answer.f_files
        self.inodes_available = answer.f_favail

    def values(self) -> dict[str, float]:
        """Metric -> value. A filesystem without a fixed number of inodes says 0 of them, or as many as it has bytes."""
        values: dict[str, float] = {}
        if self.total_bytes > 0:
            values = {"fs.total_bytes": self.total_bytes, "fs.available_bytes": self.available_bytes}
        if 0 < self.inodes < 1 << 62:
            values |= {"fs.inodes": self.inodes, "fs.inodes_available": self.inodes_available}
        return values


@dataclass(slots=True)
class _Asked:
    """One question to one filesystem."""

    path: str
    at: str
    since_ns: int = 0
    took_ns: int = 0
    usage: Usage | None = None
    failure: str = ""


class FilesystemProbe:
    """Probe of the filesystems that the ranks can reach; `set_ranks` says which processes those are."""

    name = "filesystem"
    groups: Sequence[Group] = (
        Group("filesystem", 5 * _NS, 5 * _NS, "space goes over minutes; a server that is gone shows in one period"),
    )

    def __init__(
        self,
        proc: Path = Path("/proc"),
        *,
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        deadline_ns: int = DEADLINE_NS,
        grace_s: float = GRACE_S,
    ) -> None:
        self._proc = proc
        self._statvfs = statvfs
        self._clock_ns = clock_ns
        self._deadline_ns = deadline_ns
        self._grace_s = grace_s
        self._pids: tuple[int, ...] = ()
        self._mounts: dict[str, Mount] = {}
        #: Mount point -> path by which it is asked.
        self._paths: dict[str, str] = {}
        self._looked_ns: int | None = None
        self._answers: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._asker: _Asker | None = None
        self._waiting: dict[str, _Asked] = {}
        #: Mount points that have not answered by the deadline -> since when.
        self._stalled: dict[str, int] = {}

    def set_ranks(self, pids: Mapping[int, int]) -> None:
        """Tell what these processes can reach from now on: rank -> process id. Ranks of a host share their mounts."""
        if (now := tuple(pid for _, pid in sorted(pids.items()))) != self._pids:
            self._pids = now
            self._looked_ns = None

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """What has been answered, and what was not in time. Raises PermissionDenied or ProbeError."""
        if self._looked_ns is None or now_ns - self._looked_ns >= _LOOK_NS:
            self._look()
            self._looked_ns = now_ns
        asked = [path for path in self._mounts if path not in self._waiting]
        # Those behind a network come last: they may be the ones that do not come back.
        for path in sorted(asked, key=lambda path: self._mounts[path].remote):
            self._ask(path)
        readings: list[Reading] = []
        events: list[Event] = []
        outcomes: list[tuple[str, Outcome, str]] = []
        patience = time.monotonic() + self._grace_s
        while set(self._waiting) - set(self._stalled):
            try:
                answer = self._answers.get(timeout=max(0.0, patience - time.monotonic()))
            except queue.Empty:
                break
            self._take(answer, now_ns, readings, events, outcomes)
        while not self._answers.empty():
            self._take(self._answers.get_nowait(), now_ns, readings, events, outcomes)
        events += self._overdue(now_ns)
        return ProbeResult(readings, events, outcomes)

    def close(self) -> None:
        """Let the thread end."""
        if self._asker is not None:
            self._asker.stop()
            self._asker = None

    def _look(self) -> None:
        """Find the mounts anew, of the first rank that is still there."""
        for pid in self._pids:
            base = self._proc / str(pid)
            text = read_text(base / "mountinfo")
            if text is None:
                continue
            self._mounts = {mount.path: mount for mount in parse(text, MAX_MOUNTS)}
            root = self._root_of(base)
            self._paths = {path: f"{root}{path}" for path in self._mounts}
            return
        self._mounts = {}

    def _root_of(self, base: Path) -> str:
        """Where a process's mounts are found from here: "" where it has the agent's own."""
        try:
            same = (base / "ns/mnt").readlink() == (self._proc / "self/ns/mnt").readlink()
        except OSError as error:
            raise translated(error, base / "ns/mnt") from error
        return "" if same else str(base / "root")

    def _ask(self, path: str) -> None:
        if self._asker is None:
            self._asker = _Asker(self._statvfs, self._clock_ns, self._answers)
        question = _Asked(path, self._paths[path])
        self._waiting[path] = question
        self._asker.put(question)

    def _take(
        self,
        answer: _Asked,
        now_ns: int,
        readings: list[Reading],
        events: list[Event],
        outcomes: list[tuple[str, Outcome, str]],
    ) -> None:
        self._waiting.pop(answer.path, None)
        since = self._stalled.pop(answer.path, None)
        if since is not None:
            events.append(_event("filesystem-recovered", answer.path, now_ns, answer.took_ns, "answers again after"))
        if answer.usage is None:
            outcomes.append((answer.path, Outcome.FAILED, f"{answer.path}: {answer.failure}"))
            return
        values = answer.usage.values() | {"fs.answer_ns": answer.took_ns}
        readings += [Reading(metric, value, now_ns, answer.path) for metric, value in values.items()]

    def _overdue(self, now_ns: int) -> list[Event]:
        """Give up the thread that waits for a filesystem, and have another ask the rest."""
        asker = self._asker
        running = None if asker is None else asker.running
        if asker is None or running is None or running.path in self._stalled:
            return []
        waited = self._clock_ns() - running.since_ns
        if waited < self._deadline_ns:
            return []
        self._stalled[running.path] = running.since_ns
        self._asker = asker.replace()
        return [_event("filesystem-stalled", running.path, now_ns, waited, "has not answered for")]


def _event(kind: str, path: str, now_ns: int, waited_ns: int, what: str) -> Event:
    severity = Severity.CRITICAL if kind == "filesystem-stalled" else Severity.INFO
    text = f"{path} {what} {waited_ns / _NS:.1f} s"
    return Event(kind, now_ns, text, severity, path, attributes={"path": path, "waited_ns": waited_ns})


class _Asker:
    """A thread that asks one filesystem after the other."""

    def __init__(
        self,
        statvfs: Callable[[str], os.statvfs_result],
        clock_ns: Callable[[], int],
        answers: queue.SimpleQueue[_Asked],
    ) -> None:
        self._statvfs = statvfs
        self._clock_ns = clock_ns
        self._answers = answers
        self._questions: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        #: The question that is being asked.
        self.running: _Asked | None = None
        threading.Thread(target=self._work, name="rankscope-filesystems", daemon=True).start()

    def put(self, question: _Asked) -> None:
        """Ask this too."""
        self._questions.put(question)

    def stop(self) -> None:
        """End after the question that is being asked."""
        self._questions.put(None)

    def replace(self) -> _Asker:
        """A new thread that takes over everything but the question that hangs; this one ends once it is answered."""
        fresh = _Asker(self._statvfs, self._clock_ns, self._answers)
        while not self._questions.empty():
            if (question := self._questions.get_nowait()) is not None:
                fresh.put(question)
        self.stop()
        return fresh

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            question.since_ns = self._clock_ns()
            self.running = question
            try:
                question.usage = Usage(self._statvfs(question.at))
            except OSError as error:
                question.failure = error.strerror or type(error).__name__
            question.took_ns = self._clock_ns() - question.since_ns
            self.running = None
            self._answers.put(question)
