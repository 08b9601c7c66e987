"""Healthy jobs stay healthy: the rate of false alarms over seeds, and windows too small to judge."""

from __future__ import annotations

import pytest
from synthetic_job import Job

from rankscope.finding import Overhead
from rankscope.rules import diagnose, judge


def healthy(seed: int) -> Job:
    """A healthy job: the seed also chooses its size, its step and how noisy its machine is."""
    return Job(
        ranks=(2, 4, 4, 8)[seed % 4],
        steps=(60, 120, 300)[seed % 3],
        seed=seed,
        step_ms=(30.0, 50.0, 100.0)[seed // 3 % 3],
        jitter=(0.01, 0.02, 0.04)[seed // 2 % 3],
        drift=(0.005, 0.02, 0.05)[seed // 5 % 3],
        device=seed % 2 == 0,
        nvml=seed % 7 != 0,
    )


def test_no_finding_in_200_healthy_jobs() -> None:
    """200 healthy jobs raise nothing at all: the 95 % upper bound of the false alarm rate is then 1.8 %."""
    alarms = {seed: found for seed in range(200) if (found := diagnose(healthy(seed).window()))}
    assert not alarms


@pytest.mark.verify
def test_false_alarm_rate_over_many_seeds() -> None:
    """Over 3,000 healthy jobs fewer than one in 300 raises anything, and none says hardware."""
    alarms = [found for seed in range(1000, 4000) if (found := diagnose(healthy(seed).window()))]
    assert len(alarms) <= 10, [[(each.class_slug, each.where.rank) for each in found] for found in alarms]
    assert not [each for found in alarms for each in found if each.side == "hardware"]


def test_healthy_verdict_says_what_was_judged() -> None:
    """The verdict is one word and one sentence with the numbers."""
    told = judge(Job().window(), Overhead())
    assert told.verdict == "healthy"
    assert "4 ranks" in told.summary
    assert not told.findings


def test_too_few_steps() -> None:
    """A dozen steps cannot be judged, and that is said rather than "healthy"."""
    told = judge(Job(steps=12).window(), Overhead())
    assert told.verdict == "unknown"
    assert "too few" in told.summary


def test_no_rank() -> None:
    """A window without ranks gives an answer, not an error."""
    window = Job().window()
    window.ranks = {}
    assert judge(window, Overhead()).verdict == "unknown"


def test_ranks_that_recorded_different_steps() -> None:
    """Ranks whose records begin and end at different steps are laid on one axis."""
    window = Job().slow_gpu(2, 1.4, 50).throttled(2, 50).window()
    for values in window.ranks[1].steps.columns.values():
        del values[:20], values[-7:]
    assert [each.where.rank for each in diagnose(window)] == [2]


def test_single_rank() -> None:
    """A job of one rank is judged by its own past alone."""
    assert not diagnose(Job(ranks=1).window())
    found = diagnose(Job(ranks=1).slow_gpu(0, 1.4, 50).throttled(0, 50).window())
    assert [each.class_slug for each in found] == ["gpu-thermal-slowdown"]


def test_sources_not_seen_travel_with_the_verdict() -> None:
    """What the agent could not read stands in the verdict."""
    line = "kernel log: permission denied"
    assert line in judge(Job(not_seen=(line, line)).window(), Overhead()).not_seen
