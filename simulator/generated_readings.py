"""What probes would have read on a generated job's hosts while nothing is wrong, and ways to change it.

Series that never change share their arrays, so that a thousand GPUs cost little.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.gpu_device import link_of, process_on
from rankscope.simulator.generated_job import BoolArray, Job
from rankscope.simulator.profiles import GpuProfile, profile_named
from rankscope.window import Series, SeriesKey

SECOND = 1_000_000_000
Values = NDArray[np.float64]
DISK, MOUNT, PORT = "nvme0n1", "/data", "mlx5_0/1"
#: Fast groups are read once a second, slow ones every ten; of short runs oftener, as after a trigger.
_FAST_SECONDS, _SLOW_SECONDS = (0.2, 1.0), (1.0, 10.0)
_FAST_READINGS, _SLOW_READINGS = 300, 60
_LINKS = 2
CORE_MHZ = 3_500.0
#: What a healthy host counts in a second.
_HOST_RATES = (
    ("host.pressure_cpu_some_ns", "", 0.05e9),
    ("host.pressure_io_some_ns", "", 0.01e9),
    ("host.pressure_io_full_ns", "", 0.005e9),
    ("host.pressure_memory_some_ns", "", 1e5),
    ("host.major_faults", "", 2.0),
    ("disk.reads", DISK, 80.0),
    ("disk.read_ns", DISK, 80 * 0.4e6),
    ("disk.read_bytes", DISK, 8e7),
    ("disk.write_bytes", DISK, 4e5),
    ("nfs.operations", f"READ {MOUNT}", 50.0),
    ("nfs.transmissions", f"READ {MOUNT}", 50.0),
    ("nfs.rtt_ns", f"READ {MOUNT}", 50 * 0.8e6),
    ("nfs.execute_ns", f"READ {MOUNT}", 50 * 1e6),
)
_PORT_RATES = (("ib.transmit_wait_ticks", 2e4), ("ib.cnps_handled", 5.0), ("ib.ecn_marked_packets", 5.0))
_RANK_RATES = (("process.blkio_ns", 1e5), ("process.involuntary_switches", 20.0), ("process.major_faults", 0.5))
HELD = {
    "gpu-thermal-slowdown": "gpu.throttle_hw_thermal_ns",
    "cooling-plant": "gpu.throttle_sw_thermal_ns",
    "gpu-power-brake": "gpu.throttle_hw_power_brake_ns",
    "gpu-power-limit-low": "gpu.throttle_sw_power_ns",
    "gpu-sync-boost": "gpu.throttle_sync_boost_ns",
}


class Readings:
    """Every series of a job. `times` and `slow` are when fast and slow groups are read."""

    def __init__(self, job: Job, starts_ns: Values, end_ns: int, uuids: list[str], hosts: list[str]) -> None:
        self.job, self.uuids, self.hosts = job, uuids, hosts
        self.starts = starts_ns
        self.profile: GpuProfile = profile_named(job.scenario.node.gpu)
        begin = int(starts_ns[0])
        length = (end_ns - begin) / SECOND
        self.times = self._axis(begin, end_ns, length, _FAST_SECONDS, _FAST_READINGS)
        self.slow = self._axis(begin, end_ns, length, _SLOW_SECONDS, _SLOW_READINGS)
        self._slow_axis = array("q", self.slow.tolist())
        self._fast_axis = array("q", self.times.tolist())
        self._constants: dict[tuple[float, bool], Series] = {}
        self.series: dict[SeriesKey, Series] = {}
        self._gpus()
        self._host_readings()

    @staticmethod
    def _axis(begin: int, end: int, length: float, bounds: tuple[float, float], most: int) -> NDArray[np.int64]:
        step = min(max(length / most, bounds[0]), bounds[1])
        return np.arange(begin, end, max(1, int(step * SECOND)), dtype=np.int64)

    # ---- putting ------------------------------------------------------------------------------------------------

    def put(self, host: str, metric: str, device: str, values: NDArray[Any], *, slow: bool = False) -> None:
        axis = self._slow_axis if slow else self._fast_axis
        packed = array("f", np.asarray(values, dtype=np.float32).tobytes())
        if metric.endswith(("_ns", "_bytes")):
            packed = array("d", np.asarray(values, dtype=np.float64).tobytes())
        self.series[SeriesKey(host, metric, device)] = Series(axis, packed)

    def constant(self, host: str, metric: str, device: str, value: float, *, slow: bool = True) -> None:
        key = (value, slow)
        if key not in self._constants:
            axis = self._slow_axis if slow else self._fast_axis
            self._constants[key] = Series(axis, array("d", [value]) * len(axis))
        self.series[SeriesKey(host, metric, device)] = self._constants[key]

    def values(self, host: str, metric: str, device: str = "") -> Values:
        """A copy of a series, to change and put back."""
        return np.array(self.series[SeriesKey(host, metric, device)].values, dtype=np.float64)

    def during(self, steps: BoolArray, *, slow: bool = False) -> BoolArray:
        """Which readings fall into some steps."""
        axis = self.slow if slow else self.times
        place = np.searchsorted(self.starts, axis, side="right") - 1
        inside: BoolArray = steps[np.clip(place, 0, len(steps) - 1)]
        return inside

    def change(self, host: str, metric: str, device: str, steps: BoolArray, to: float, jitter: float = 0.0) -> None:
        slow = self.series[SeriesKey(host, metric, device)].times_ns is self._slow_axis
        values, where = self.values(host, metric, device), self.during(steps, slow=slow)
        values[where] = to + (jitter * self.job.random.standard_normal(int(where.sum())) if jitter else 0.0)
        self.put(host, metric, device, values, slow=slow)

    def grow(self, host: str, metric: str, device: str, steps: BoolArray, per_second: float) -> None:
        """Let a counter grow at a rate while some steps last."""
        slow = self.series[SeriesKey(host, metric, device)].times_ns is self._slow_axis
        axis = self.slow if slow else self.times
        gained = np.diff(axis, prepend=axis[0]) / SECOND * self.during(steps, slow=slow) * per_second
        wobble = self.job.random.uniform(0.7, 1.3, len(gained)) if metric.endswith("_errors") else 1.0
        values = self.values(host, metric, device) + np.cumsum(gained * wobble)
        self.put(host, metric, device, values, slow=slow)

    # ---- healthy ------------------------------------------------------------------------------------------------

    def _gpus(self) -> None:
        job, random = self.job, self.job.random
        count = len(self.times)
        clock_max = float(self.profile.max_sm_clock_mhz)
        limit = self.profile.power_default_limit_mw / 1000
        slowdown = float(self.profile.slowdown_celsius)
        for rank in range(job.shape[0]):
            host, uuid = self.hosts[rank], self.uuids[rank]
            ambient = 58 + 6 * random.random()
            self.put(host, "gpu.sm_clock_mhz", uuid, clock_max - 15.0 * random.integers(0, 3, count))
            self.put(host, "gpu.temperature_celsius", uuid, ambient + random.normal(0, 1, count))
            self.put(host, "gpu.power_watts", uuid, random.normal(0.85 * limit, 0.02 * limit, count))
            self.constant(host, "gpu.clock_event_reasons", uuid, 0.0, slow=False)
            self.constant(host, "gpu.utilization_ratio", uuid, 1.0, slow=False)
            for metric in sorted(set(HELD.values())):
                self.constant(host, metric, uuid, float(5 * SECOND), slow=False)
            for metric, value in (
                ("gpu.slowdown_temperature_celsius", slowdown),
                ("gpu.sm_clock_max_mhz", clock_max),
                ("gpu.power_limit_watts", limit),
                ("gpu.power_default_limit_watts", limit),
                ("gpu.ecc_corrected_volatile", 2.0),
                ("gpu.ecc_uncorrected_volatile", 0.0),
                ("gpu.ecc_uncorrected_aggregate", 1.0),
                ("gpu.row_remap_pending", 0.0),
                ("gpu.row_remap_failure", 0.0),
                ("gpu.pcie_link_width", 16.0),
                ("gpu.pcie_link_width_max", 16.0),
                ("gpu.pcie_link_generation", 5.0),
                ("gpu.pcie_link_generation_max", 5.0),
                ("gpu.pcie_link_speed_ratio", 1.0),
                ("gpu.pcie_replays", 3.0),
                ("gpu.mig_mode", 0.0),
                ("gpu.processes", 1.0),
            ):
                self.constant(host, metric, uuid, value)
            self.constant(host, "gpu_process.sm_utilization_ratio", process_on(uuid, 1000 + rank), 0.95)
            for link in range(_LINKS):
                for metric in ("nvlink.crc_errors", "nvlink.replay_errors", "nvlink.recovery_errors"):
                    self.constant(host, metric, link_of(uuid, link), 0.0)
                self.constant(host, "nvlink.state", link_of(uuid, link), 1.0)

    def _host_readings(self) -> None:
        seconds = (self.times - self.times[0]) / SECOND
        slow_seconds = (self.slow - self.slow[0]) / SECOND
        for name in dict.fromkeys(self.hosts):
            for metric, device, rate in _HOST_RATES:
                self.put(name, metric, device, rate * seconds)
            for metric in ("host.swap_in_pages", "host.swap_out_pages", "host.refaulted_pages"):
                self.constant(name, metric, "", 10.0, slow=False)
            self.put(name, "host.cpu_frequency_mhz", "", self.job.random.normal(CORE_MHZ, 20, len(self.times)))
            self.constant(name, "host.cpu_frequency_max_mhz", "", CORE_MHZ + 300)
            self.constant(name, "host.memory_available_bytes", "", 6e11)
            self.constant(name, "host.memory_total_bytes", "", 1e12)
            for metric in ("ib.symbol_errors", "ib.link_error_recoveries", "ib.link_downed", "ib.out_of_sequence"):
                self.constant(name, metric, PORT, 1.0)
            self.constant(name, "ib.port_state", PORT, 4.0)
            for metric, rate in _PORT_RATES:
                self.put(name, metric, PORT, rate * slow_seconds * self.job.random.uniform(0.5, 1.5), slow=True)
        gpus = self.job.scenario.node.gpus
        workload = self.job.scenario.workload
        prepared = 0.5 * SECOND * workload.data_ms / max(self.job.step_ms, 1.0)
        for rank in range(self.job.shape[0]):
            device, host = f"rank:{rank}", self.hosts[rank]
            self.constant(host, "process.workers_blocked", device, 0.0)
            self.constant(host, "process.numa_node", device, float(numa_node(rank, gpus)))
            for metric, rate in (*_RANK_RATES, ("process.worker_cpu_ns", prepared)):
                self.put(host, metric, device, rate * slow_seconds, slow=True)


def numa_node(rank: int, gpus: int) -> int:
    """Node of a rank's GPU: a host has two, with half of its GPUs each."""
    return rank % gpus * 2 // gpus
