"""A receiver that takes nothing for an hour, then is back: on a clock that the test moves, with an outbox in a file."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from components import free_port
from scripted_receiver import Answer, http_receiver

from rankscope.exporters.otlp_exporter import connect
from rankscope.exporters.otlp_send import Backoff, SignalSender
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.otlp_transport import open_transport
from rankscope.exporters.outbox import Outbox, Signal
from rankscope.testing import FakeClock

SECOND = 10**9
#: How the receiver is away; None: nobody listens there.
AWAY: dict[str, Answer | None] = {
    "gone": None,
    "unavailable": Answer(503),
    "busy": Answer(429, headers={"Retry-After": "30"}),
    "resets": Answer(0),
}
#: The agent's own period between batches, and the points of each.
PERIOD_S, POINTS = 15, 10


class Node:
    """What an agent adds and sends on one recording file, an agent after the other, in time that passes at once."""

    def __init__(self, path: Path, port: int) -> None:
        self._path = path
        self._target = otlp_targets({}, endpoint=f"http://127.0.0.1:{port}")[Signal.METRICS]
        self.clock = FakeClock()
        self._due_ns = self.clock.monotonic_ns()
        self.produced: list[bytes] = []
        self.lines: list[str] = []
        #: When nothing waited for the first time.
        self.emptied_ns: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._connection = connect(self._path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._outbox = Outbox(self._connection)
        self.sender = SignalSender(
            self._outbox,
            self._target,
            open_transport,
            clock=self.clock,
            uniform=lambda low, high: high,
            say=self.lines.append,
            backoff=Backoff(),
        )

    def take_over(self) -> None:
        """The agent dies, and another goes on: it has the file, and nothing else."""
        self.close()
        self._begin()

    def close(self) -> None:
        """The agent is gone."""
        self.sender.close()
        self._connection.close()

    def run(self, seconds: int) -> None:
        """A batch a period, sent as the receiver allows."""
        end_ns = self.clock.monotonic_ns() + seconds * SECOND
        while (now := self.clock.monotonic_ns()) < end_ns:
            if now >= self._due_ns:
                self._due_ns += PERIOD_S * SECOND
                self.produced.append(b"batch %d" % len(self.produced))
                self._outbox.add("metrics", self.produced[-1], POINTS, self.clock.wall_ns())
            wait_ns = self.sender.step()
            if wait_ns is None and self.emptied_ns is None:
                self.emptied_ns = now
            due = self._due_ns if wait_ns is None else min(self._due_ns, now + wait_ns)
            self.clock.advance(max(0, min(due, end_ns) - now))

    def account(self) -> tuple[int, int, int]:
        """Batches that were delivered, that wait, and that were dropped; they are all that was produced."""
        balance = self._outbox.balance()
        assert balance.holds
        assert balance.produced.points == POINTS * len(self.produced)
        return balance.acknowledged.batches, balance.waiting.batches, balance.dropped.batches


@pytest.mark.parametrize("away", AWAY)
def test_an_hour_without_a_receiver_costs_no_batch(tmp_path: Path, away: str) -> None:
    """All that an hour produced waits, though its agent dies in the middle, and is offered some hundred times; the
    receiver that is back has everything within its sender's longest pause, in order and once."""
    port = free_port()
    how = AWAY[away]
    with ExitStack() as running:
        receiver = None
        if how is not None:
            receiver = running.enter_context(http_receiver(port))
            receiver.otherwise = how
        node = Node(tmp_path / "a.db", port)
        running.callback(node.close)
        node.run(1800)
        attempts = node.sender.status.attempts
        node.take_over()
        node.run(1800)
        attempts += node.sender.status.attempts
        assert node.account() == (0, 3600 // PERIOD_S, 0)
        # Once a minute, or as a Retry-After of half of one says; an agent's first minute holds six more.
        assert 3600 / 60 <= attempts <= 3600 / 30 + 2 * 6
        assert receiver is None or len(receiver.requests) == attempts
        assert ["data is kept" in line for line in node.lines] == [True, True]

        back_ns = node.clock.monotonic_ns()
        if receiver is None:
            receiver = running.enter_context(http_receiver(port))
        receiver.otherwise = Answer()
        receiver.requests.clear()
        node.run(120)
        assert [request.body for request in receiver.requests] == node.produced
        assert node.account() == (len(node.produced), 0, 0)
        assert node.emptied_ns is not None
        assert node.emptied_ns - back_ns <= 60 * SECOND
        assert ["takes data again" in line for line in node.lines] == [False, False, True]
