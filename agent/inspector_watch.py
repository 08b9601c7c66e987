"""What NCCL's Inspector writes while the job runs: the ranks' files followed, a bounded part of them recorded.

A rank's file is found by what the rank said of its own environment. Files grow by some 400 bytes a collective, at any
rate: each look takes so much of all files together, and where that is not enough it takes their ends, so that ranks are
seen in the same stretch of time and their collectives can be joined.
"""

from __future__ import annotations

import json
import os
import stat
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rankscope.agent.fingerprint import read_facts
from rankscope.agent.inspector_text import InspectorReader
from rankscope.agent.ranks import Rank
from rankscope.clock import Clock, ClockAnchor
from rankscope.reading import Event, Severity
from rankscope.records import CollectiveRecord, DeviceRecord, GroupKind, GroupRecord, StepRecord
from rankscope.rules.timed import TimedOperation

DIRECTORY_KEY = "NCCL_INSPECTOR_DUMP_DIR"
#: Time between two looks, and what one takes of all files together: some 10 ms of work, 0.2 % of a core.
LOOK_NS = 5_000_000_000
LOOK_BYTES = 512 * 1024
#: More than this many looks behind, the ends are taken.
_BEHIND = 4
_STEPS = 4_096
#: Operations written within this time of each other belong to one dump of the library.
_DUMP_US = 5_000
#: GroupRecord.on_device of what the communication library timed.
TIMED = 2


@dataclass(slots=True)
class _Sum:
    """One communicator's operations in the step under way."""

    step: int
    size: int
    whole: bool
    count: int = 0
    spent_ns: int = 0


@dataclass(slots=True)
class _Tail:
    """One rank's file. `descriptor` is -1 until it is there."""

    rank: Rank
    paths: tuple[Path, ...]
    descriptor: int = -1
    position: int = 0
    reader: InspectorReader = field(default_factory=InspectorReader)
    #: (end ns, number) of the rank's latest steps.
    steps: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_STEPS))
    #: By step, how long the compute stream waited for communication, ns, where all such waits were seen.
    exposed: dict[int, int] = field(default_factory=dict)
    #: When each communicator was written last, us.
    written: dict[str, int] = field(default_factory=dict)
    sums: dict[str, _Sum] = field(default_factory=dict)
    last_ns: int = 0


