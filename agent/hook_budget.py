"""Holds the hooks to their share of the step: a rank whose hooks cost more is told to stop watching."""

from __future__ import annotations

from statistics import median

from rankscope.agent.ranks import Rank
from rankscope.clock import Clock
from rankscope.control import Command, send
from rankscope.errors import RingError
from rankscope.reading import Event, Severity

#: Steps judged: enough that a busy moment of the host does not decide.
JUDGED_STEPS = 128


class HookBudget:
    """`limit` is the share of a step (0.05 is 5 %) that the hooks may take, by the median over the latest steps."""

    def __init__(self, limit: float, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._told: set[int] = set()

    def check(self, ranks: list[Rank]) -> list[Event]:
        """Tell ranks over the limit to stop, once each; returns what was done."""
        events: list[Event] = []
        for rank in ranks:
            if rank.gone or rank.said_goodbye or rank.row in self._told or len(rank.hook_shares) < JUDGED_STEPS:
                continue
            share = median(rank.hook_shares)
            if share > self._limit:
                self._told.add(rank.row)
                events.append(self._stop(rank, share))
        return events

    def _stop(self, rank: Rank, share: float) -> Event:
        number, now = rank.identity.rank, self._clock.monotonic_ns()
        why = (
            f"the hooks of rank {number} took {100 * share:.1f} % of its steps, the limit is {100 * self._limit:.1f} %"
        )
        try:
            send(rank.reader.path, Command.DETACH)
        except RingError as error:
            return Event("governor", now, f"{why}; {error}", Severity.WARNING, rank=number)
        return Event("governor", now, f"{why}; it was told to stop watching", Severity.WARNING, rank=number)
