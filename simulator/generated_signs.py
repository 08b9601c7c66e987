"""What faults and innocent oddities do to the readings of a generated job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rankscope.gpu_device import link_of, process_on
from rankscope.simulator.generated_confounders import span_of as odd_span
from rankscope.simulator.generated_confounders import steps_of as odd_steps
from rankscope.simulator.generated_faults import flaps, rows_of, span_of
from rankscope.simulator.generated_job import BoolArray
from rankscope.simulator.generated_readings import CORE_MHZ, DISK, HELD, MOUNT, PORT, Readings
from rankscope.simulator.scenario import Confounder, Fault
from rankscope.window import SeriesKey

_HOT_CELSIUS = 88.0
_BIT = {
    "gpu-thermal-slowdown": 0x48,
    "cooling-plant": 0x20,
    "gpu-hw-slowdown": 0x8,
    "gpu-clocks-locked": 0x2,
    "gpu-power-brake": 0x88,
    "gpu-power-limit-low": 0x4,
    "gpu-sync-boost": 0x10,
}
_HOT = ("gpu-thermal-slowdown", "cooling-plant")


def show(readings: Readings) -> None:
    """Let every fault with counters, and every oddity, show in the readings."""
    for fault in readings.job.scenario.faults:
        if fault.counters:
            _fault(readings, fault)
    for confounder in readings.job.scenario.confounders:
        _oddity(readings, confounder)


def _fault(readings: Readings, fault: Fault) -> None:
    steps = span_of(readings.job, fault)
    for row in rows_of(readings.job, fault):
        host, uuid, rank = readings.hosts[row], readings.uuids[row], f"rank:{row}"
        slug = fault.class_slug
        if slug in _BIT or slug == "noisy-neighbour":
            _held(readings, fault, host, uuid, steps)
        elif slug in _ON_GPU:
            _ON_GPU[slug](readings, host, uuid, steps, fault)
        elif slug in _ON_RANK:
            _ON_RANK[slug](readings, host, rank, steps, fault)
    if fault.class_slug in _ON_HOST:
        for host in dict.fromkeys(readings.hosts[row] for row in rows_of(readings.job, fault)):
            _ON_HOST[fault.class_slug](readings, host, steps, fault)


def _held(readings: Readings, fault: Fault, host: str, uuid: str, steps: BoolArray) -> None:
    """The clock goes down, and the GPU says why."""
    slug = fault.class_slug
    if slug == "noisy-neighbour":
        readings.change(host, "gpu.processes", uuid, steps, 2.0)
        other = process_on(uuid, 70_000)
        readings.constant(host, "gpu_process.sm_utilization_ratio", other, 0.0)
        readings.change(host, "gpu_process.sm_utilization_ratio", other, steps, 1 - 1 / fault.severity, 0.02)
        return
    readings.change(host, "gpu.clock_event_reasons", uuid, steps, float(_BIT[slug]))
    clock = round(float(readings.profile.max_sm_clock_mhz) / fault.severity / 15) * 15.0
    readings.change(host, "gpu.sm_clock_mhz", uuid, steps, clock, 0.0 if slug == "gpu-clocks-locked" else 8.0)
    if slug in _HOT:
        readings.change(host, "gpu.temperature_celsius", uuid, steps, _HOT_CELSIUS, 0.7)
    if slug in HELD:
        readings.grow(host, HELD[slug], uuid, steps, 1e9)
    if slug == "gpu-power-limit-low":
        limit = readings.profile.power_default_limit_mw / 1000 / fault.severity**2
        readings.change(host, "gpu.power_limit_watts", uuid, steps, limit)
        readings.change(host, "gpu.power_watts", uuid, steps, limit, 2.0)


def _nvlink(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    for metric, rate in (("nvlink.crc_errors", 300.0), ("nvlink.replay_errors", 5.0)):
        readings.grow(host, metric, link_of(uuid, 1), steps, rate)


def _narrow(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    readings.change(host, "gpu.pcie_link_width", uuid, steps, 4.0)
    readings.change(host, "gpu.pcie_link_speed_ratio", uuid, steps, 0.25)


def _replays(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    readings.grow(host, "gpu.pcie_replays", uuid, steps, 40.0)


def _split(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    readings.change(host, "gpu.mig_mode", uuid, steps, 1.0)


def _corrected(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    readings.grow(host, "gpu.ecc_corrected_volatile", uuid, steps, 50.0)


def _uncorrected(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    for metric in ("gpu.ecc_uncorrected_volatile", "gpu.ecc_uncorrected_aggregate"):
        values = readings.values(host, metric, uuid)
        first = np.flatnonzero(readings.during(steps, slow=True))
        values[first[0] if len(first) else -1 :] += 1
        readings.put(host, metric, uuid, values, slow=True)


def _pending(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    readings.change(host, "gpu.row_remap_pending", uuid, steps, 1.0)


def _failed(readings: Readings, host: str, uuid: str, steps: BoolArray, _fault: Fault) -> None:
    readings.change(host, "gpu.row_remap_failure", uuid, steps, 1.0)


def _busy_core(readings: Readings, host: str, rank: str, steps: BoolArray, fault: Fault) -> None:
    readings.grow(host, "process.involuntary_switches", rank, steps, 200.0 * fault.severity)
    readings.grow(host, "host.pressure_cpu_some_ns", "", steps, 0.3e9)


def _far_node(readings: Readings, host: str, rank: str, steps: BoolArray, _fault: Fault) -> None:
    readings.change(host, "process.numa_node", rank, steps, 1.0 - readings.values(host, "process.numa_node", rank)[0])


def _busy_workers(readings: Readings, host: str, rank: str, steps: BoolArray, fault: Fault) -> None:
    workload = readings.job.scenario.workload
    busy = max(1, workload.workers) * min(1.0, fault.severity / 5)
    readings.grow(host, "process.worker_cpu_ns", rank, steps, 0.9e9 * busy)


def _slow_cores(readings: Readings, host: str, steps: BoolArray, fault: Fault) -> None:
    readings.change(host, "host.cpu_frequency_mhz", "", steps, max(800.0, CORE_MHZ / fault.severity), 15.0)


def _no_memory(readings: Readings, host: str, steps: BoolArray, _fault: Fault) -> None:
    readings.grow(host, "host.pressure_memory_some_ns", "", steps, 0.35e9)
    readings.grow(host, "host.major_faults", "", steps, 2_000.0)
    readings.grow(host, "host.swap_in_pages", "", steps, 4_000.0)
    readings.change(host, "host.memory_available_bytes", "", steps, 4e9)


def _thrash(readings: Readings, host: str, steps: BoolArray, _fault: Fault) -> None:
    readings.grow(host, "host.refaulted_pages", "", steps, 30_000.0)
    readings.grow(host, "disk.read_bytes", DISK, steps, 1.5e9)
    readings.grow(host, "host.pressure_io_some_ns", "", steps, 0.15e9)


def _slow_disk(readings: Readings, host: str, steps: BoolArray, _fault: Fault) -> None:
    readings.grow(host, "host.pressure_io_some_ns", "", steps, 0.6e9)
    readings.grow(host, "host.pressure_io_full_ns", "", steps, 0.4e9)
    readings.grow(host, "disk.read_ns", DISK, steps, 80 * 60e6)
    _blocked(readings, host, steps, blkio=True)


def _blocked(readings: Readings, host: str, steps: BoolArray, *, blkio: bool) -> None:
    for row, name in enumerate(readings.hosts):
        if name == host:
            readings.change(host, "process.workers_blocked", f"rank:{row}", steps, 1.0)
            if blkio:
                readings.grow(host, "process.blkio_ns", f"rank:{row}", steps, 0.5e9)


def _slow_server(readings: Readings, host: str, steps: BoolArray, _fault: Fault) -> None:
    for metric in ("nfs.rtt_ns", "nfs.execute_ns"):
        readings.grow(host, metric, f"READ {MOUNT}", steps, 50 * 60e6)
    _blocked(readings, host, steps, blkio=False)


def _flapping(readings: Readings, host: str, steps: BoolArray, fault: Fault) -> None:
    down = flaps(readings.job, fault)
    begins = down & ~np.concatenate(([False], down[:-1]))
    count = np.searchsorted(readings.starts[begins], readings.slow, side="right").astype(np.float64)
    readings.put(host, "ib.link_downed", PORT, 1.0 + count, slow=True)
    readings.grow(host, "ib.symbol_errors", PORT, steps, 2.0)


def _symbols(readings: Readings, host: str, steps: BoolArray, _fault: Fault) -> None:
    readings.grow(host, "ib.symbol_errors", PORT, steps, 400.0)
    readings.grow(host, "ib.link_error_recoveries", PORT, steps, 0.5)


def _congested(readings: Readings, host: str, steps: BoolArray, _fault: Fault) -> None:
    for metric, rate in (("ib.transmit_wait_ticks", 4e8), ("ib.cnps_handled", 3e4), ("ib.ecn_marked_packets", 3e4)):
        readings.grow(host, metric, PORT, steps, rate)


def _oddity(readings: Readings, odd: Confounder) -> None:
    job = readings.job
    steps = odd_span(job, odd)
    place = odd.gpu if odd.gpu is not None and odd.gpu < job.shape[0] else 0
    host, uuid = readings.hosts[place], readings.uuids[place]
    if odd.kind == "power-cap":
        clock = round(float(readings.profile.max_sm_clock_mhz) / odd.severity / 15) * 15.0
        for each_host, each in zip(readings.hosts, readings.uuids, strict=True):
            readings.change(each_host, "gpu.clock_event_reasons", each, steps, 4.0)
            readings.change(each_host, "gpu.sm_clock_mhz", each, steps, clock, 12.0)
            readings.grow(each_host, "gpu.throttle_sw_power_ns", each, steps, 0.95e9)
    elif odd.kind == "ecc-history":
        for metric in ("gpu.ecc_uncorrected_aggregate", "gpu.ecc_uncorrected_volatile"):
            readings.constant(host, metric, uuid, 41.0)
    elif odd.kind == "idle-pcie-downshift":
        # Read while the link idles: now and then, and never under load (the speed ratio is absent then).
        low = job.random.random(len(readings.slow)) < 0.5
        readings.put(host, "gpu.pcie_link_generation", uuid, np.where(low, 1.0, 5.0), slow=True)
        del readings.series[SeriesKey(host, "gpu.pcie_link_speed_ratio", uuid)]
    elif odd.kind == "healed-flap":
        where = readings.hosts[int(np.flatnonzero(job.host_of == (odd.host or 0))[0])]
        count = (readings.slow > readings.slow[len(readings.slow) // 2]).astype(np.float64)
        readings.put(where, "ib.link_downed", PORT, 1.0 + count, slow=True)
    elif odd.kind == "telemetry-missing":
        for key in [key for key in readings.series if key.device.startswith(uuid)]:
            del readings.series[key]
    elif odd.kind == "hot-chassis":
        values = readings.values(host, "gpu.temperature_celsius", uuid) + odd.severity
        limit = float(readings.profile.slowdown_celsius) - 6
        readings.put(host, "gpu.temperature_celsius", uuid, np.minimum(values, limit))
    elif odd.kind == "brief-throttle":
        brief = (np.arange(job.shape[1]) % 75 == 40) & steps
        readings.change(host, "gpu.clock_event_reasons", uuid, brief, float(0x20))
        readings.grow(host, "gpu.throttle_sw_thermal_ns", uuid, brief, 1e9)
    elif odd.kind == "asynchronous-checkpoint":
        busy = odd_steps(job, odd)
        for later in range(1, 5):
            busy[later:] |= odd_steps(job, odd)[:-later]
        for name in dict.fromkeys(readings.hosts):
            readings.grow(name, "disk.write_bytes", DISK, busy, 2e9)
            readings.grow(name, "host.pressure_io_some_ns", "", busy, 0.5e9)


_ON_GPU: Mapping[str, Callable[[Readings, str, str, BoolArray, Fault], None]] = {
    "nvlink-degraded": _nvlink,
    "pcie-downgraded": _narrow,
    "pcie-replays": _replays,
    "mig-misconfigured": _split,
    "gpu-ecc-corrected-storm": _corrected,
    "gpu-ecc-uncorrectable": _uncorrected,
    "gpu-row-remap-pending": _pending,
    "gpu-row-remap-failed": _failed,
}
_ON_RANK: Mapping[str, Callable[[Readings, str, str, BoolArray, Fault], None]] = {
    "cpu-contention": _busy_core,
    "numa-misbound": _far_node,
    "input-bound": _busy_workers,
}
_ON_HOST: Mapping[str, Callable[[Readings, str, BoolArray, Fault], None]] = {
    "cpu-frequency-low": _slow_cores,
    "memory-pressure": _no_memory,
    "page-cache-thrash": _thrash,
    "slow-storage": _slow_disk,
    "network-filesystem-slow": _slow_server,
    "network-link-flap": _flapping,
    "network-link-errors": _symbols,
    "network-congestion": _congested,
}
