"""Which function looks at which family of evidence. The names are those of the evidence table."""

from __future__ import annotations

from collections.abc import Mapping

from rankscope.rules import evidence_gpu, evidence_host, evidence_step
from rankscope.rules.evidence import Family

#: Families looked at on a slowness. Those of crashes and hangs are read from events (incident.py).
SLOWNESS: Mapping[str, Family] = {
    "thermal": evidence_gpu.thermal,
    "application-clocks": evidence_gpu.application_clocks,
    "clocks": evidence_gpu.clocks,
    "power-cap": evidence_gpu.power_cap,
    "cpu": evidence_host.cpu,
    "storage": evidence_host.storage,
    "loader": evidence_host.loader,
    "worker-cpu": evidence_host.worker_cpu,
    "compute": evidence_step.compute,
    "data-wait": evidence_step.data_wait,
    "arrival": evidence_step.arrival,
    "starved": evidence_step.starved,
    "gc": evidence_step.garbage,
    "checkpoint": evidence_step.checkpoint,
    "sync": evidence_step.sync,
    "work": evidence_step.work,
}
#: Families looked at on a crash or hang.
INCIDENT = ("off-bus", "ecc", "killed", "exception", "behind")
