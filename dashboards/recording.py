"""Recording rules: one name for what stores spell differently, and for what is dear to ask again and again.

Quantiles of native histograms: Prometheus sums the histograms themselves, VictoriaMetrics buckets with a `vmrange`.
One file a store gives the same series from either; dashboards and alerts read only these.
"""

from __future__ import annotations

import json
from typing import Any

STORES = ("prometheus", "victoriametrics")
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
#: Name in the middle of a rule -> (histogram, its labels, labels that stay).
_DURATIONS = {
    "step_duration_seconds": ("rankscope_step_duration_seconds", 'rankscope_clock="host"'),
    "data_wait_seconds": (
        "rankscope_step_phase_duration_seconds",
        'rankscope_clock="host", rankscope_phase="data_wait"',
    ),
    "collective_wait_seconds": ("rankscope_collective_wait_duration_seconds", ""),
}
_WINDOW = "[5m]"


def quantile(store: str, q: float, histogram: str, labels: str) -> str:
    """The quantile over all ranks of a job in the last five minutes."""
    if store == "prometheus":
        return f"histogram_quantile({q}, sum by (rankscope_job) (rate({histogram}{{{labels}}}{_WINDOW})))"
    return f"histogram_quantile({q}, sum by (rankscope_job, vmrange) (rate({histogram}_bucket{{{labels}}}{_WINDOW})))"


def rules(store: str) -> list[dict[str, Any]]:
    """Every recording rule for one store."""
    found: list[dict[str, Any]] = []
    for name, (histogram, labels) in _DURATIONS.items():
        for suffix, q in QUANTILES.items():
            expression = quantile(store, q, histogram, labels)
            found.append(
                {"record": f"rankscope_job:{name}:{suffix}", "expr": expression, "labels": {"quantile": suffix}}
            )
    steps = 'rankscope_step_duration_seconds_{}{{rankscope_clock="host"}}'
    mean = (
        f"sum by (rankscope_job) (rate({steps.format('sum')}[10m]))"
        f" / sum by (rankscope_job) (rate({steps.format('count')}[10m]))"
    )
    if store == "prometheus":
        histogram = 'rankscope_step_duration_seconds{rankscope_clock="host"}'
        mean = f"histogram_avg(sum by (rankscope_job) (rate({histogram}[10m])))"
    found.append({"record": "rankscope_job:step_duration_seconds:mean10m", "expr": mean})
    lost = "max by (rankscope_job, rankscope_class, rankscope_side, rankscope_rank) (rankscope_finding_gpu_hours)"
    found.append(
        {
            "record": "rankscope_job:gpu_hours_lost_per_day:sum",
            "expr": f"sum by (rankscope_job, rankscope_class, rankscope_side) ({lost})",
        }
    )
    return found


def _json(store: str) -> str:
    groups = [{"name": "rankscope-recording", "interval": "30s", "rules": rules(store)}]
    return json.dumps({"groups": groups}, indent=2) + "\n"


def prometheus_json() -> str:
    """The text of rules/recording.prometheus.json."""
    return _json("prometheus")


def victoriametrics_json() -> str:
    """The text of rules/recording.victoriametrics.json."""
    return _json("victoriametrics")
