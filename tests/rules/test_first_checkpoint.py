"""A long checkpoint is told when the first one has come, and a checkpoint that is none is left alone."""

from __future__ import annotations

import pytest
from synthetic_job import Job

from rankscope.finding import Finding, Overhead
from rankscope.rules import judge


def saved(*places: int, ms: float = 1_000.0, steps: int = 64, status: int | None = None) -> list[Finding]:
    """Findings of a job of 50 ms a step with a checkpoint at these steps."""
    job = Job(steps=steps, job_status=status)
    for place in places:
        job.checkpoint[:, place] = ms
    return [finding for finding in judge(job.window(), Overhead()).findings if finding.class_slug == "checkpoint-stall"]


def test_the_first_long_checkpoint_is_told_at_once() -> None:
    """Twenty steps' worth after sixty: a third of the run, told within three steps, priced by the steps before it."""
    (found,) = saved(60)
    assert found.side == "code"
    assert found.detected_step is not None
    assert found.detected_step <= 63
    assert found.impact.ms_per_step == pytest.approx(1_000 / 60, rel=0.25)


def test_the_price_falls_while_it_does_not_come_back() -> None:
    """Three times as many steps later it costs a third, and after ten times nothing is told of it."""
    (late,) = saved(60, steps=240)
    assert late.impact.ms_per_step == pytest.approx(1_000 / 180, rel=0.25)
    assert not saved(60, steps=640)


@pytest.mark.parametrize(
    ("places", "more"),
    [((60,), {"ms": 60.0}), ((20,), {}), ((60,), {"status": 0}), ((), {})],
    ids=["cheap", "soon after the begin", "the last act of a run that is over", "none"],
)
def test_what_is_no_stall_is_left_alone(places: tuple[int, ...], more: dict) -> None:
    """A cheap one, one of which the period cannot be guessed, a run's last, and none."""
    assert not saved(*places, **more)


def test_once_it_has_come_back_its_period_is_known() -> None:
    """Every thirty steps: priced by that, over or not."""
    for status in (None, 0):
        (found,) = saved(30, 60, 90, steps=112, status=status)
        assert found.impact.ms_per_step == pytest.approx(1_000 / 30, rel=0.25)