class InspectorWatch:
    """The files of one job's ranks on this host."""

    def __init__(
        self,
        clock: Clock,
        *,
        anchor: Callable[[], ClockAnchor] | None = None,
        look_ns: int = LOOK_NS,
        look_bytes: int = LOOK_BYTES,
    ) -> None:
        """`anchor` turns the wall clock that the library dates by into ours; None: as both stand at each look."""
        self._clock = clock
        self._anchor = anchor or partial(ClockAnchor.take, clock)
        self._look_ns, self._look_bytes = look_ns, look_bytes
        self._tails: dict[int, _Tail | None] = {}
        self._due_ns = 0
        self._skipped_bytes = 0
        self._told = False

    def heard(self, rank_row: int, record: StepRecord | DeviceRecord) -> None:
        """A rank ended a step: what its library timed meanwhile belongs to it; or its device's part of one is known."""
        tail = self._tails.get(rank_row)
        if tail is None:
            return
        if isinstance(record, StepRecord):
            tail.steps.append((record.end_ns, record.step))
        elif record.backward_wait_ns is not None and not record.contaminated:
            tail.exposed[record.step] = record.backward_wait_ns + (record.inner_wait_ns or 0)
            if len(tail.exposed) > _STEPS:
                del tail.exposed[next(iter(tail.exposed))]

    @property
    def following(self) -> bool:
        """Whether any rank writes such a file."""
        return any(tail is not None for tail in self._tails.values())

    def check(
        self, ranks: Sequence[Rank], *, final: bool = False
    ) -> tuple[list[tuple[Rank, list[CollectiveRecord | GroupRecord]]], list[Event]]:
        """What came since the last look, by rank, and what is to be said of it. Never waits."""
        now = self._clock.monotonic_ns()
        if now < self._due_ns and not final:
            return [], []
        self._due_ns = now + self._look_ns
        for rank in ranks:
            if rank.row not in self._tails:
                paths = _paths(rank)
                self._tails[rank.row] = _Tail(rank, paths) if paths else None
        for row in self._tails.keys() - {rank.row for rank in ranks}:
            _close(self._tails.pop(row))
        tails = [tail for tail in self._tails.values() if tail is not None and _open(tail)]
        if not tails:
            return [], []
        share = self._look_bytes // len(tails)
        sizes = {id(tail): os.fstat(tail.descriptor).st_size for tail in tails}
        behind = any(sizes[id(tail)] - tail.position > _BEHIND * share for tail in tails)
        anchor = self._anchor()
        found = []
        for tail in tails:
            if behind or sizes[id(tail)] < tail.position:
                self._skip(tail, max(0, sizes[id(tail)] - share))
            data = os.pread(tail.descriptor, share, tail.position)
            tail.position += len(data)
            operations = [each for each in tail.reader.feed(data) if each.on_device]
            if records := _records(tail, operations, anchor, now):
                found.append((tail.rank, records))
            if tail.rank.gone and len(data) < share:
                # Nobody writes any more, and all there was is read.
                _close(tail)
                self._tails[tail.rank.row] = None
        return found, self._events(now, tails)

    def _skip(self, tail: _Tail, position: int) -> None:
        self._skipped_bytes += max(0, position - tail.position)
        tail.position = position
        tail.reader.skipped(in_line=position > 0)
        tail.sums.clear()
        tail.written.clear()

    def _events(self, now: int, tails: Iterable[_Tail]) -> list[Event]:
        """Once: that files are followed, or are of a format that is not known."""
        if self._told:
            return []
        foreign = sorted({version for tail in tails for version in tail.reader.counts.foreign})
        known = sorted({version for tail in tails for version in tail.reader.versions})
        if not foreign and not known:
            return []
        self._told = True
        if foreign:
            text = f"NCCL Inspector writes in format {', '.join(foreign)[:80]}, which is not known: not read"
            return [Event("inspector", now, text, Severity.WARNING)]
        return [Event("inspector", now, f"collectives are timed by NCCL Inspector ({', '.join(known)})")]

    def close(self) -> list[Event]:
        """Close every file; says what was left out."""
        for tail in self._tails.values():
            _close(tail)
        if not self._skipped_bytes:
            return []
        text = f"{self._skipped_bytes} bytes of NCCL Inspector output were left out: collectives are a sample"
        return [Event("inspector", self._clock.monotonic_ns(), text, attributes={"skipped_bytes": self._skipped_bytes})]


def _paths(rank: Rank) -> tuple[Path, ...]:
    """Where the rank's own file may lie, by what it said of its environment; () where it has none."""
    try:
        told = json.loads(read_facts(rank.reader.path) or "{}")["environment"][DIRECTORY_KEY]
    except (ValueError, LookupError, TypeError):
        return ()
    if not isinstance(told, str) or not told:
        return ()
    identity, pid = rank.identity, rank.handle.pid
    names = [f"{host}-pid{identity.pid}.log" for host in dict.fromkeys((os.uname().nodename, identity.host))]
    base = Path("/proc", str(pid), "cwd", told) if not told.startswith("/") else Path(told)
    inside = (Path("/proc", str(pid), "root", told.lstrip("/")),) if told.startswith("/") else ()
    return tuple(directory / name for directory in (*inside, base) for name in names)


def _close(tail: _Tail | None) -> None:
    if tail is not None and tail.descriptor >= 0:
        os.close(tail.descriptor)
        tail.descriptor = -1


