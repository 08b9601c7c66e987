"""Windows of the profiler: what rank and agent agree on."""

from __future__ import annotations

from pathlib import Path

#: Steps in a window. The analysis leaves the last one out, whose kernels the end cuts off.
STEPS = 3
#: Share of the training that windows may take, all costs counted.
SHARE = 0.002
#: What a window is taken to cost before one has been measured: three steps of 12 ms cost 30 ms on a CPU.
EXPECTED_NS = 60_000_000


def window_path(ring: Path, rank: int) -> Path:
    """Where a rank leaves the trace of its window, for the agent to take away."""
    return ring.with_name(f"{ring.name}.rank{rank}.window.json")
