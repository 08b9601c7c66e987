"""A recorded window replayed: the same model prices ranks, phases and hosts of a data-parallel job."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_job import Job

from rankscope.rules.frame import Frame
from rankscope.rules.whatif_groups import groups_of
from rankscope.rules.whatif_operations import OperationsError
from rankscope.rules.whatif_replay import replay as replayed
from rankscope.rules.whatif_verdict import FEW_WORKERS, read
from rankscope.rules.whatif_window import model_of_frame, whatif_window


def test_the_replay_of_a_window_gives_its_steps_back() -> None:
    """Own times and waits alone, without a common clock, add up to the step that the ranks had: within 1 % in 19 of
    20 steps (where in a step other work lay is not recorded)."""
    window = Job(ranks=4, steps=120).slow_gpu(1, 1.3, 60).window()
    frame = Frame(window)
    built = model_of_frame(frame, frame.usable, groups_of(frame))
    again = replayed(built.plan, lambda node: built.transfer_s[node])
    places = [list(frame.steps).index(step) for step in built.operations.steps]
    off = np.abs(again * 1e3 / frame.step_ms[:, places].max(axis=0) - 1)
    assert np.quantile(off, 0.95) < 0.01
    assert off.max() < 0.15


def test_a_phase_that_mostly_takes_no_time_keeps_its_place() -> None:
    """Data that waits in every fourth step only: there are no delays, so replaying them adds nothing."""
    job = Job(ranks=4, steps=120)
    job.data[:] = 0.0
    job.data[:, ::4] = 12.0
    found = whatif_window(job.window())
    assert found.replayed_ms == pytest.approx(found.actual_ms, rel=1e-6)


def test_a_slow_rank_is_priced_and_not_accused() -> None:
    """Its milliseconds are what the job lost; why is left to the counters that stand beside it."""
    healthy = whatif_window(Job(ranks=8, steps=150, seed=3, spread=0).window())
    slow = whatif_window(Job(ranks=8, steps=150, seed=3, spread=0).slow_gpu(5, 1.5).window())
    worst = slow.slowest[0]
    assert worst.dp_rank == 5
    assert worst.ms_per_step == pytest.approx(slow.actual_ms - healthy.actual_ms, rel=0.25)
    assert slow.m_s is None
    reading = read(slow)
    assert (reading.cause, reading.looks_like) == (FEW_WORKERS, "unknown")
    assert "rankscope report" in reading.sentences[-1]


def test_a_host_is_priced_by_all_of_its_ranks() -> None:
    """Two slow ranks of one host: either alone returns little, the host returns all of it."""
    job = Job(ranks=4, steps=120, spread=0).slow_gpu(2, 1.4).slow_gpu(3, 1.4)
    window = job.window()
    for rank, of in window.ranks.items():
        of.identity = replace(of.identity, host="ab"[rank // 2])
    found = whatif_window(window)
    alone = max(worker.ms_per_step or 0.0 for worker in found.slowest)
    assert found.by_place["b"] > 3 * max(alone, found.by_place["a"], 1.0)


def test_without_a_step_there_is_nothing_to_replay() -> None:
    """Too short a run says so."""
    with pytest.raises(OperationsError, match="nothing to replay"):
        whatif_window(Job(steps=2).window())
