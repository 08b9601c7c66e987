"""Ranks that restart without end."""

from __future__ import annotations

from pathlib import Path

from survival.restarts import restarts


def test_ranks_that_come_and_go_leave_nothing_in_the_agent(tmp_path: Path) -> None:
    """Descriptors, maps, threads and the ring directory are as after the first ranks, and each rank is recorded.

    `benchmarks/reliability.py` does the same for a thousand."""
    told = restarts(tmp_path, 150)
    assert told.broken == []
    assert len(told.sizes) == 3
