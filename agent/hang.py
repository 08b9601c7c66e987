"""Hangs: ranks that make no progress for far longer than their own past explains, and the stacks they hang in."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rankscope.agent.config import HangSettings
from rankscope.agent.rank_state import RankState, StateTaker, find_pyspy, wait_channel
from rankscope.agent.ranks import Rank
from rankscope.clock import Clock
from rankscope.reading import Event, Severity
from rankscope.records import Phase

#: A step this many times the 99th percentile of its rank's own is no longer a slow step.
_USUAL_FACTOR = 10
#: A checkpoint or an evaluation may take this many times the longest so far.
_LONG_FACTOR = 5
#: Phases in which a rank of a running job works or waits for peers; in the others a job loads, saves or ends.
_IN_STEP = frozenset({Phase.DATA_WAIT, Phase.FORWARD, Phase.BACKWARD, Phase.COLLECTIVE_WAIT, Phase.OPTIMIZER})
_LONG = frozenset({Phase.CHECKPOINT, Phase.EVALUATION})
_STACKS_BYTES = 64 * 1024
_ANSWER_NS = 3_000_000_000


@dataclass(slots=True)
class _Asked:
    rank: Rank
    offset: int
    deadline_ns: int
    size: int


class HangWatch:
    """Looks at all ranks of a job together: one that is late makes all others wait."""

    def __init__(self, settings: HangSettings, clock: Clock, *, states: StateTaker | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._states = states or StateTaker(pyspy=find_pyspy() if settings.pyspy else None)
        #: Ranks whose state was asked for and has not come yet.
        self._by_row: dict[int, Rank] = {}
        #: Progress of each hung rank when it was reported, so that a hang is told once and again after it moved.
        self._told: dict[int, int] = {}
        self._asked: list[_Asked] = []

    def check(self, ranks: Iterable[Rank]) -> list[Event]:
        """Events of ranks that hang since the last call, and the stacks that came in."""
        events = self._collect()
        now = self._clock.monotonic_ns()
        live = [rank for rank in ranks if not (rank.gone or rank.said_goodbye or rank.failed)]
        self._told = {rank.row: _updates(rank) for rank in live if self._told.get(rank.row) == _updates(rank)}
        waited = {rank.row: now - _since(rank, now) for rank in live}
        limits = {rank.row: self._limit_ns(rank, live) for rank in live}
        # Peers of a rank that may take its time (first checkpoint, evaluation) wait for it in good order.
        if any(_phase(rank) in _LONG and waited[rank.row] < limits[rank.row] for rank in live):
            return events
        hung = [rank for rank in live if waited[rank.row] >= limits[rank.row]]
        if not any(rank.row not in self._told for rank in hung):
            return events
        # Whoever stands still beside them belongs to the same hang, only a little later.
        half = min(limits[rank.row] for rank in hung) // 2
        still = [rank for rank in live if waited[rank.row] >= half and rank.row not in self._told]
        for rank in still:
            self._told[rank.row] = _updates(rank)
            events.append(_hung(rank, now, waited[rank.row]))
        for rank in live:
            self._by_row[rank.row] = rank
            self._states.take(rank.row, rank.identity.pid, flight_path(rank))
            if self._states.pyspy is None:
                events += self._ask(rank, now)
        return events

    def _limit_ns(self, rank: Rank, live: list[Rank]) -> int:
        floor, start = (int(value * 1e9) for value in (self._settings.floor_seconds, self._settings.start_seconds))
        usual = rank.usual_step_ns()
        phase = _phase(rank)
        if phase in _LONG and usual is not None:
            return max(_LONG_FACTOR * rank.longest_ns[phase], floor) if phase in rank.longest_ns else max(start, floor)
        waits = any(_phase(peer) in _IN_STEP for peer in live)
        if usual is None or not waits:
            return max(start, floor)
        return max(floor, _USUAL_FACTOR * usual)

    def _ask(self, rank: Rank, now: int) -> list[Event]:
        """Have a rank write its stacks, only by the signal it announced."""
        number = getattr(signal, rank.stack_signal, None) if rank.stack_signal else None
        found = rank.handle.stat()
        if found is None or any(asked.rank is rank for asked in self._asked):
            return []
        if number is None or self._settings.stack_signal == "":
            return [_no_stacks(rank, now, "it has no signal for that")]
        if found.state in "Tt":
            return [_no_stacks(rank, now, f"it is stopped (state {found.state})")]
        offset = _size(rank.stacks_path)
        if not rank.handle.send(number):
            return [_no_stacks(rank, now, "it could not be signalled")]
        self._asked.append(_Asked(rank, offset, now + _ANSWER_NS, offset))
        return []

    def _collect(self) -> list[Event]:
        events: list[Event] = []
        now = self._clock.monotonic_ns()
        for state in self._states.done():
            events += self._told_by(self._by_row.pop(state.row), state, now)
        for asked in list(self._asked):
            size = _size(asked.rank.stacks_path)
            if size > asked.offset and size == asked.size:
                # It grew and no longer grows: the dump is whole.
                text = _tail(asked.rank.stacks_path, asked.offset)
                number = asked.rank.identity.rank
                event = Event("rank-stacks", now, text, rank=number, attributes={"source": asked.rank.stack_signal})
                events.append(event)
                self._asked.remove(asked)
            elif now > asked.deadline_ns or asked.rank.gone:
                how = found.state if (found := asked.rank.handle.stat()) is not None else "gone"
                events.append(_no_stacks(asked.rank, now, f"it did not answer (state {how})"))
                self._asked.remove(asked)
            asked.size = size
        return events

    def _told_by(self, rank: Rank, state: RankState, now: int) -> list[Event]:
        """What one rank answered; where py-spy may not look at it, its own fault handler is asked."""
        number = rank.identity.rank
        attributes: dict[str, str | int | float | None] = {"pid": rank.identity.pid}
        events = []
        if state.flight:
            events.append(Event("rank-flight", now, state.flight, rank=number, attributes=attributes))
        elif rank.tells_flight:
            text = f"no flight recorder of rank {number}: {state.flight_unseen}"
            events.append(Event("rank-flight", now, text, Severity.WARNING, rank=number, attributes={"source": "none"}))
        if state.stacks:
            events.append(Event("rank-stacks", now, state.stacks, rank=number, attributes={"source": "py-spy"}))
        elif self._states.pyspy is not None:
            events += self._ask(rank, now)
        return events

    @property
    def waiting(self) -> bool:
        """Whether stacks were asked for that have not come."""
        return bool(self._asked) or self._states.waiting


def _phase(rank: Rank) -> Phase:
    return Phase.NONE if rank.status is None else rank.status.phase


def _updates(rank: Rank) -> int:
    return 0 if rank.status is None else rank.status.updates


def _since(rank: Rank, now: int) -> int:
    return rank.attached_ns if rank.status is None else min(rank.status.since_ns, now)


def _hung(rank: Rank, now: int, waited_ns: int) -> Event:
    found = rank.handle.stat()
    state = found.state if found is not None else "gone"
    step = rank.last_step if rank.status is None else rank.status.step
    phase, number = _phase(rank).name.lower(), rank.identity.rank
    channel = wait_channel(rank.identity.pid)
    where = f"process state {state}" + (f", waits in {channel}" if channel else "")
    return Event(
        "rank-hung",
        now,
        f"rank {number} has been in {phase} of step {step} for {waited_ns / 1e9:.1f} s ({where})",
        Severity.CRITICAL,
        device=rank.identity.gpu_uuid or "",
        rank=number,
        attributes={
            "step": step,
            "phase": phase,
            "since_ns": now - waited_ns,
            "state": state,
            "wait_channel": channel or None,
            "waited_ns": waited_ns,
            "pid": rank.identity.pid,
        },
    )


def flight_path(rank: Rank) -> Path | None:
    """Where a rank answers for its flight recorder, if it said that it does."""
    return rank.reader.path.with_name(f"{rank.identity.pid}.flight") if rank.tells_flight else None


def _no_stacks(rank: Rank, now: int, why: str) -> Event:
    number = rank.identity.rank
    text = f"no stacks of rank {number}: {why}"
    return Event("rank-stacks", now, text, Severity.WARNING, rank=number, attributes={"source": "none"})


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _tail(path: Path, offset: int) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return f"stacks could not be read ({error.strerror})"
    try:
        return os.pread(descriptor, _STACKS_BYTES, offset).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
