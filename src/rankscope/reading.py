"""Readings and events: what the probes and the agent say, and the table of every metric's name, unit and kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Outcome(StrEnum):
    """How one read of one group ended. Missing is never zero."""

    OK = "ok"
    NO_DATA = "no data"
    UNSUPPORTED = "unsupported"
    NO_PERMISSION = "no permission"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of one metric of one device at one time (CLOCK_MONOTONIC ns). A missing value has no Reading."""

    metric: str
    value: float
    time_ns: int
    #: GPU UUID, disk, interface, "rank:3"; "" for the host itself.
    device: str = ""


class Severity(StrEnum):
    """How bad an event or finding is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at one time. `kind` is one of EVENT_KINDS."""

    kind: str
    time_ns: int
    text: str
    severity: Severity = Severity.INFO
    #: GPU UUID, disk or interface concerned; "" for the host itself.
    device: str = ""
    rank: int | None = None
    #: Host it happened on; filled in by the recording.
    host: str = ""
    attributes: dict[str, str | int | float | None] = field(default_factory=dict)


#: Every kind of event, with what it means and its attributes.
EVENT_KINDS = {
    "xid": "the NVIDIA driver reported an error: number, message, source (nvml or kernel-log), pci",
    "gpu-lost": "NVML says the GPU is lost or it vanished from the bus: source",
    "gpu-fallen-off": "the kernel log says a GPU has fallen off the bus: pci",
    "probe-stalled": "a call did not return by its deadline: probe, waited_ns",
    "probe-recovered": "a stalled source answers again: probe, waited_ns",
    "probe-failed": "a source failed: probe, outcome",
    "governor": "what watching costs was lowered to hold its budget: probe, period_ns; or rank, told to stop watching",
    "oom-kill": "the kernel killed a process for memory: pid, process",
    "hung-task": "the kernel reports a task blocked for long: pid, process",
    "kernel-log-lost": "kernel log lines were overwritten before they were read: count",
    "rank-attached": "a rank's ring was found: pid, gpu_uuid, device_clock",
    "rank-exited": "a rank's process is gone: pid, clean (1 where it said goodbye), last_step, phase, signal",
    "rank-exception": "the rank's training thread ended with an exception: type, step",
    "rank-hung": "a rank makes no progress: step, phase, since_ns, state (kernel's process state), waited_ns",
    "rank-stacks": "stacks of a rank's threads: text holds them; source",
    "ring-overwritten": "records were overwritten before they were read: count",
    "ring-damaged": "slots were unreadable: count",
    "rank-degraded": "a rank's hooks lost a signal: text says which",
    "agent-started": "an agent began to record: pid, restart",
    "agent-stopped": "an agent ended: reason",
    "readings-thinned": "old readings were thinned to hold the recording's size: count",
    "recording-lost": "rows could not be written (disk full or limit reached) and are gone: count",
    "export-dropped": "batches were given up to hold the outbox's quota: batches, points",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """Name, unit and meaning of one series; `counter` where only differences mean something."""

    name: str
    unit: str
    counter: bool
    #: Name at the OTLP edge: OpenTelemetry semantic conventions where one exists.
    otel: str
    description: str


def _gauge(name: str, unit: str, otel: str, description: str) -> Metric:
    return Metric(name, unit, False, otel, description)


def _counter(name: str, unit: str, otel: str, description: str) -> Metric:
    return Metric(name, unit, True, otel, description)


_METRICS = (
    _gauge(
        "gpu.utilization_ratio",
        "1",
        "hw.gpu.utilization",
        "Share of time in which a kernel ran, spin-waits included",
    ),
    _gauge(
        "gpu.memory_utilization_ratio",
        "1",
        "rankscope.gpu.memory.activity",
        "Share of time in which memory was read or written",
    ),
    _gauge("gpu.memory_used_bytes", "By", "hw.gpu.memory.usage", "Device memory in use"),
    _gauge("gpu.memory_total_bytes", "By", "hw.gpu.memory.limit", "Device memory there is"),
    _gauge("gpu.power_watts", "W", "hw.power", "Board power, averaged by the device"),
    _gauge("gpu.power_instant_watts", "W", "rankscope.gpu.power.instant", "Board power at the moment"),
    _gauge("gpu.power_limit_watts", "W", "rankscope.gpu.power.limit", "Enforced power limit"),
    _gauge(
        "gpu.power_default_limit_watts",
        "W",
        "rankscope.gpu.power.limit.default",
        "Power limit the board ships with",
    ),
    _counter("gpu.energy_joules", "J", "hw.energy", "Energy drawn since the driver was loaded"),
    _gauge("gpu.sm_clock_mhz", "MHz", "rankscope.gpu.clock.sm", "Clock of the streaming multiprocessors"),
    _gauge("gpu.sm_clock_max_mhz", "MHz", "rankscope.gpu.clock.sm.max", "Highest SM clock of the device"),
    _gauge("gpu.memory_clock_mhz", "MHz", "rankscope.gpu.clock.memory", "Memory clock"),
    _gauge(
        "gpu.clock_event_reasons",
        "1",
        "rankscope.gpu.clock.event_reasons",
        "Why the clock is where it is (NVML bit mask)",
    ),
    _counter(
        "gpu.throttle_sw_power_ns",
        "ns",
        "rankscope.gpu.throttle.sw_power",
        "Time held down by the software power cap",
    ),
    _counter(
        "gpu.throttle_sw_thermal_ns",
        "ns",
        "rankscope.gpu.throttle.sw_thermal",
        "Time held down by software thermal slowdown",
    ),
    _counter(
        "gpu.throttle_sync_boost_ns",
        "ns",
        "rankscope.gpu.throttle.sync_boost",
        "Time held down by sync boost",
    ),
    _counter(
        "gpu.throttle_hw_thermal_ns",
        "ns",
        "rankscope.gpu.throttle.hw_thermal",
        "Time held down by hardware thermal slowdown",
    ),
    _counter(
        "gpu.throttle_hw_power_brake_ns",
        "ns",
        "rankscope.gpu.throttle.hw_power_brake",
        "Time held down by the power brake",
    ),
    _gauge("gpu.temperature_celsius", "Cel", "hw.temperature", "GPU temperature"),
    _gauge("gpu.memory_temperature_celsius", "Cel", "rankscope.gpu.memory.temperature", "Memory temperature"),
    _gauge(
        "gpu.slowdown_temperature_celsius",
        "Cel",
        "rankscope.gpu.temperature.slowdown",
        "Temperature at which the device slows itself down",
    ),
    _counter(
        "gpu.ecc_corrected_volatile",
        "{error}",
        "rankscope.gpu.ecc.corrected",
        "Corrected ECC errors since the driver was loaded",
    ),
    _counter(
        "gpu.ecc_uncorrected_volatile",
        "{error}",
        "rankscope.gpu.ecc.uncorrected",
        "Uncorrected ECC errors since the driver was loaded",
    ),
    _counter(
        "gpu.ecc_corrected_aggregate",
        "{error}",
        "rankscope.gpu.ecc.corrected.lifetime",
        "Corrected ECC errors in the board's life (history, not an event)",
    ),
    _counter(
        "gpu.ecc_uncorrected_aggregate",
        "{error}",
        "rankscope.gpu.ecc.uncorrected.lifetime",
        "Uncorrected ECC errors in the board's life (history, not an event)",
    ),
    _counter("gpu.pcie_tx_bytes", "By", "rankscope.gpu.pcie.tx", "PCIe bytes sent"),
    _counter("gpu.pcie_rx_bytes", "By", "rankscope.gpu.pcie.rx", "PCIe bytes received"),
    _counter("gpu.pcie_replays", "{replay}", "rankscope.gpu.pcie.replays", "PCIe packets sent again"),
    _counter("gpu.nvlink_tx_bytes", "By", "rankscope.gpu.nvlink.tx", "NVLink payload bytes sent over all links"),
    _counter("gpu.nvlink_rx_bytes", "By", "rankscope.gpu.nvlink.rx", "NVLink payload bytes received over all links"),
    _counter(
        "host.cpu_busy_ns",
        "ns",
        "rankscope.host.cpu.busy",
        "CPU time spent by all cores outside idle and I/O wait",
    ),
    _counter("host.cpu_iowait_ns", "ns", "rankscope.host.cpu.iowait", "CPU time idle with I/O outstanding"),
    _counter("host.cpu_steal_ns", "ns", "rankscope.host.cpu.steal", "CPU time taken by the hypervisor"),
    _gauge("host.cpu_count", "{cpu}", "rankscope.host.cpu.count", "Cores online"),
    _gauge("host.load_runnable", "{thread}", "rankscope.host.runnable", "Threads runnable now"),
    _gauge(
        "host.memory_available_bytes",
        "By",
        "rankscope.host.memory.available",
        "Memory that could be given out without swapping",
    ),
    _gauge("host.memory_total_bytes", "By", "rankscope.host.memory.total", "Memory there is"),
    _counter("host.major_faults", "{fault}", "rankscope.host.major_faults", "Page faults that needed I/O"),
    _counter("host.swap_in_pages", "{page}", "rankscope.host.swap.in", "Pages swapped in"),
    _counter(
        "host.pressure_cpu_some_ns",
        "ns",
        "rankscope.host.pressure.cpu.some",
        "Time in which some task waited for a core",
    ),
    _counter(
        "host.pressure_memory_some_ns",
        "ns",
        "rankscope.host.pressure.memory.some",
        "Time in which some task waited for memory",
    ),
    _counter(
        "host.pressure_memory_full_ns",
        "ns",
        "rankscope.host.pressure.memory.full",
        "Time in which every task waited for memory",
    ),
    _counter(
        "host.pressure_io_some_ns",
        "ns",
        "rankscope.host.pressure.io.some",
        "Time in which some task waited for I/O",
    ),
    _counter(
        "host.pressure_io_full_ns",
        "ns",
        "rankscope.host.pressure.io.full",
        "Time in which every task waited for I/O",
    ),
    _counter("disk.read_bytes", "By", "rankscope.disk.read", "Bytes read"),
    _counter("disk.write_bytes", "By", "rankscope.disk.write", "Bytes written"),
    _counter("disk.reads", "{operation}", "rankscope.disk.reads", "Reads completed"),
    _counter("disk.writes", "{operation}", "rankscope.disk.writes", "Writes completed"),
    _counter("disk.read_ns", "ns", "rankscope.disk.read.time", "Time spent by all reads"),
    _counter("disk.write_ns", "ns", "rankscope.disk.write.time", "Time spent by all writes"),
    _counter("disk.busy_ns", "ns", "rankscope.disk.busy", "Time with I/O in flight"),
    _counter("net.rx_bytes", "By", "rankscope.net.rx", "Bytes received"),
    _counter("net.tx_bytes", "By", "rankscope.net.tx", "Bytes sent"),
    _counter("net.errors", "{error}", "rankscope.net.errors", "Packets lost to errors, both ways"),
    _counter("net.drops", "{packet}", "rankscope.net.drops", "Packets dropped, both ways"),
    _counter("process.cpu_ns", "ns", "rankscope.process.cpu", "CPU time of the rank's process, all threads"),
    _counter(
        "process.runqueue_ns",
        "ns",
        "rankscope.process.runqueue",
        "Time the rank's main thread was runnable but waited for a core",
    ),
    _counter(
        "process.read_bytes",
        "By",
        "rankscope.process.read",
        "Bytes the rank's process and its workers fetched from storage",
    ),
    _counter(
        "process.write_bytes",
        "By",
        "rankscope.process.write",
        "Bytes the rank's process and its workers sent to storage",
    ),
    _counter(
        "process.blkio_ns",
        "ns",
        "rankscope.process.blkio",
        "Time the rank's process and its workers were blocked on storage",
    ),
    _counter(
        "process.worker_cpu_ns",
        "ns",
        "rankscope.process.worker.cpu",
        "CPU time of the rank's child processes (loader workers)",
    ),
    _gauge(
        "process.workers_blocked",
        "{process}",
        "rankscope.process.workers.blocked",
        "Child processes in uninterruptible sleep (state D)",
    ),
    _counter(
        "process.major_faults",
        "{fault}",
        "rankscope.process.major_faults",
        "Page faults of the rank's process that needed I/O",
    ),
    _counter(
        "process.involuntary_switches",
        "{switch}",
        "rankscope.process.involuntary_switches",
        "Times the rank's main thread was preempted",
    ),
    _gauge("process.resident_bytes", "By", "rankscope.process.resident", "Resident memory of the rank's process"),
    _gauge("agent.cpu_ratio", "1", "rankscope.agent.cpu", "Share of one core used by the agent and its children"),
    _gauge("agent.pss_bytes", "By", "rankscope.agent.memory", "Proportional memory of the agent and its children"),
    _gauge("agent.probe_ns", "ns", "rankscope.agent.probe.duration", "How long the last read of a probe took"),
)

#: Every metric by name.
METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics that are read together, at a steady period and, after a trigger, at a burst period (ns), and why."""

    name: str
    steady_ns: int
    burst_ns: int
    why: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one read of one group returned. Outcomes that are not OK name the device (or "") and the reason."""

    readings: Sequence[Reading] = ()
    events: Sequence[Event] = ()
    outcomes: Sequence[tuple[str, Outcome, str]] = ()


class Probe(Protocol):
    """One source. `read` is called by the agent's scheduler, never from two threads at once."""

    @property
    def name(self) -> str:
        """What it is called in configuration, outcomes and docs."""
        ...

    @property
    def groups(self) -> Sequence[Group]:
        """What it reads together, and how often."""
        ...

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """Read one group now. Raises only ProbeError kinds."""
        ...

    def close(self) -> None:
        """Give back what was opened."""
        ...
