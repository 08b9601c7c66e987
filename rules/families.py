"""Which function looks at which family of evidence. The names are those of the evidence table."""

from __future__ import annotations

from collections.abc import Mapping

from rankscope.rules import (
    evidence_gpu,
    evidence_host,
    evidence_limits,
    evidence_link,
    evidence_machine,
    evidence_parallel,
    evidence_path,
    evidence_step,
    history,
)
from rankscope.rules.evidence import Family
from rankscope.rules.gpu_trouble import LOOKS

#: Families looked at on a slowness. Those of crashes and hangs are read from events (incident.py).
SLOWNESS: Mapping[str, Family] = {
    "thermal": evidence_gpu.thermal,
    "application-clocks": evidence_gpu.application_clocks,
    "clocks": evidence_gpu.clocks,
    "power-cap": evidence_gpu.power_cap,
    "hw-slowdown": evidence_limits.hw_slowdown,
    "power-brake": evidence_limits.power_brake,
    "power-limit": evidence_limits.power_limit,
    "sync-boost": evidence_limits.sync_boost,
    "foreign": evidence_limits.foreign,
    "instance": evidence_limits.instance,
    "pcie-width": evidence_link.pcie_width,
    "pcie-replays": evidence_link.pcie_replays,
    "cpu": evidence_host.cpu,
    "cpu-frequency": evidence_machine.cpu_frequency,
    "memory": evidence_machine.memory,
    "numa": evidence_machine.numa,
    "storage": evidence_host.storage,
    "file-server": evidence_machine.file_server,
    "refaults": evidence_machine.refaults,
    "loader": evidence_host.loader,
    "worker-cpu": evidence_host.worker_cpu,
    "compute": evidence_step.compute,
    "data-wait": evidence_step.data_wait,
    "copy": evidence_parallel.copies,
    "transfer": evidence_parallel.transfer,
    "arrival": evidence_step.arrival,
    "starved": evidence_step.starved,
    "launch": evidence_step.launch,
    "gc": evidence_step.garbage,
    "checkpoint": evidence_step.checkpoint,
    "compile": evidence_parallel.compiling,
    "allocator": evidence_parallel.allocator,
    "pause": evidence_parallel.pauses,
    "sync": evidence_step.sync,
    "work": evidence_step.work,
    "stage": evidence_parallel.stage,
    "expert": evidence_parallel.expert,
}
#: Families looked for anywhere in the job, where its transfers or the waits of all ranks grew.
ANYWHERE: Mapping[str, Family] = {
    "nvlink": evidence_link.nvlink,
    "link-down": evidence_link.link_down,
    "link-errors": evidence_link.link_errors,
    "congestion": evidence_link.congestion,
    "round-trip": evidence_path.round_trips,
}
#: Families looked at on a crash or hang.
INCIDENT = (*LOOKS, "killed", "exception", "behind", "no-space", "mismatch", "device-memory")
#: Looked up where a site keeps a record of past jobs.
PAST = (history.FAMILY,)
