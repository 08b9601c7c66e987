"""Feedback loops are told from series that merely move together."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope.rules.feedback import Loop, LoopVerdict, loop, schedule, window_starts


def made(
    returned: float, forward: float, *, seed: int, cycle: float = 3.0, common: float = 0.0, days: int = 60
) -> Loop:
    """Hours of two series that share a daily cycle and (common) a random walk; half-day windows, 30 % of them cut."""
    draw = np.random.default_rng(seed)
    cut = schedule(days * 2, 12, 0.3, seed)
    hours = len(cut)
    daily = cycle * np.sin(2 * np.pi * np.arange(hours) / 24)
    walk = common * np.cumsum(draw.normal(0, 0.1, hours))
    cause, effect = np.zeros(hours), np.zeros(hours)
    for hour in range(hours):
        back = returned * effect[hour - 2] if hour >= 2 and not cut[hour] else 0.0
        cause[hour] = daily[hour] + walk[hour] + draw.normal() + back
        effect[hour] = daily[hour] + walk[hour] + draw.normal() + (forward * cause[hour - 3] if hour >= 3 else 0.0)
    found = loop(cause, effect, cut, max_delay=4, period=24, seed=seed)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_loop_is_found_with_gain_and_delay(seed: int) -> None:
    """A return path of 0.5 after two hours and a forward path of 0.6 after three: 0.3 once around."""
    found = made(0.5, 0.6, seed=seed)
    assert found.verdict is LoopVerdict.LOOP
    assert (found.return_delay, found.forward_delay) == (2, 3)
    assert found.returned.low < 0.5 < found.returned.high
    assert found.forward is not None
    assert found.gain is not None
    assert found.forward.low < 0.6 < found.forward.high
    assert found.gain.low < 0.3 < found.gain.high


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.verify) for seed in (2, 3))])
@pytest.mark.parametrize(("forward", "common"), [(0.0, 0.0), (0.0, 0.3), (0.6, 0.0)])
def test_what_looks_like_one_is_not_called_one(seed: int, forward: float, common: float) -> None:
    """A shared daily cycle, a common driver, and a cause that drives an effect which never comes back."""
    found = made(0.0, forward, seed=seed, common=common)
    assert found.verdict in (LoopVerdict.UNDECIDED, LoopVerdict.NO_RETURN)
    assert found.correlation > 0.5


def test_a_return_path_without_a_forward_one_is_no_loop() -> None:
    """What comes back into the cause, but is not driven by it, ends there."""
    assert made(0.5, 0.0, seed=1).verdict is LoopVerdict.ONE_WAY


def test_without_cuts_there_is_no_telling() -> None:
    """Few windows of either kind give no answer at all."""
    series = np.random.default_rng(0).normal(size=200)
    cut = np.zeros(200, dtype=bool)
    assert loop(series, series, cut, max_delay=3) is None
    cut[:10] = True
    assert loop(series, series, cut, max_delay=3) is None


def test_a_series_that_never_changes_is_survived() -> None:
    """Constant columns have no gain, and raise nothing."""
    cut = np.arange(200) % 10 < 5
    found = loop(np.ones(200), np.zeros(200), cut, max_delay=3)
    assert found is not None
    assert found.verdict is not LoopVerdict.LOOP


def test_schedules_are_drawn_by_window() -> None:
    """The share that was asked for, in windows of the length that was asked for, another draw with another seed."""
    cut = schedule(40, 6, 0.25, 1)
    assert (len(cut), int(cut.sum())) == (240, 60)
    assert all(start % 6 == 0 for start in window_starts(cut))
    assert (cut != schedule(40, 6, 0.25, 2)).any()
