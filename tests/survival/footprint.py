"""What processes hold of a machine: memory, descriptors, threads, maps; and whether one of these grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean

from rankscope.agent.cost import process_pss_bytes

#: Parts of a series whose means count as independent of each other.
BLOCKS = 24


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one process, or of several together."""

    descriptors: int
    maps: int
    threads: int
    pss_bytes: int
    #: What it shares with nobody, files aside: unlike PSS it does not move with what neighbours share.
    own_bytes: int


def footprint_of(*pids: int) -> Footprint:
    """One look. Raises FileNotFoundError where a process is gone."""
    descriptors = maps = threads = pss = own = 0
    for proc in (Path(f"/proc/{pid}") for pid in pids):
        descriptors += len(os.listdir(proc / "fd"))
        maps += len((proc / "maps").read_text().splitlines())
        threads += len(os.listdir(proc / "task"))
        pss += process_pss_bytes(proc) or 0
        rollup = dict(line.split(":") for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
        own += int(rollup["Anonymous"].split()[0]) * 1024
    return Footprint(descriptors, maps, threads, pss, own)


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth an hour with its 95 % interval, in the unit of what grows."""

    an_hour: float
    low: float
    high: float


def slope_of(hours: Sequence[float], values: Sequence[float], blocks: int = BLOCKS) -> Slope:
    """Least squares over the means of `blocks` stretches, since looks that follow each other are not independent.

    The interval is Student's, its quantile by the first terms of Cornish and Fisher's expansion (right within 1 % from
    ten blocks on).
    """
    size = len(values) // blocks
    xs = [fmean(hours[at * size : (at + 1) * size]) for at in range(blocks)]
    ys = [fmean(values[at * size : (at + 1) * size]) for at in range(blocks)]
    mean_x, mean_y = fmean(xs), fmean(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    freedom = blocks - 2
    z = NormalDist().inv_cdf(0.975)
    reach = (z + (z**3 + z) / (4 * freedom)) * (left / freedom / spread) ** 0.5
    return Slope(slope, slope - reach, slope + reach)