def _open(tail: _Tail) -> bool:
    """Open the file once it is there: a regular one of the rank's own user, through no link."""
    if tail.descriptor >= 0:
        return True
    try:
        owner = tail.rank.reader.path.stat().st_uid
    except OSError:
        owner = os.getuid()
    for path in tail.paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_uid == owner:
            tail.descriptor = descriptor
            return True
        os.close(descriptor)
    return False


def _records(
    tail: _Tail, operations: Sequence[TimedOperation], anchor: ClockAnchor, now_ns: int
) -> list[CollectiveRecord | GroupRecord]:
    """Operations as records, by the steps they ended in, and each communicator's sum over a step that is whole."""
    found: list[CollectiveRecord | GroupRecord] = []
    for each, ended_us in zip(operations, _ends(tail, operations), strict=True):
        ended_ns = anchor.to_monotonic_ns(int(ended_us * 1000), now_ns)
        duration_ns = each.duration_us * 1000
        step = step_at(tail.steps, ended_ns)
        if step is None:
            continue
        # The moment of enqueueing is part of a row's key, and the library writes many at once.
        enqueued_ns = tail.last_ns = max(ended_ns - duration_ns, tail.last_ns + 1)
        name = f"{each.name} {each.communicator}".strip()
        pair = each.peer is not None
        found.append(
            CollectiveRecord(
                step=step,
                sequence=None if pair else each.sequence,
                enqueued_ns=enqueued_ns,
                started_ns=ended_ns - duration_ns,
                ended_ns=ended_ns,
                wait_ns=None,
                size_bytes=each.size_bytes,
                peer=each.peer if each.size == tail.rank.identity.world_size else None,
                on_device=TIMED,
                group_kind=GroupKind.UNKNOWN,
                operation=each.operation,
                group=name,
            )
        )
        if (sum_up := _add(tail, name, step, each.size, duration_ns)) is not None:
            found.append(sum_up)
    return found


def _ends(tail: _Tail, operations: Sequence[TimedOperation]) -> list[float]:
    """When each ended, us: as enqueued where that is told, else spread evenly over the time since the last dump."""
    ends: list[float] = []
    place = 0
    while place < len(operations):
        first = operations[place]
        end = place
        while (
            end < len(operations)
            and operations[end].communicator == first.communicator
            and operations[end].written_us - first.written_us <= _DUMP_US
        ):
            end += 1
        batch = operations[place:end]
        written = batch[-1].written_us
        since = tail.written.get(first.communicator, written)
        tail.written[first.communicator] = written
        for number, each in enumerate(batch, 1):
            spread = since + (written - since) * number / len(batch)
            ends.append(spread if each.enqueued_us is None else min(written, each.enqueued_us + each.duration_us))
        place = end
    return ends


def step_at(steps: deque[tuple[int, int]], moment_ns: int) -> int | None:
    """The step that was under way; None before the first that is known."""
    if not steps:
        return None
    place = bisect_left(steps, (moment_ns, -1))
    return steps[place][1] if place < len(steps) else steps[-1][1] + 1


def _add(tail: _Tail, name: str, step: int, size: int, duration_ns: int) -> GroupRecord | None:
    """Add to a communicator's sum; returns that of the step before where this one begins the next."""
    sums = tail.sums.get(name)
    done = None
    if sums is None or sums.step != step:
        if sums is not None and sums.whole:
            head = (sums.step, sums.size, sums.count, None, None, TIMED, name, int(GroupKind.UNKNOWN))
            exposed_ns = tail.exposed.get(sums.step) if len(tail.sums) == 1 else None
            # Where there is one communicator, all that the compute stream did not wait for was hidden.
            overlap_ns = None if exposed_ns is None else max(0, sums.spent_ns - exposed_ns)
            done = GroupRecord(*head, sums.spent_ns, overlap_ns)
        # The first one after a gap began before it.
        sums = tail.sums[name] = _Sum(step, size, whole=sums is not None)
    sums.count += 1
    sums.spent_ns += duration_ns
    return done
