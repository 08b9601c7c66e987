"""What the rules say, and what happened, as series: for dashboards and alerts that read metrics only.

A series of a family in LABELS names its subject in the reading's device, as `pack` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from rankscope.metric import counter, gauge

FINDING_METRICS = (
    gauge(
        "finding.confidence", "1", "rankscope.finding.confidence", "How sure the rules are of a finding that holds now"
    ),
    gauge("finding.ms_per_step", "ms", "rankscope.finding.cost", "What a finding that holds now costs a step"),
    gauge(
        "finding.gpu_hours_per_day",
        "h",
        "rankscope.finding.gpu_hours",
        "GPU-hours a day that a finding that holds now costs",
    ),
)
EVENT_METRICS = (
    counter("event.count", "{event}", "rankscope.events", "Events of a kind on this host since the agent began"),
)

#: Attributes that a packed device of each family stands for, in order. An empty part is no attribute.
LABELS = {
    "finding": ("rankscope.class", "rankscope.side", "rankscope.advice", "rankscope.rank", "hw.id"),
    "event": ("rankscope.event.kind", "rankscope.xid", "hw.id", "rankscope.rank"),
    "tcp": ("network.local.address", "network.peer.address"),
}


def pack(parts: Sequence[object]) -> str:
    """Parts of a subject as one string; None is empty."""
    return "|".join("" if part is None else str(part).replace("|", "_") for part in parts)


def unpack(family: str, device: str) -> dict[str, str]:
    """The attributes that a packed subject stands for."""
    return {name: part for name, part in zip(LABELS[family], device.split("|"), strict=False) if part}
