"""A mergeable sketch of durations: the base-2 exponential histogram of OTLP, for values that are not negative.

Bucket i at scale s holds (b**i, b**(i+1)] with b = 2**(2**-s). A quantile's estimate is wrong by at most the
relative error (b - 1) / (b + 1). At most MAX_BUCKETS buckets are kept: where the values spread further, neighbours are
joined and the scale falls by one, which squares b. Starting from scale 5, the error is at most

    1.1 %  while the largest value is at most 31 times the smallest,
    2.2 %  up to                             980 times,
    4.4 %  up to                         960 000 times,
    8.7 %  up to                          9 * 10**11 times.

Buckets of a lower scale are unions of buckets of a higher one, so histograms merge without a further error, in any
order, over ranks and nodes. Count, sum, smallest and largest value are exact. The scale is capped at 5 on purpose: the
format's own cap of 20 would spread the steps of a steady job over all 160 buckets, and stores keep a series a bucket.
Bucket layout: https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

MAX_SCALE = 5
MAX_BUCKETS = 160
#: Scales that the data model knows.
SCALES = range(-10, 21)


class ExponentialHistogram:
    """Counts of values by relative size."""

    __slots__ = ("_counts", "_max_buckets", "count", "maximum", "minimum", "scale", "sum", "zero_count")

    def __init__(self, *, scale: int = MAX_SCALE, max_buckets: int = MAX_BUCKETS) -> None:
        self.scale = scale
        self.count = 0
        self.sum = 0.0
        self.zero_count = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self._counts: dict[int, int] = {}
        self._max_buckets = max_buckets

    @property
    def relative_error(self) -> float:
        """Largest relative error of a quantile's estimate at the present scale."""
        base = self._base()
        return (base - 1) / (base + 1)

    def add(self, value: float) -> None:
        """Count `value`; raises ValueError where it is negative or not finite."""
        if not 0 <= value < math.inf:
            raise ValueError(f"a duration cannot be negative or endless, as {value} is")
        self.count += 1
        self.sum += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)
        if not value:
            self.zero_count += 1
            return
        index = math.ceil(math.ldexp(math.log2(value), self.scale)) - 1
        if index in self._counts:
            self._counts[index] += 1
        else:
            self._counts[index] = 1
            self._fit()

    def add_all(self, values: Sequence[float]) -> None:
        """Count every value; raises ValueError, and counts none, where one is negative or not finite.

        Many at once cost a small part of one by one (docs/benchmarks.md).
        """
        if not values:
            return
        total, least, most = sum(values), min(values), max(values)
        # A sum with a NaN in it is one, wherever min and max put it.
        if math.isnan(total) or least < 0 or most == math.inf:
            raise ValueError(f"a duration cannot be negative or endless, as one from {least} to {most} is")
        self.count += len(values)
        self.sum += total
        self.minimum = min(self.minimum, least)
        self.maximum = max(self.maximum, most)
        ceil, log2, factor = math.ceil, math.log2, math.ldexp(1.0, self.scale)
        indices = Counter([ceil(log2(value) * factor) - 1 for value in values if value])
        self.zero_count += len(values) - indices.total()
        for index, count in indices.items():
            self._counts[index] = self._counts.get(index, 0) + count
        self._fit()

    def merge(self, other: ExponentialHistogram) -> None:
        """Add all that `other` has counted."""
        self._lower(max(0, self.scale - other.scale))
        shift = other.scale - self.scale
        for index, count in other._counts.items():
            self._counts[index >> shift] = self._counts.get(index >> shift, 0) + count
        self.count += other.count
        self.sum += other.sum
        self.zero_count += other.zero_count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self._fit()

    def quantile(self, q: float) -> float | None:
        """Estimate of the value below which a share `q` lies; None while empty. Raises ValueError outside 0..1."""
        bounds = self.quantile_bounds(q)
        if bounds is None:
            return None
        low, high = bounds
        # The point from which both bounds are equally far in relative terms.
        return 2 * low * high / (low + high) if high else 0.0

    def quantile_bounds(self, q: float) -> tuple[float, float] | None:
        """(least, most) that the exact quantile can be: the edges of its bucket. None while empty.

        Exact is the value of rank floor(q * (count - 1)) among the sorted ones, counted from 0. Raises ValueError
        outside 0..1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        if not self.count:
            return None
        rank = math.floor(q * (self.count - 1))
        seen = self.zero_count
        if rank < seen:
            return 0.0, 0.0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if rank < seen:
                low, high = (math.exp2(math.ldexp(edge, -self.scale)) for edge in (index, index + 1))
                return max(low, self.minimum), min(high, self.maximum)
        return self.maximum, self.maximum

    @classmethod
    def of_buckets(
        cls, *, scale: int, zero_count: int, buckets: Mapping[int, int], total: float, minimum: float, maximum: float
    ) -> ExponentialHistogram:
        """A histogram made elsewhere: bucket index -> count; `minimum` and `maximum` bound the values it counted.

        Raises ValueError where it contradicts itself.
        """
        if zero_count < 0 or any(count < 0 for count in buckets.values()):
            raise ValueError("a bucket holds less than nothing")
        if scale not in SCALES:
            raise ValueError(f"scale {scale} is outside {SCALES.start} to {SCALES.stop - 1}")
        histogram = cls(scale=scale, max_buckets=max(MAX_BUCKETS, len(buckets)))
        histogram._counts = {index: count for index, count in buckets.items() if count}
        histogram.zero_count = zero_count
        histogram.count = zero_count + sum(buckets.values())
        if histogram.count:
            if not 0 <= minimum <= maximum < math.inf or not math.isfinite(total):
                raise ValueError(f"values from {minimum} to {maximum} with the sum {total} cannot be")
            histogram.sum, histogram.minimum, histogram.maximum = total, minimum, maximum
        return histogram

    def buckets(self) -> tuple[int, list[int]]:
        """(index of the first bucket, counts from there on), as OTLP carries them."""
        if not self._counts:
            return 0, []
        first, last = min(self._counts), max(self._counts)
        return first, [self._counts.get(index, 0) for index in range(first, last + 1)]

    def _base(self) -> float:
        return math.exp2(math.ldexp(1.0, -self.scale))

    def _fit(self) -> None:
        if not self._counts:
            return
        first, last = min(self._counts), max(self._counts)
        shift = 0
        while (last >> shift) - (first >> shift) >= self._max_buckets:
            shift += 1
        self._lower(shift)

    def _lower(self, shift: int) -> None:
        if not shift:
            return
        joined: dict[int, int] = {}
        for index, count in self._counts.items():
            joined[index >> shift] = joined.get(index >> shift, 0) + count
        self._counts = joined
        self.scale -= shift
