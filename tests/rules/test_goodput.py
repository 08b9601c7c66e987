"""Goodput: the parts add up to the wall time, and lost work is what came after the last checkpoint."""

from __future__ import annotations

from array import array

import pytest

from rankscope.clock import ClockAnchor
from rankscope.finding import Goodput
from rankscope.reading import Event
from rankscope.rules.goodput import goodput
from rankscope.window import Attempt, Columns, Window

S = 1_000_000_000
PARTS = (
    "productive_seconds",
    "start_seconds",
    "warm_up_seconds",
    "checkpoint_seconds",
    "evaluation_seconds",
    "rollback_seconds",
    "requeue_seconds",
    "stalled_seconds",
)


def attempt(
    number: int, begin: float, steps: int, *, until: float, first: float = 5.0, step: float = 1.0, save_every: int = 0
) -> Attempt:
    """An attempt whose ranks attach at `begin` s and step from 2 s later; its first step takes `first` s."""
    rows = []
    at = begin + 2
    for index in range(steps):
        saving = 3.0 if save_every and index % save_every == save_every - 1 else 0.0
        took = (first if index == 0 else step) + saving
        rows.append((index, at * S, (at + took) * S, saving * S, 0.0))
        at += took
    names = ("step", "start_ns", "end_ns", "checkpoint_ns", "evaluation_ns")
    columns = {name: array("d", [row[place] for row in rows]) for place, name in enumerate(names)}
    return Attempt(number, 0, int(begin * S), int(until * S), 4, frozenset({("", 100 + number)}), Columns(columns))


def window(attempts: list[Attempt], end: float, status: int | None = 0, events: tuple[Event, ...] = ()) -> Window:
    """A window of attempts that begins at 0."""
    return Window("job", {}, {}, events, {"a": ClockAnchor(0, 0)}, 0, int(end * S), 4, (), status, {}, attempts)


def told(of: Window) -> Goodput:
    """Goodput whose parts were checked to add up."""
    found = goodput(of)
    assert found is not None
    parts = [getattr(found, name) for name in PARTS]
    assert all(part is None or part >= 0 for part in parts)
    assert sum(part or 0.0 for part in parts) == pytest.approx(found.wall_seconds)
    return found


def test_one_attempt() -> None:
    """Start, warm-up, steps, and what comes after the last one."""
    found = told(window([attempt(0, 10, 40, until=60)], 60))
    assert found.start_seconds == pytest.approx(12)
    assert found.warm_up_seconds == pytest.approx(4)
    assert found.productive_seconds == pytest.approx(40)
    assert found.stalled_seconds == pytest.approx(4)
    assert found.ratio == pytest.approx(40 / 60)


def test_rollback_and_requeue() -> None:
    """Steps after the last checkpoint of a failed attempt are lost, and so is the time until the next one."""
    death = Event("rank-exception", 60 * S, "rank 2 ended with KeyError: 'x'", rank=2, attributes={"pid": 100})
    first, second = attempt(0, 0, 40, until=70, save_every=16), attempt(1, 90, 40, until=140, save_every=16)
    found = told(window([first, second], 141, events=(death,)))
    # Checkpoints after steps 16 and 32: eight steps are lost.
    assert found.rollback_seconds == pytest.approx(8)
    assert found.requeue_seconds == pytest.approx(20)
    assert found.checkpoint_seconds == pytest.approx(12)
    assert [each.root_rank for each in found.attempts] == [2, None]
    assert "KeyError" in found.attempts[0].ended


def test_no_checkpoint_seen() -> None:
    """Without a checkpoint nobody knows what was lost: it is null, not zero."""
    found = told(window([attempt(0, 0, 30, until=40), attempt(1, 50, 30, until=90)], 90))
    assert found.rollback_seconds is None
    assert found.attempts[0].lost_seconds is None


def test_last_attempt_failed() -> None:
    """A job that dies loses what its last attempt did after its last checkpoint."""
    found = told(window([attempt(0, 0, 20, until=40, save_every=16)], 40, status=1))
    assert found.rollback_seconds == pytest.approx(4)
    assert told(window([attempt(0, 0, 20, until=40, save_every=16)], 40, status=0)).rollback_seconds == 0


def test_overlapping_and_empty_attempts() -> None:
    """A rank that attaches before the attempt before has ended, and an attempt without a step."""
    empty = attempt(1, 38, 0, until=45)
    told(window([attempt(0, 0, 30, until=40), empty, attempt(2, 60, 30, until=99)], 99))
    assert goodput(window([empty], 60)) is None
    assert goodput(window([], 60)) is None


def test_thinned_steps() -> None:
    """Steps that were thinned away count by the time between their neighbours."""
    whole = attempt(0, 0, 40, until=50)
    kept = [place for place in range(40) if place < 12 or place % 4 == 0]
    whole.steps = Columns(
        {name: array("d", [column[place] for place in kept]) for name, column in whole.steps.columns.items()}
    )
    found = told(window([whole], 50))
    assert found.productive_seconds == pytest.approx(40, abs=4)


def test_stopped_by_a_signal() -> None:
    """A job that a scheduler ended says so; where a rank had failed by itself before, that is the reason."""
    ended = Event("job-signalled", 50 * S, "SIGTERM from slurmstepd 7 was passed on to the job")
    found = told(window([attempt(0, 0, 40, until=60)], 60, status=143, events=(ended,)))
    assert found.attempts[0].ended.startswith("stopped: SIGTERM from slurmstepd")
    death = Event("rank-exception", 45 * S, "rank 2 ended with KeyError: 'x'", rank=2, attributes={"pid": 100})
    found = told(window([attempt(0, 0, 40, until=60)], 60, status=143, events=(death, ended)))
    assert "KeyError" in found.attempts[0].ended


def test_two_launches_by_one_command() -> None:
    """A command that launches a job twice has two attempts of one number: the first did not fail for that."""
    first, second = attempt(0, 0, 20, until=30, save_every=16), attempt(0, 40, 20, until=70, save_every=16)
    second.generation, second.processes = 1, frozenset({("", 200)})
    found = told(window([first, second], 70))
    assert found.rollback_seconds == 0
    assert [each.ended for each in found.attempts] == ["still running or ended well"] * 2
