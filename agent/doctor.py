"""`rankscope doctor`: every source read, and what else a run needs, each with what would change it."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rankscope.agent.brevity import brief
from rankscope.agent.config import Settings, ring_root
from rankscope.agent.lane import Answer, Lane, Read, Watched, close_within
from rankscope.agent.privileges import Profile, gather_facts, profile_of
from rankscope.agent.rank_state import find_pyspy
from rankscope.agent.recording_file import state_directory
from rankscope.agent.sources import build_sources
from rankscope.clock import SystemClock
from rankscope.errors import Absent, PermissionDenied, ProbeError, Unsupported
from rankscope.reading import DeviceProbe, Event, Group, Outcome, Probe, Reading

if TYPE_CHECKING:
    from rich.console import Console

#: How long all sources together may take, s.
_ASK_FOR_SECONDS = 5.0
#: A helper process answers a little later than it is asked, and some metrics are differences: asked again so often, s.
_ASK_AGAIN_SECONDS = 0.2
#: Rounds after the devices are known.
_ROUNDS = 3


class State(StrEnum):
    """How a source stands."""

    OK = "ok"
    #: Nothing of the source is on this machine, or nothing is there to be read now.
    ABSENT = "absent"
    #: The source is there, and does not offer this.
    UNSUPPORTED = "unsupported"
    NO_PERMISSION = "no permission"
    FAILED = "failed"


_TODO = {
    State.OK: "",
    State.ABSENT: "nothing to do unless it should be there",
    State.UNSUPPORTED: "nothing to do on this machine",
    State.NO_PERMISSION: "run as a user who may read it, or leave it out",
    State.FAILED: "see the reason; it is tried again while a job runs",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One source or need, and how it stands."""

    name: str
    state: State
    reason: str
    todo: str
    #: Devices concerned, [] where it is all of the source.
    devices: Sequence[str] = ()

    def document(self) -> dict[str, object]:
        """As plain values."""
        return asdict(self) | {"state": str(self.state), "devices": list(self.devices)}


@dataclass(slots=True)
class Heard:
    """What one probe said to all its groups that are read."""

    probe: Probe
    groups: Sequence[Group]
    readings: list[Reading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    #: (outcome, reason) -> devices.
    troubles: dict[tuple[Outcome, str], list[str]] = field(default_factory=dict)

    @property
    def metrics(self) -> set[str]:
        """Names of what was read."""
        return {reading.metric for reading in self.readings}

    def take(self, answer: Answer) -> None:
        """One answer more."""
        self.answered.add(answer.watched.group.name)
        self.readings += answer.result.readings
        self.events += answer.result.events
        for device, outcome, reason in answer.result.outcomes:
            if outcome is not Outcome.OK:
                self.note(outcome, reason, device)
        error = answer.raised
        if isinstance(error, Unsupported):
            self.note(Outcome.NO_DATA if isinstance(error, Absent) else Outcome.UNSUPPORTED, str(error), "")
        elif isinstance(error, PermissionDenied):
            self.note(Outcome.NO_PERMISSION, str(error), "")
        elif error is not None:
            text = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
            self.note(Outcome.FAILED, text, "")

    def note(self, outcome: Outcome, reason: str, device: str) -> None:
        """Something that could not be had."""
        devices = self.troubles.setdefault((outcome, reason), [])
        if device and device not in devices:
            devices.append(device)

    def found(self) -> Iterator[Found]:
        """The lines about this probe, the good one first."""
        name = self.probe.name
        silent = [group.name for group in self.groups if group.name not in self.answered]
        if silent:
            self.note(Outcome.FAILED, f"no answer within {_ASK_FOR_SECONDS:g} s ({', '.join(silent)})", "")
        if self.metrics or not self.troubles:
            yield Found(name, State.OK, f"{len(self.metrics)} metrics" if self.metrics else "listening", "")
        for (outcome, reason), devices in self.troubles.items():
            # A probe that knows what to do says so behind its reason.
            what, _, todo = reason.partition("; ")
            state = self._state(outcome)
            yield Found(name, state, what, todo or _TODO[state], devices)

    def _state(self, outcome: Outcome) -> State:
        if outcome is Outcome.NO_DATA or (outcome is Outcome.UNSUPPORTED and not self.metrics):
            return State.ABSENT
        return State(outcome.value)


def examine(settings: Settings) -> list[Found]:
    """Read every source and look at what a run needs. Raises ConfigurationError."""
    sources = build_sources(settings, lambda: {0: os.getpid()})
    found = [line for heard in ask(sources.probes, sources.groups) for line in heard.found()]
    found.append(_directory("rings", ring_root(settings), "set RANKSCOPE_DIR to a directory in memory"))
    state = settings.recording.state_directory
    found.append(_directory("recordings", Path(state) if state else state_directory(), "set RANKSCOPE_STATE"))
    found.append(_torch())
    found.append(_pidfd())
    found.append(_pyspy())
    return found


def find_profile(settings: Settings) -> Profile:
    """Which privileges this process has."""
    return profile_of(gather_facts(Path(settings.roots.proc), Path(settings.roots.kernel_log)))


def ask(probes: Iterable[Probe], groups: Mapping[str, Sequence[Group]] = MappingProxyType({})) -> list[Heard]:
    """Every group of every probe, each probe in a thread of its own: one that hangs holds up no other.

    `groups` are those to ask of a probe, by its name, in place of all.
    """
    clock = SystemClock()
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    heard = {probe.name: Heard(probe, groups.get(probe.name, probe.groups)) for probe in probes}
    watched = {name: [Watched(probe.probe, group) for group in probe.groups] for name, probe in heard.items()}
    lanes = {name: Lane(answers, clock, checking=True) for name in heard}
    deadline = time.monotonic() + _ASK_FOR_SECONDS
    rounds = 0
    for name, of_probe in watched.items():
        for one in of_probe:
            lanes[name].put(Read(one))
    while time.monotonic() < deadline and rounds < _ROUNDS:
        again = time.monotonic() + _ASK_AGAIN_SECONDS
        while (left := again - time.monotonic()) > 0:
            try:
                answer = answers.get(timeout=left)
            except queue.Empty:
                break
            heard[answer.watched.probe.name].take(answer)
        waiting = [name for name, one in heard.items() if _wants_more(one, rounds)]
        if not waiting and all(lane.idle for lane in lanes.values()):
            break
        rounds += all(_known(heard[name]) for name in waiting if lanes[name].idle)
        for name in waiting:
            if lanes[name].idle:
                for one in watched[name]:
                    lanes[name].put(Read(one))
    for lane in lanes.values():
        lane.stop(0)
    last_words = time.monotonic() + _ASK_AGAIN_SECONDS
    for name, lane in lanes.items():
        lane.stop(max(0.0, last_words - time.monotonic()))
        if lane.running is None:
            close_within(heard[name].probe, _ASK_FOR_SECONDS)
    return list(heard.values())


def _known(heard: Heard) -> bool:
    return not isinstance(heard.probe, DeviceProbe) or bool(heard.probe.devices)


def _wants_more(heard: Heard, rounds: int) -> bool:
    """Whether asking again may bring more: a helper starts first, and some metrics are differences."""
    if any(outcome is not Outcome.NO_DATA for outcome, _ in heard.troubles) and not heard.metrics:
        return False
    return isinstance(heard.probe, DeviceProbe) and rounds < _ROUNDS


def _directory(name: str, directory: Path, todo: str) -> Found:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 21)
    except OSError as error:
        return Found(name, State.FAILED, f"{directory}: {error.strerror}", todo)
    return Found(name, State.OK, str(directory), "")


