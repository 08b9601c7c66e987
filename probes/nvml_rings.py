"""The driver's own sample buffers of one GPU, read so that every sample arrives once.

A buffer holds about 10 s at about 139 ms a sample. The place of the last read is kept by whoever asks and not here, so
that a helper that is replaced goes on where the last one stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from rankscope.probes.nvml_api import Gpu, NvmlFailure, SampleRing
from rankscope.probes.nvml_sample import GpuSample, Refusals

#: (nvmlSamplingType_t, metric, what a unit of it counts in NVML): power in mW, utilization in per cent, clocks in MHz.
RINGS = (
    (0, "gpu.power_sample_watts", 1000.0),
    (1, "gpu.utilization_sample_ratio", 100.0),
    (2, "gpu.memory_utilization_sample_ratio", 100.0),
    (5, "gpu.sm_clock_sample_mhz", 1.0),
    (6, "gpu.memory_clock_sample_mhz", 1.0),
)
#: A first sample this many times the usual spacing after the last one seen means that some between are gone.
_GAP = 1.5
_SENTINEL = (1 << 32) - 1
#: A last sample further in the future than this means that the wall clock was set back, us.
_STEPPED_BACK_US = 5_000_000
#: Two readings of both clocks that differ by this say that the wall clock was set; a sample may be this much older than
#: the read before the one that brings it, or this far ahead of its own, ns.
_PARTED_NS = 20_000_000
_LATE_NS = 1_000_000_000
_AHEAD_NS = 1_000_000_000


class RingReader:
    """Reads every buffer of one GPU. The clocks are functions of no argument, in ns."""

    def __init__(
        self,
        gpu: Gpu,
        refusals: Refusals,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._gpu = gpu
        self._refusals = refusals
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        #: When it last read, and what then turned wall into monotonic time, ns.
        self._last: tuple[int, int] | None = None

    def read(self, sample: GpuSample, now_ns: int, seen: Sequence[int]) -> None:
        """Add what is younger than `seen`, the wall time (us) of the newest sample had of each ring.

        Raises NvmlFailure where the GPU is down.
        """
        # The driver dates samples by the wall clock.
        wall_ns, read_ns = self._wall_ns(), self._monotonic_ns()
        offset_ns = read_ns - wall_ns
        last, self._last = self._last, (read_ns, offset_ns)
        newest = list(seen)
        for place, (kind, metric, unit) in enumerate(RINGS):
            if self._refusals.paused(metric, now_ns):
                continue
            if seen[place] > wall_ns // 1000 + _STEPPED_BACK_US:
                # The wall clock was set back: nothing would be younger for as long. What came since is let go.
                newest[place] = wall_ns // 1000
                sample.overruns += 1
                continue
            try:
                ring = self._gpu.samples(kind, seen[place])
            except NvmlFailure as failure:
                self._refusals.refused(sample, metric, failure.code, str(failure), now_ns)
                continue
            self._refusals.taken(metric)
            fresh = [(at, value) for at, value in ring.samples if at > seen[place]]
            if not fresh:
                continue
            newest[place] = max(at for at, _ in fresh)
            sample.overruns += _overrun(ring, seen[place])
            dated = [
                (_dated(at * 1000, offset_ns, read_ns, last), value / unit) for at, value in fresh if value != _SENTINEL
            ]
            sample.series[metric] = [each for each in dated if each[0] <= read_ns + _AHEAD_NS]
        sample.seen = newest


def _dated(wall_ns: int, offset_ns: int, read_ns: int, last: tuple[int, int] | None) -> int:
    """When a sample was taken, on the monotonic clock. Where the wall clock was set since the last read, what cannot be
    of the time between was dated by the clock as it was."""
    time_ns = wall_ns + offset_ns
    if last is None or abs(offset_ns - last[1]) < _PARTED_NS:
        return time_ns
    return time_ns if last[0] - _LATE_NS <= time_ns <= read_ns else wall_ns + last[1]


def _overrun(ring: SampleRing, seen_us: int) -> bool:
    """Whether the buffer turned over since: it is full of new samples, and its oldest does not follow the last seen."""
    if not (ring.full and seen_us and len(ring.samples) > 1):
        return False
    times = [at for at, _ in ring.samples]
    usual = sorted(after - before for before, after in pairwise(times))[(len(times) - 1) // 2]
    return times[0] - seen_us > _GAP * usual
