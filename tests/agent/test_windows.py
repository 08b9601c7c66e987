"""The agent's side of profiler windows: whom it asks, how often, and what becomes of the traces."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankscope.agent.config import WindowSettings
from rankscope.agent.windows import WindowWatch
from rankscope.control import Command, ControlReader
from rankscope.profiler_window import EXPECTED_NS, SHARE, window_path
from rankscope.reading import Event
from rankscope.simulator.traces import TraceJob, TracePlan

SECOND = 1_000_000_000


class Clock:
    """A clock that the test sets."""

    now = 0

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return self.now


class Ranks:
    """Ranks as the watch sees them, with real control files."""

    def __init__(self, folder: Path, count: int, world: int | None = None) -> None:
        self.rings = [folder / f"{number}.ring" for number in range(count)]
        self.controls = [ControlReader(ring) for ring in self.rings]
        self.all: list[Any] = [
            SimpleNamespace(
                identity=SimpleNamespace(rank=number, world_size=world or count),
                reader=SimpleNamespace(path=ring),
                gone=False,
                said_goodbye=False,
                failed=False,
            )
            for number, ring in enumerate(self.rings)
        ]

    def asked(self) -> list[int]:
        """Ranks that got an order since the last call."""
        return [number for number, control in enumerate(self.controls) if control.poll() is Command.WINDOW]


def until(watch: WindowWatch, ranks: Ranks, done: Callable[[list[Event]], bool]) -> list[Event]:
    """Check until something is so; a child needs real time."""
    events: list[Event] = []
    deadline = time.monotonic() + 60
    while not done(events) and time.monotonic() < deadline:
        events += watch.check(ranks.all)
        time.sleep(0.02)
    return events


def test_without_a_period_nobody_is_asked(tmp_path: Path) -> None:
    """Windows are off unless the configuration asks for them."""
    clock, ranks = Clock(), Ranks(tmp_path, 2)
    watch = WindowWatch(WindowSettings(), clock)
    for _ in range(5):
        clock.now += 10_000 * SECOND
        assert watch.check(ranks.all) == []
    assert ranks.asked() == []


def test_one_rank_after_the_other_and_the_slow_one_first(tmp_path: Path) -> None:
    """Orders go round, at the period; a rank that was slow is next out of turn, and no other is asked meanwhile."""
    clock, ranks = Clock(), Ranks(tmp_path, 3)
    watch = WindowWatch(WindowSettings(period_seconds=100), clock)
    order = []
    for turn in range(6):
        if turn == 4:
            watch.suspect(2)
        for _ in range(11):
            clock.now += 10 * SECOND
            watch.check(ranks.all)
        asked = ranks.asked()
        assert len(asked) <= 1
        order += asked
        # No trace came: the order is forgotten after ten minutes.
        clock.now += 700 * SECOND
        watch.check(ranks.all)
        order += ranks.asked()
    assert order[:4] == [0, 1, 2, 0]
    assert order.count(2) >= 3


@pytest.mark.parametrize(("cost_ms", "world"), [(None, 2), (50, 2), (50, 16), (3_000, 2)])
def test_all_ranks_together_stay_within_the_share(tmp_path: Path, cost_ms: float | None, world: int) -> None:
    """Windows of all hosts together cost at most 0.2 % of the job's time, whatever the period asks for."""
    clock, ranks = Clock(), Ranks(tmp_path, 2, world)
    watch = WindowWatch(WindowSettings(period_seconds=1), clock)
    cost_ns = EXPECTED_NS if cost_ms is None else int(cost_ms * 1e6)
    if cost_ms is not None:
        watch.recorded(cost_ns)
    windows = 0
    for _ in range(20_000):
        clock.now += SECOND
        watch.check(ranks.all)
        asked = ranks.asked()
        windows += len(asked)
        if asked:
            # Its rank had nothing to leave; the next order does not wait for it.
            ranks.all[asked[0]].gone = True
            watch.check(ranks.all)
            ranks.all[asked[0]].gone = False
    hosts = world // 2
    spent = windows * cost_ns * hosts
    assert 0.5 * SHARE * clock.now < spent <= 1.01 * SHARE * clock.now


def test_a_trace_becomes_an_event_and_goes(tmp_path: Path) -> None:
    """What a rank left is read by a child, said in a line with its figures, and taken away."""
    clock, ranks = Clock(), Ranks(tmp_path, 2)
    watch = WindowWatch(WindowSettings(period_seconds=1), clock)
    path = window_path(ranks.rings[1], 1)
    path.write_text(json.dumps(TraceJob(TracePlan(ranks=2, slow="host", culprit=1)).traces()[1]))
    (event,) = until(watch, ranks, bool)
    assert (event.kind, event.rank) == ("kernel-stalls", 1)
    assert event.text.startswith("rank 1, steps 10 to 14: host-bound")
    assert event.attributes["stall_host_doing"] == "aten::item"
    assert not path.exists()


def test_nonsense_is_said_and_taken_away(tmp_path: Path) -> None:
    """A file that is no trace costs a line; a link is not followed."""
    clock, ranks = Clock(), Ranks(tmp_path, 2)
    watch = WindowWatch(WindowSettings(period_seconds=1), clock)
    path = window_path(ranks.rings[0], 0)
    path.write_text("hello")
    (event,) = until(watch, ranks, bool)
    assert "its reader ended with 2" in event.text
    assert not path.exists()
    secret = tmp_path / "secret"
    secret.write_text("{}")
    path.symlink_to(secret)
    (event, *_) = watch.check(ranks.all)
    assert "window of rank 0" in event.text
    assert secret.read_text() == "{}"
    assert not path.is_symlink()
    watch.close()
