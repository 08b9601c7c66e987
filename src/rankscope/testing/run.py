"""Probes run by the agent's own scheduler, an hour of it within seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rankscope.agent.scheduler import Scheduler
from rankscope.reading import Event, Outcome, Probe, Reading
from rankscope.testing.clock import FakeClock

_SECOND_NS = 1_000_000_000
#: A read that has not come back by then hangs, and simulated time goes on without it, real seconds.
_PATIENCE_SECONDS = 0.5
#: While one hangs, the others still get so long, on a busy machine too.
_IMPATIENCE_SECONDS = 0.05


@dataclass(slots=True)
class Said:
    """All that the probes said, and how often each was read."""

    readings: list[Reading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    #: (probe, group, device, outcome, reason), each where it changed.
    outcomes: list[tuple[str, str, str, Outcome, str]] = field(default_factory=list)
    #: "probe/group" -> reads that came back.
    reads: dict[str, int] = field(default_factory=dict)

    def values(self, metric: str, device: str | None = None) -> list[float]:
        """Values of a metric in order, of one device or of all."""
        return [r.value for r in self.readings if r.metric == metric and device in (None, r.device)]

    def kinds(self) -> list[str]:
        """Kinds of the events in order."""
        return [event.kind for event in self.events]


def run_probes(
    probes: Sequence[Probe],
    seconds: float,
    *,
    clock: FakeClock | None = None,
    deadline_seconds: float = 2.0,
    each_round: Callable[[Scheduler], None] = lambda _scheduler: None,
) -> Said:
    """Read the probes as the agent would for so many seconds of simulated time, then close them.

    They are treated as probes that did not come with the agent: each in a thread of its own, results checked. A probe
    that uses time itself should take the same `clock`. `each_round` is called after each round, to burst or to act.
    """
    clock = clock or FakeClock()
    scheduler = Scheduler(
        probes,
        clock=clock,
        deadline_ns=int(deadline_seconds * _SECOND_NS),
        burst_ns=30 * _SECOND_NS,
        isolated=[probe.name for probe in probes],
    )
    said = Said()
    hanging = False
    end_ns = clock.monotonic_ns() + int(seconds * _SECOND_NS)
    while (now := clock.monotonic_ns()) < end_ns:
        # No further than a deadline at a time, so that a probe that hangs is noticed when it should be.
        step = min(scheduler.next_due_ns(), now + int(deadline_seconds * _SECOND_NS / 4), end_ns) - now
        clock.advance(max(1, step))
        hanging = not _round(scheduler, said, _IMPATIENCE_SECONDS if hanging else _PATIENCE_SECONDS)
        each_round(scheduler)
    tick = scheduler.close()
    said.readings += tick.readings
    said.reads = {watched.name: watched.reads for watched in scheduler.watched}
    return said


def _round(scheduler: Scheduler, said: Said, patience_seconds: float) -> bool:
    """Start what is due and take what came of it; returns whether every read came back."""
    settled = True
    for _ in range(2):
        tick = scheduler.tick()
        said.readings += tick.readings
        said.events += tick.events
        said.outcomes += tick.outcomes
        settled = scheduler.settle(patience_seconds)
    return settled
