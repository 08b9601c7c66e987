"""How far two hosts' clocks are apart, told by operations in which their ranks met: no clock service is asked.

No rank leaves a synchronising operation (all-reduce, all-gather, barrier) before the last one has entered it. So for
each of them, with start S and end E of ranks i and j on their own clocks, S_j - E_i <= clock_j - clock_i <= E_j - S_i:
hard bounds, which narrow with every operation. Ranks leave nearly together, which gives the estimate in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple


class Stay(NamedTuple):
    """One rank in one operation, ns of its own clock: both moments are known to within `slack_ns`."""

    entered_ns: int
    left_ns: int
    slack_ns: int = 0


#: By (group, sequence number).
Operations = Mapping[tuple[str, int], Stay]
#: Operations from which an estimate is made: fewer say more about the scheduler than about the clocks.
LEAST_OPERATIONS = 8


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """The other clock minus this one, ns: surely within low and high, most likely `estimate_ns`."""

    estimate_ns: int
    low_ns: int
    high_ns: int
    operations: int
    #: Nine in ten differences of the two ranks' ends lie within this of the estimate.
    spread_ns: int

    @property
    def bound_ns(self) -> int:
        """The estimate is surely off by no more than this."""
        return max(self.high_ns - self.estimate_ns, self.estimate_ns - self.low_ns)

    @property
    def error_ns(self) -> int:
        """The estimate is hardly off by more than this: lateness below it is "unordered".

        Bounds narrow only where each of the two is late now and then. Ranks leave within the time that a message takes,
        and are seen to leave as exactly as the source looks: how much that scatters is known from the first operations
        on.
        """
        return min(self.bound_ns, self.spread_ns)


def offset_between(this: Operations, other: Operations) -> ClockOffset | None:
    """The offset by the operations both took part in; None where they are too few.

    Also None where the bounds contradict each other: a clock was stepped, drifted over a long stretch, or the
    operations did not synchronise. A shorter stretch, or other operations, may tell.
    """
    common = this.keys() & other.keys()
    if len(common) < LEAST_OPERATIONS:
        return None
    pairs = [(this[key], other[key]) for key in common]
    low = max(j.entered_ns - j.slack_ns - i.left_ns - i.slack_ns for i, j in pairs)
    high = min(j.left_ns + j.slack_ns - i.entered_ns + i.slack_ns for i, j in pairs)
    if low > high:
        return None
    ends = [j.left_ns - i.left_ns for i, j in pairs]
    estimate = min(max(round(median(ends)), low), high)
    away = sorted(abs(end - estimate) for end in ends)
    return ClockOffset(estimate, low, high, len(common), away[len(away) * 9 // 10])