def _torch() -> Found:
    if find_spec("torch") is None:
        todo = f"{sys.executable} -m pip install 'rankscope[torch]'"
        return Found("torch", State.ABSENT, f"not installed beside {sys.executable}", todo)
    from importlib.metadata import version

    from rankscope.torch_hooks.hot import NAME

    return Found("torch", State.OK, f"{version('torch')}; the hooks' hot path: {NAME}", "")


def _pidfd() -> Found:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Found("pidfd", State.UNSUPPORTED, error.strerror or "", "Linux 5.3 tells at once when a rank dies")
    return Found("pidfd", State.OK, "the kernel tells at once when a rank dies", "")


def _pyspy(yama: Path = Path("/proc/sys/kernel/yama/ptrace_scope")) -> Found:
    binary = find_pyspy()
    if binary is None:
        what = "not installed: a hung rank is asked for its stacks by a signal"
        return Found("py-spy", State.ABSENT, what, f"{sys.executable} -m pip install 'rankscope[stacks]'")
    try:
        scope = int(yama.read_text())
    except (OSError, ValueError):
        scope = 0
    if scope and os.geteuid():
        todo = "sysctl kernel.yama.ptrace_scope=0, CAP_SYS_PTRACE, or the signal that is used instead"
        return Found("py-spy", State.NO_PERMISSION, f"ptrace is kept to a parent (ptrace_scope {scope})", todo)
    return Found("py-spy", State.OK, str(binary), "")


def document(found: Sequence[Found], profile: Profile) -> dict[str, object]:
    """The examination as plain values (docs/schemas/doctor.schema.json)."""
    sources = [line.document() for line in found]
    return {"schema": "rankscope.doctor/1", "profile": profile.document(), "sources": sources}


#: Lines of one probe and state on the terminal; JSON has them all.
_SHOWN = 3


def print_examination(found: Sequence[Found], profile: Profile, console: Console) -> None:
    """The examination as a table."""
    from rich.markup import escape
    from rich.table import Table

    colours = {State.OK: "green", State.ABSENT: "default", State.UNSUPPORTED: "yellow"}
    table = Table(box=None, pad_edge=False)
    for heading in ("source", "state", "what", "what would change it"):
        table.add_column(heading, overflow="fold")
    shown: dict[tuple[str, State], int] = {}
    for line in found:
        key = (line.name, line.state)
        shown[key] = shown.get(key, 0) + 1
        if shown[key] > _SHOWN:
            continue
        style = colours.get(line.state, "red")
        devices = f"{line.devices[0]}: " if len(line.devices) == 1 else ""
        devices = f"{len(line.devices)} devices: " if len(line.devices) > 1 else devices
        row = [escape(text) for text in (line.name, devices + brief(line.reason), line.todo)]
        table.add_row(row[0], f"[{style}]{line.state}[/]", row[1], row[2])
    for (name, state), count in shown.items():
        if count > _SHOWN:
            table.add_row(escape(name), str(state), f"and {count - _SHOWN} more (--json lists them)", "")
    console.print(table)
    console.print()
    console.print(f"profile: [bold]{profile.name}[/], {escape(profile.meaning)}")
    for grant in profile.lacks:
        how = grant.container if profile.facts.container else grant.service
        console.print(f"  {escape(grant.name)} would add {escape(grant.adds)}: {escape(how)}")
