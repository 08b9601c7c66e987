"""Clock offsets told by collectives: the truth lies within the bounds, whatever the ranks and the network did."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rankscope.offset import LEAST_OPERATIONS, Stay, offset_between

Times = dict[tuple[str, int], Stay]
late = st.lists(
    st.tuples(st.integers(0, 50_000_000), st.integers(0, 50_000_000), st.integers(1, 200_000), st.integers(1, 200_000)),
    min_size=LEAST_OPERATIONS,
    max_size=40,
)


def meetings(operations: list[tuple[int, int, int, int]], offset: int) -> tuple[Times, Times]:
    """Two ranks meet again and again: each comes late by its own, and leaves a little after the last has come."""
    this: Times = {}
    other: Times = {}
    for number, (late_i, late_j, leave_i, leave_j) in enumerate(operations):
        begin = number * 200_000_000
        last = begin + max(late_i, late_j)
        this["default", number] = Stay(begin + late_i, last + leave_i)
        other["default", number] = Stay(begin + late_j + offset, last + leave_j + offset)
    return this, other


@given(late, st.integers(-(10**10), 10**10))
def test_the_true_offset_is_within_the_bounds(operations: list[tuple[int, int, int, int]], offset: int) -> None:
    """For any lateness and any offset the bounds hold the truth, and the estimate is within its own bound of it."""
    found = offset_between(*meetings(operations, offset))
    assert found is not None
    assert found.low_ns <= offset <= found.high_ns
    assert abs(found.estimate_ns - offset) <= found.bound_ns
    assert found.error_ns <= found.bound_ns
    assert abs(found.estimate_ns - offset) <= 200_000


def test_too_few_or_contradicting_operations_say_nothing() -> None:
    """Seven operations, none in common, or a clock that was stepped between two: no answer rather than a wrong one."""
    this, other = meetings([(0, 1_000_000, 10, 10)] * (LEAST_OPERATIONS - 1), 5)
    assert offset_between(this, other) is None
    this, other = meetings([(0, 1_000_000, 10, 10)] * 20, 5)
    assert offset_between(this, {("tp", number): times for (_, number), times in other.items()}) is None
    stepped = {key: Stay(a + 10**9 * (key[1] > 9), b + 10**9 * (key[1] > 9)) for key, (a, b, _) in other.items()}
    assert offset_between(this, stepped) is None
