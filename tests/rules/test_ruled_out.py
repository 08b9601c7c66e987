"""What is not the cause and why, and what the choices cost, on made-up jobs whose cause is known."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_job import Job

from rankscope.finding import Overhead
from rankscope.rules import judge
from rankscope.rules.mitigation import choices
from rankscope.rules.ruled_out import ruled_out


def test_what_the_evidence_speaks_against_is_ruled_out() -> None:
    """A GPU slow with clean counters: loader, collector and checkpoint are excluded by what was looked for."""
    window = Job(steps=200).slow_gpu(2, 1.3, 80).window()
    gone, still_open = ruled_out(window)
    slugs = {each.class_slug for each in gone}
    assert {"gc-pause", "input-bound", "cpu-contention"} <= slugs
    assert all(each.log_odds <= -1.0 and each.probability < 0.02 and each.why for each in gone)
    titles = {each.title for each in gone}
    assert not titles & {title for title, _ in still_open}


def test_what_is_told_is_neither_ruled_out_nor_open() -> None:
    """Contention that the verdict names does not stand among what it is not."""
    window = Job(steps=200).contended(1, 25.0, 60).window()
    verdict = judge(window, Overhead())
    told = {finding.class_slug for finding in verdict.findings}
    gone, still_open = ruled_out(window)
    assert told
    assert not told & {each.class_slug for each in gone}
    assert len(gone) >= 3
    assert all(share < 1 for _, share in still_open)


def test_a_healthy_job_rules_nothing_out() -> None:
    """Nothing was suspected, so nothing was excluded."""
    assert ruled_out(Job(steps=200).window()) == ([], [])


def test_a_restart_costs_the_steps_since_the_last_checkpoint() -> None:
    """Steps that are repeated, times the ranks: after a checkpoint at step 150 only those behind it."""
    jobs = []
    for checkpoint in (None, 150):
        job = Job(steps=200, device=False).slow_gpu(2, 1.3, 80)
        if checkpoint is not None:
            job.checkpoint[:, checkpoint] = 30.0
        jobs.append(job.window())
    costs = []
    for window in jobs:
        found = choices(judge(window, Overhead()), window)
        stay, restart = found[0], found[1]
        assert stay.cost_once_gpu_hours == 0.0
        assert stay.cost_per_day_gpu_hours
        assert restart.cost_once_gpu_hours is not None
        costs.append(restart.cost_once_gpu_hours)
    assert costs[1] < 0.5 * costs[0]
    steps_ms = np.array([60.0] * 200).sum()
    assert costs[0] == pytest.approx(4 * steps_ms / 3.6e6, rel=0.3)


def test_a_healthy_job_needs_no_choice() -> None:
    """There is nothing to mitigate."""
    window = Job(steps=200).window()
    assert choices(judge(window, Overhead()), window) == []
