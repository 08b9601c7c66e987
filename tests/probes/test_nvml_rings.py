"""The driver's sample buffers: every sample once, whatever the rate of reading and whoever reads."""

from __future__ import annotations

import time
from itertools import pairwise

import psutil
import pytest
from watched_nvml import Watched, WatchNode

from rankscope.probes.nvml_api import NvmlFailure, SampleRing
from rankscope.probes.nvml_rings import RINGS, RingReader
from rankscope.probes.nvml_sample import GpuSample, Refusals
from rankscope.simulator.gpu import Gpu
from rankscope.simulator.layout import RING_VISIBLE
from rankscope.simulator.state import NodeState

PERIOD_US = 139_000
POWER = "gpu.power_sample_watts"


class Driver:
    """Puts samples into the buffers of a simulated GPU, each with a value of its own."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        # Past is all that it ever tells, and time passes faster here.
        self._at_us = time.time_ns() // 1000 - 60_000_000
        self.pushed = 0

    def push(self, count: int) -> None:
        """The next samples."""
        for _ in range(count):
            self._at_us += PERIOD_US
            self._gpu.power_instant_mw = 1000 * self.pushed
            self._gpu.utilization_percent = self.pushed % 100
            self._gpu.push_sample(self._at_us)
            self.pushed += 1


def from_the_past(watched: Watched) -> None:
    """Have the probe take samples that are older than itself."""
    for gpu in watched.probe._gpus.values():
        gpu.seen_us = [1] * len(RINGS)


def received(watched: Watched, gpu: Gpu, metric: str = POWER) -> list[float]:
    """The samples of one series in the order of their times."""
    found = [r for r in watched.readings if r.metric == metric and r.device == gpu.uuid]
    return [r.value for r in sorted(found, key=lambda r: r.time_ns)]


def test_every_sample_arrives_once_over_bursts_and_helpers(node: NodeState, watch: WatchNode) -> None:
    """Reads that are now rare and now many, and a helper that dies between them, lose and repeat no sample."""
    watched = watch(node)
    gpu = node.gpus[1]
    driver = Driver(gpu)
    from_the_past(watched)

    def read(times: int, each: int) -> None:
        for _ in range(times):
            driver.push(each)
            # Time passes faster here than the buffers would let it.
            watched.read_until(lambda: len(received(watched, gpu)) == driver.pushed, "samples")

    read(3, 21)  # steady: 3 s between reads
    read(30, 1)  # burst
    assert watched.probe.helper_pid is not None
    psutil.Process(watched.probe.helper_pid).kill()
    driver.push(40)
    watched.read_until(lambda: len(received(watched, gpu)) == driver.pushed, "samples")
    read(3, 21)
    assert received(watched, gpu) == [float(n) for n in range(driver.pushed)]
    assert received(watched, gpu, "gpu.utilization_sample_ratio") == [n % 100 / 100 for n in range(driver.pushed)]
    times = sorted(r.time_ns for r in watched.readings if r.metric == POWER)
    assert {round((after - before) / 1e6) for before, after in pairwise(times)} == {139}
    assert watched.latest("gpu.samples_lost", gpu.uuid) == 0
    assert "probe-failed" in watched.kinds(), "the helper was replaced"


def test_a_buffer_that_turned_over_is_said(node: NodeState, watch: WatchNode) -> None:
    """Where more samples came than the buffer holds, what there is arrives, and that some are gone is counted."""
    watched = watch(node)
    gpu = node.gpus[0]
    driver = Driver(gpu)
    from_the_past(watched)
    driver.push(5)
    watched.read_until(lambda: len(received(watched, gpu)) == 5, "samples")
    driver.push(RING_VISIBLE + 30)
    watched.read_until(lambda: len(received(watched, gpu)) > 5, "samples")
    assert received(watched, gpu)[5:] == [float(n) for n in range(35, 35 + RING_VISIBLE)]
    assert watched.latest("gpu.samples_lost", gpu.uuid) == len(RINGS)
    assert watched.latest("gpu.samples_lost", node.gpus[1].uuid) == 0


class Rings:
    """A GPU that has only sample buffers."""

    uuid = "GPU-0"

    def __init__(self, ring: SampleRing | int) -> None:
        self._ring = ring

    def samples(self, kind: int, last_seen_us: int) -> SampleRing:
        if isinstance(self._ring, int):
            raise NvmlFailure(self._ring, "refused")
        return self._ring


def read(ring: SampleRing | int, seen_us: int = 0) -> GpuSample:
    """One read of such a GPU; its wall clock is 5 s ahead of the monotonic one."""
    sample = GpuSample()
    reader = RingReader(Rings(ring), Refusals(), monotonic_ns=lambda: 10**9, wall_ns=lambda: 6 * 10**9)  # type: ignore[arg-type]
    reader.read(sample, 0, (seen_us,) * len(RINGS))
    return sample


def test_samples_are_dated_by_the_monotonic_clock() -> None:
    """Wall time of the driver becomes the clock of the recording, and units those of the metrics."""
    sample = read(SampleRing([(6_000_000, 70)], full=False))
    assert sample.series["gpu.power_sample_watts"] == [(10**9, 0.07)]
    assert sample.series["gpu.utilization_sample_ratio"] == [(10**9, 0.7)]
    assert sample.seen == [6_000_000] * len(RINGS)


@pytest.mark.parametrize("seen_us", [6_000_000, 7_000_000])
def test_a_driver_that_repeats_itself_is_not_believed_twice(seen_us: int) -> None:
    """Samples that are no younger than the last one seen are dropped, and the place is kept."""
    sample = read(SampleRing([(5_000_000, 1), (6_000_000, 2)], full=False), seen_us)
    assert sample.series == {}
    assert sample.seen == [seen_us] * len(RINGS)


def test_a_wall_clock_that_was_set_back_stops_no_samples() -> None:
    """A last sample in the future is forgotten and that is counted: reading goes on from now."""
    sample = read(SampleRing([(6_000_000, 1)], full=False), 60_000_000)
    assert sample.series == {}
    assert sample.seen == [6_000_000] * len(RINGS)
    assert sample.overruns == len(RINGS)


def test_a_sentinel_is_no_sample() -> None:
    """All ones is "not available": left out, and not read again."""
    sample = read(SampleRing([(1, 4294967295), (2, 50)], full=False))
    assert [value for _, value in sample.series["gpu.sm_clock_sample_mhz"]] == [50]
    assert sample.seen == [2] * len(RINGS)


def test_a_refusal_keeps_the_place() -> None:
    """Buffers that cannot be read now are read on later from where they were."""
    sample = read(999, 77)
    assert sample.seen == [77] * len(RINGS)
    assert {metric for metric, _, _ in sample.outcomes} == {metric for _, metric, _ in RINGS}


@pytest.mark.parametrize("set_s", [3600, -3600, 4], ids=["forward", "back", "a little"])
def test_samples_around_a_wall_clock_that_is_set_keep_their_times(set_s: int) -> None:
    """Those that the driver dated before are where they were, and those after it too; none is in the future."""
    second = 10**9
    now = [10 * second, 10_000 * second]
    ring = SampleRing([], full=False)
    gpu = Rings(ring)
    reader = RingReader(gpu, Refusals(), monotonic_ns=lambda: now[0], wall_ns=lambda: now[1])  # type: ignore[arg-type]
    seen = [0] * len(RINGS)
    times: list[int] = []
    for read_at in (10, 13, 16, 19):
        now[0] = read_at * second
        now[1] = (9_990 + read_at + (set_s if read_at > 13 else 0)) * second
        # One a second; the clock was set between 14 and 15.
        ring.samples[:] = [
            ((9_990 + at + (set_s if at > 14 else 0)) * 1_000_000, at) for at in range(max(0, read_at - 8), read_at + 1)
        ]
        sample = GpuSample()
        reader.read(sample, 0, seen)
        seen = sample.seen
        times += [time_ns // second for time_ns, _ in sample.series.get(POWER, [])]
    assert times == sorted(set(times))
    assert set(times) >= set(range(2, 14)) | {17, 18, 19}
    assert max(times) == 19
