"""Flight recorders of ranks that run, asked for now and then: when each host enqueued its latest collectives.

A rank answers by a thread of torch's own; what it costs it is a copy of the recorder's entries under its lock, some ms
for a full one of 2,000. So it is asked once when the job has come into its stride, then every ten minutes, and where a
step was slow.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from rankscope.agent.hang import flight_path
from rankscope.agent.inspector_watch import step_at
from rankscope.agent.rank_state import StateTaker
from rankscope.agent.ranks import Rank
from rankscope.clock import Clock, ClockAnchor
from rankscope.records import CollectiveRecord, GroupKind, StepRecord
from rankscope.rules.flight import DumpError, parse_dump
from rankscope.rules.flight_lateness import synchronising
from rankscope.torch_hooks.groups import ranges

#: Steps of a rank before it is asked first: warm-up is no measure, and all hosts begin at the same step.
FIRST_STEPS = 40
PERIOD_NS = 600 * 10**9
#: After one answer no slow step asks again for this long.
PAUSE_NS = 300 * 10**9
_STEPS = 512
_MAX_TEXT = 200


class FlightWatch:
    """The flight recorders of one job's ranks on this host."""

    def __init__(
        self, clock: Clock, *, anchor: Callable[[], ClockAnchor] | None = None, taker: StateTaker | None = None
    ) -> None:
        """`anchor` turns the wall clock that torch dates by into ours; None: as both stand at each look."""
        self._clock = clock
        self._anchor = anchor or partial(ClockAnchor.take, clock)
        self._taker = taker or StateTaker()
        self._steps: dict[int, deque[tuple[int, int]]] = {}
        #: Ranks that were asked and have not answered yet, by row.
        self._ranks: dict[int, Rank] = {}
        self._asked_ns: int | None = None
        self._slow = False

    def heard(self, rank_row: int, record: StepRecord) -> None:
        """A rank ended a step."""
        self._steps.setdefault(rank_row, deque(maxlen=_STEPS)).append((record.end_ns, record.step))

    def slow(self) -> None:
        """A step was slow: who enqueued last in it?"""
        self._slow = True

    def check(self, ranks: Sequence[Rank]) -> list[tuple[Rank, list[CollectiveRecord]]]:
        """Ask where it is time to; what was answered since the last call, by rank. Never waits."""
        now = self._clock.monotonic_ns()
        live = [rank for rank in ranks if rank.tells_flight and not (rank.gone or rank.said_goodbye or rank.failed)]
        if live and self._due(live, now):
            self._asked_ns, self._slow = now, False
            for rank in live:
                self._ranks[rank.row] = rank
                self._taker.take(rank.row, rank.identity.pid, flight_path(rank))
        answers = [(self._ranks.pop(state.row), state.flight) for state in self._taker.done()]
        told = [(rank, records) for rank, flight in answers if (records := self._records(rank, flight))]
        # A job that restarts for days has as many ranks that are gone.
        kept = {rank.row for rank in ranks if not rank.gone} | self._ranks.keys()
        if not kept.issuperset(self._steps):
            self._steps = {row: steps for row, steps in self._steps.items() if row in kept}
        return told

    def _due(self, live: Sequence[Rank], now: int) -> bool:
        if self._asked_ns is None:
            return all((rank.last_step or 0) >= FIRST_STEPS for rank in live)
        return now - self._asked_ns >= (PAUSE_NS if self._slow else PERIOD_NS)

    def _records(self, rank: Rank, flight: str) -> list[CollectiveRecord]:
        try:
            dump = parse_dump(json.loads(flight or "{}"), rank.identity.rank)
        except (ValueError, RecursionError, DumpError):
            return []
        anchor, now_ns = self._anchor(), self._clock.monotonic_ns()
        steps = self._steps.get(rank.row, deque())
        found: list[CollectiveRecord] = []
        last = 0
        for each in dump.operations:
            if each.created_ns is None or not synchronising(each):
                continue
            enqueued_ns = anchor.to_monotonic_ns(each.created_ns, now_ns)
            step = step_at(steps, enqueued_ns)
            if step is None or enqueued_ns <= steps[0][0]:
                # Before the steps that are known.
                continue
            last = max(enqueued_ns, last + 1)
            name = each.group.name + (f" [{ranges(list(each.group.ranks))}]" if each.group.ranks else "")
            kind = int(GroupKind.UNKNOWN)
            found.append(
                CollectiveRecord(
                    step, each.sequence, last, None, None, None, None, None, 0, kind, each.name, name[:_MAX_TEXT]
                )
            )
        return found
