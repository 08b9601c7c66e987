"""Sending what waits in the outbox: one signal's order, state and back-off, without a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from rankscope.clock import Clock
from rankscope.exporters.otlp_settings import Target
from rankscope.exporters.otlp_transport import Reply, Result, Transport
from rankscope.exporters.outbox import DAMAGED, Outbox

_SECOND_NS = 1_000_000_000


class DeliveryState(StrEnum):
    """How it stands between us and one receiver."""

    UNTRIED = "untried"
    DELIVERING = "delivering"
    #: Delivered, but the receiver did not take every point.
    PARTIAL = "partial"
    #: The receiver cannot be reached or asks to wait; batches wait.
    WAITING = "waiting"
    #: The receiver refuses batches for good; each is dropped and said.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """One signal's delivery: `since_ns` is when the state began (CLOCK_MONOTONIC), `detail` the last trouble."""

    target: str
    state: DeliveryState
    since_ns: int
    detail: str = ""
    attempts: int = 0
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts: doubling from `first_s` to `most_s`, each between half and all of it by chance.

    A receiver's own Retry-After goes before, up to `longest_s`, and is lengthened by up to a tenth so that the agents
    of a fleet do not come back at one moment.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    longest_s: float = 3600.0

    def delay_ns(self, failures: int, retry_after_s: float | None, uniform: Callable[[float, float], float]) -> int:
        """How long to wait after the `failures`-th failure in a row (from 1)."""
        if retry_after_s is not None:
            seconds = min(retry_after_s, self.longest_s) * uniform(1.0, 1.1)
        else:
            seconds = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30)) * uniform(0.5, 1.0)
        return int(seconds * _SECOND_NS)


class SignalSender:
    """Sends one signal's batches in order. `step` does at most one attempt."""

    def __init__(
        self,
        outbox: Outbox,
        target: Target,
        open_transport: Callable[[Target, Clock], Transport],
        *,
        clock: Clock,
        uniform: Callable[[float, float], float],
        say: Callable[[str], None],
        backoff: Backoff,
    ) -> None:
        self._outbox = outbox
        self._target = target
        self._open_transport = open_transport
        self._clock = clock
        self._uniform = uniform
        self._say = say
        self._backoff = backoff
        self._transport: Transport | None = None
        self._failures = 0
        self._due_ns = 0
        #: Whether the receiver itself said when to come back.
        self._told = False
        #: Replaced as a whole, so that any thread may read it.
        self.status = DeliveryStatus(target.name, DeliveryState.UNTRIED, clock.monotonic_ns())

    @property
    def signal(self) -> str:
        """What it sends."""
        return self._target.signal

    def step(self, *, now: bool = False) -> int | None:
        """Send the oldest batch if its time has come; `now` cuts our own back-off short, not what a receiver asked for.

        Returns the ns to wait before the next step, 0 to go on at once, None where nothing waits.
        """
        wait_ns = self._due_ns - self._clock.monotonic_ns()
        if wait_ns > 0 and (self._told or not now):
            return wait_ns
        batch = self._outbox.oldest(self._target.signal)
        if batch is None:
            return None
        if not batch.whole:
            # No attempt: it says nothing of the receiver.
            self._outbox.drop(batch.id, DAMAGED)
            return 0
        if self._transport is None:
            self._transport = self._open_transport(self._target, self._clock)
        reply = self._transport.send(batch)
        if reply.result is Result.DELIVERED:
            self._outbox.acknowledge(batch.id, reply.rejected, reply.reason)
        elif reply.result is Result.REFUSED:
            self._outbox.drop(batch.id, reply.reason)
        self._note(reply)
        if reply.result is Result.DELIVERED:
            self._failures = 0
            return 0
        # Also after a refusal: a receiver that is set up wrongly for a minute must not eat hours that wait.
        self._failures += 1
        self._told = reply.retry_after_s is not None
        delay_ns = self._backoff.delay_ns(self._failures, reply.retry_after_s, self._uniform)
        self._due_ns = self._clock.monotonic_ns() + delay_ns
        return delay_ns

    def _note(self, reply: Reply) -> None:
        if reply.result is Result.DELIVERED:
            state = DeliveryState.PARTIAL if reply.rejected else DeliveryState.DELIVERING
        else:
            state = DeliveryState.WAITING if reply.result is Result.RETRY else DeliveryState.REFUSED
        before = self.status
        self.status = replace(
            before,
            state=state,
            detail=reply.detail,
            attempts=before.attempts + 1,
            delivered=before.delivered + (reply.result is Result.DELIVERED),
        )
        if state is not before.state:
            self.status = replace(self.status, since_ns=self._clock.monotonic_ns())
            if line := _line(before.state, state, reply):
                self._say(f"rankscope: export to {self._target.name}: {line}")

    def abort(self) -> None:
        """Make a step under way return soon. For another thread."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Give the connection back."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None


def _line(before: DeliveryState, state: DeliveryState, reply: Reply) -> str:
    """What to say about a change of state; "" where it is nothing to speak of."""
    if state is DeliveryState.WAITING:
        return f"not delivered ({reply.detail}); data is kept and sent when the receiver takes it"
    if state is DeliveryState.REFUSED:
        return (
            f"refused ({reply.detail}); what it refuses is dropped and counted; check the endpoint and its credentials"
        )
    if state is DeliveryState.PARTIAL:
        why = reply.detail or "it does not say why"
        return f"{reply.rejected} points rejected ({why}); what it rejects is dropped and counted"
    return "" if before is DeliveryState.UNTRIED else "takes data again"
