"""Readings and events: what the probes and the agent say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple, Protocol, runtime_checkable


class Outcome(StrEnum):
    """How one read of one group ended. Missing is never zero."""

    OK = "ok"
    NO_DATA = "no data"
    UNSUPPORTED = "unsupported"
    NO_PERMISSION = "no permission"
    FAILED = "failed"


class Reading(NamedTuple):
    """One value of one metric of one device at one time (CLOCK_MONOTONIC ns). A missing value has no Reading.

    A tuple: hundreds are made a second, and a frozen dataclass takes three times as long to make.
    """

    metric: str
    value: float
    time_ns: int
    #: GPU UUID, disk, interface, "rank:3"; "" for the host itself.
    device: str = ""


def readings_of(values: Mapping[str, float], time_ns: int, device: str = "") -> list[Reading]:
    """Metric -> value of one device at one time as readings, in half the time that making each by its name takes."""
    make = tuple.__new__
    return [make(Reading, (metric, value, time_ns, device)) for metric, value in values.items()]


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


#: Every kind of event, with what it means and its attributes. An attribute that is not known is absent or None. Events
#: of the kernel log may have `repeated`: so many more alike came at once.
EVENT_KINDS = {
    "xid": "the NVIDIA driver reported an error of a GPU: number, message, source (nvml or kernel-log), pci, pid, "
    "process; where the message says so previous (the Xid that caused it), gpu_instance, compute_instance, channel, "
    "unit (of the GPU or link), address, link, severity (fatal, nonfatal, link-fatal), registers or intr_info and "
    "error_status, injected, action_before, action (numbers of NVML's recovery action), action_text, reset (0, 1)",
    "sxid": "the NVIDIA driver reported an error of an NVSwitch: number, message, switch, fatal (0, 1), link, pci",
    "gpu-lost": "NVML says the GPU is lost or it vanished from the bus: source",
    "gpu-event": "a structured GPU event of the driver: source_module, event_code, severity, xid, group, primary",
    "gpu-described": "a GPU as its driver tells it, once and after a change: name, driver, firmware, NUMA node, peers",
    "gpu-shared": "a process that is none of the job's uses its GPU: pid, process, memory_bytes, and where it runs",
    "gpu-counters-reset": "a GPU's counters began anew (reset or driver reload): uptime_seconds",
    "gpu-fallen-off": "the kernel log says a GPU has fallen off the bus: pci",
    "gpu-init-failed": "the kernel log says a GPU could not be initialised: pci, code",
    "probe-stalled": "a call did not return by its deadline: probe, waited_ns",
    "probe-recovered": "a stalled source answers again: probe, waited_ns",
    "probe-failed": "a source failed: probe, outcome",
    "governor": "what watching costs was changed to hold its budget: probe, period_ns; or rank, told to stop watching",
    "burst": "a trigger raised the rates of its devices for a while: reason, begin_ns, end_ns (kept in full), devices",
    "oom-kill": "the kernel killed a process for memory: pid, process, scope (host, cgroup, cpuset, policy), cgroup "
    "(whose limit it was), task_cgroup, resident_bytes",
    "hung-task": "the kernel reports a task blocked for long: pid, process, seconds",
    "cpu-lockup": "the kernel reports a core that is stuck: lockup (soft, hard, rcu), cpu, seconds, pid, process",
    "process-fault": "a process died of its own code: pid, process, fault (segfault, general protection, ...), where",
    "pcie-error": "a PCIe device reported an error: pci, severity (correctable, nonfatal, fatal), layer, agent",
    "pcie-link": "a PCIe slot's link changed: pci (of the port above), state (down, up), slot",
    "memory-error": "host memory reported an error: severity (corrected, uncorrected), controller, count, dimm",
    "machine-check": "a processor reported an error: severity (corrected, uncorrected, fatal), cpu, bank, status",
    "cpu-throttled": "a processor was too hot and slowed down: cpu, scope (core, package), count",
    "nvlink-error": "the NVIDIA driver or a link's own log reports trouble with an NVLink: pci, link, message",
    "network-link": "a network link changed: state (up, down), interface, source (kernel-log, sysfs), pci, before, now",
    "storage-server": "a storage server changed: filesystem (nfs, lustre), server, state (silent, timed-out, lost, ok)",
    "filesystem-stalled": "a filesystem of the job does not answer: path, waited_ns",
    "filesystem-recovered": "a filesystem that stalled answers again: path, waited_ns",
    "disk-error": "the kernel reports an error of a disk: disk, error",
    "kernel-log-lost": "kernel log lines were overwritten before they were read: count",
    "rank-attached": "a rank's ring was found: pid, gpu_uuid, device_clock; container, runtime, pod, pod_name, "
    "pod_namespace, slurm_job, slurm_step, slurm_task where it runs in one",
    "rank-exited": "a rank's process is gone: pid, clean (1 where it said goodbye), last_step, phase, signal",
    "rank-exception": "the rank's training thread ended with an exception: type, step",
    "rank-hung": "a rank makes no progress: step, phase, since_ns, state (kernel's process state), waited_ns",
    "rank-stacks": "stacks of a rank's threads: text holds them; source",
    "ring-overwritten": "records were overwritten before they were read: count",
    "ring-damaged": "slots were unreadable: count",
    "training-nonfinite": "the output of a module was NaN or infinite: step; text names the module",
    "memory-snapshot": "the allocator's state was left in a file, where memory ran out or on request: step; text",
    "profiler-window": "a rank recorded a window of the profiler: step, cost_ns (all that it cost the training)",
    "kernel-stalls": "what a window showed, in text: bound, step_us, idle_fraction, overlap_fraction, tensor_fraction, "
    "launches, host_wait_fraction (of the idle time: nothing was launched, or just now); stall_kernel, stall_cause, "
    "stall_us, stall_operator, stall_source, stall_host_doing of the longest stall",
    "step-rule": "what the hooks take for a step of this job: text says it",
    "rank-degraded": "a rank's hooks lost a signal: text says which",
    "clock-parted": "the wall clock was set or the host slept: set_ns (forward, or back where negative), slept_ns",
    "agent-started": "an agent began to record: pid, restart",
    "agent-stopped": "an agent ended: reason",
    "readings-thinned": "old readings were thinned to hold the recording's size: count",
    "recording-lost": "rows could not be written (disk full or limit reached) and are gone: count",
    "export-dropped": "batches were given up to hold the outbox's quota: batches, points",
}


class Priority(IntEnum):
    """What a group is worth when watching has to cost less: the lowest is stretched first."""

    #: Context that changes or explains seldom.
    LOW = 0
    NORMAL = 1
    #: What findings rest on.
    HIGH = 2
    #: Never stretched: what it misses is gone for good (events), or it costs next to nothing.
    VITAL = 3


@dataclass(frozen=True, slots=True)
class Group:
    """Metrics that are read together, at a steady period and, after a trigger, at a burst period (ns), and why."""

    name: str
    steady_ns: int
    burst_ns: int
    why: str
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one read of one group returned. Outcomes that are not OK name the device (or "") and the reason."""

    readings: Sequence[Reading] = ()
    events: Sequence[Event] = ()
    outcomes: Sequence[tuple[str, Outcome, str]] = ()
    #: CPU time that helper processes spent on it, ns; the reading thread's own is measured by the agent.
    helper_cpu_ns: int = 0
    #: Time that calls into a driver took by its own account (NVML: latencyUsec), ns.
    driver_ns: int = 0


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


@runtime_checkable
class DeviceProbe(Protocol):
    """A probe that can also read some of its devices only: a burst reads those concerned.

    It has all that a `Probe` has besides.
    """

    @property
    def devices(self) -> Sequence[str]:
        """Every device found so far, in a lasting order; empty before the first read. Called from any thread."""
        ...

    def read_devices(self, group: str, now_ns: int, devices: frozenset[str]) -> ProbeResult:
        """Read one group of these devices now; names that are not among `devices` are passed over."""
        ...


@runtime_checkable
class WakingProbe(Protocol):
    """A probe that the kernel tells when there is something to read."""

    @property
    def descriptor(self) -> int | None:
        """What to wait on, edge-triggered; None where there is nothing. Asked for once."""
        ...


@runtime_checkable
class GroupsProbe(Protocol):
    """A probe that can read several groups at once for less than one after the other."""

    def read_groups(self, groups: Sequence[str], now_ns: int, devices: frozenset[str] | None) -> Sequence[ProbeResult]:
        """Read these groups now, of these devices or (None) of all; a result for each, in order."""
        ...
