"""The sketch of durations keeps the error it states, and merges."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from rankscope.exporters.histogram import MAX_BUCKETS, MAX_SCALE, ExponentialHistogram

_DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "steady steps": lambda chance: chance.gauss(0.1, 0.002),
    "lognormal": lambda chance: chance.lognormvariate(-3, 2),
    "uniform": lambda chance: chance.uniform(0.001, 2),
    "two modes": lambda chance: chance.choice((0.005, 12.0)) * chance.uniform(0.9, 1.1),
    "nanoseconds to hours": lambda chance: 10 ** chance.uniform(-9, 4),
    "exponential": lambda chance: chance.expovariate(20),
    "gamma": lambda chance: chance.gammavariate(2, 0.01),
    "weibull": lambda chance: chance.weibullvariate(0.1, 0.7),
    "pareto": lambda chance: 0.01 * chance.paretovariate(1.1),
    "beta": lambda chance: chance.betavariate(0.5, 0.5),
    "triangular": lambda chance: chance.triangular(0.08, 0.3, 0.1),
    "cauchy": lambda chance: 0.1 * math.tan(math.pi * (chance.random() - 0.5)),
    "constant": lambda _chance: 0.1234,
    "whole milliseconds": lambda chance: chance.randrange(0, 20) / 1000,
    "one in a hundred stalls": lambda chance: 0.1 if chance.random() < 0.99 else chance.uniform(10, 60),
}


def _histogram(values: list[float]) -> ExponentialHistogram:
    histogram = ExponentialHistogram()
    for value in values:
        histogram.add(value)
    return histogram


@pytest.mark.parametrize("name", _DISTRIBUTIONS)
@pytest.mark.parametrize("size", [1, 7, 3000])
def test_quantiles_keep_the_stated_error(name: str, size: int) -> None:
    """Every quantile of every distribution lies within relative_error of the exact one, in at most 160 buckets."""
    chance = random.Random(size)
    values = sorted(abs(_DISTRIBUTIONS[name](chance)) for _ in range(size))
    histogram = _histogram(values)
    for q in (0, 0.01, 0.25, 0.5, 0.9, 0.99, 1):
        estimate = histogram.quantile(q)
        assert estimate is not None
        exact = values[math.floor(q * (size - 1))]
        assert abs(estimate - exact) <= histogram.relative_error * exact * (1 + 1e-9)
        low, high = histogram.quantile_bounds(q) or (math.nan, math.nan)
        assert low * (1 - 1e-9) <= exact <= high * (1 + 1e-9)
    _, counts = histogram.buckets()
    assert len(counts) <= MAX_BUCKETS
    assert sum(counts) + histogram.zero_count == size == histogram.count
    assert histogram.sum == pytest.approx(sum(values))


@pytest.mark.parametrize(("spread", "error"), [(31, 0.011), (980, 0.022), (960_000, 0.044), (9e11, 0.087)])
def test_error_by_spread_is_the_documented_one(spread: float, error: float) -> None:
    """The table in the module's docstring holds."""
    histogram = _histogram([0.003 * spread ** (number / 999) for number in range(1000)])
    assert histogram.relative_error < error


def test_buckets_follow_the_data_model() -> None:
    """Bucket i holds (base**i, base**(i+1)]: powers of two close the bucket below theirs."""
    histogram = ExponentialHistogram(scale=1)
    for value in (1.0, 1.1, 2**0.5 + 0.01, 2.0, 2.01):
        histogram.add(value)
    assert histogram.buckets() == (-1, [1, 1, 2, 1])


@pytest.mark.parametrize("name", _DISTRIBUTIONS)
def test_merged_is_as_if_counted_together(name: str) -> None:
    """Histograms of parts merge, in any order, into the buckets of one over all the values."""
    chance = random.Random(11)
    parts = [[abs(_DISTRIBUTIONS[name](chance)) for _ in range(100)] + [0.0] for _ in range(5)]
    whole = _histogram([value for part in parts for value in part])
    for _ in range(3):
        chance.shuffle(parts)
        merged = ExponentialHistogram()
        for part in parts:
            merged.merge(_histogram(part))
        assert (merged.scale, merged.buckets()) == (whole.scale, whole.buckets())
        assert (merged.count, merged.zero_count) == (whole.count, whole.zero_count)
        assert (merged.minimum, merged.maximum) == (whole.minimum, whole.maximum)
        assert merged.sum == pytest.approx(whole.sum)


def test_a_coarse_histogram_merges_into_a_fine_one() -> None:
    """The scale falls to the coarser of the two, whichever is merged into which."""
    fine, coarse = _histogram([1.0, 1.5]), ExponentialHistogram(scale=0)
    coarse.add(3.0)
    fine.merge(coarse)
    assert (fine.scale, fine.count, fine.buckets()) == (0, 3, (-1, [1, 1, 1]))
    assert MAX_SCALE > 0


def test_nothing_but_durations_is_counted() -> None:
    """A negative or infinite duration raises, and so does an impossible quantile; an empty histogram has none."""
    histogram = ExponentialHistogram()
    for value in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="cannot be negative"):
            histogram.add(value)
    with pytest.raises(ValueError, match="quantile"):
        histogram.quantile(1.5)
    assert histogram.quantile(0.5) is None
    assert histogram.count == 0
