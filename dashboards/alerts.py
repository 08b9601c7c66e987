"""Alert rules over what the agent exports, for Prometheus and vmalert. `scripts/generated.py` writes the file.

JSON is YAML: the file is written as JSON, one rule an entry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

_RUNBOOKS = "docs/runbooks"


@dataclass(frozen=True)
class Alert:
    """One rule: what holds for how long, whom it concerns, and what to read."""

    name: str
    expression: str
    lasts: str
    severity: str
    side: str
    summary: str
    runbook: str


ALERTS = (
    Alert(
        "RankscopeGpuThermalSlowdown",
        "rate(rankscope_gpu_throttle_hw_thermal_nanoseconds_total[5m]) / 1e9 > 0.1",
        "5m",
        "critical",
        "hardware",
        "{{ $labels.hw_id }} on {{ $labels.host_name }} held itself down for heat in {{ $value | humanizePercentage }}"
        " of the time",
        "gpu-thermal-slowdown",
    ),
    Alert(
        "RankscopeGpuEccUncorrectable",
        "increase(rankscope_gpu_ecc_uncorrected_total[10m]) > 0",
        "0m",
        "critical",
        "hardware",
        "{{ $labels.hw_id }} on {{ $labels.host_name }} had an uncorrectable memory error",
        "gpu-ecc-uncorrectable",
    ),
    Alert(
        "RankscopeInputBound",
        'sum by (rankscope_job) (rate(rankscope_step_phase_duration_seconds_sum{rankscope_clock="host",'
        'rankscope_phase="data_wait"}[10m])) / sum by (rankscope_job)'
        ' (rate(rankscope_step_duration_seconds_sum{rankscope_clock="host"}[10m])) > 0.2',
        "10m",
        "warning",
        "code",
        "job {{ $labels.rankscope_job }} waits for data in {{ $value | humanizePercentage }} of its steps' time",
        "input-bound",
    ),
    Alert(
        "RankscopeStepSlower",
        'sum by (rankscope_job) (rate(rankscope_step_duration_seconds_sum{rankscope_clock="host"}[10m]))'
        ' / sum by (rankscope_job) (rate(rankscope_step_duration_seconds_count{rankscope_clock="host"}[10m]))'
        " > 1.1 * sum by (rankscope_job)"
        ' (rate(rankscope_step_duration_seconds_sum{rankscope_clock="host"}[1h] offset 30m))'
        " / sum by (rankscope_job)"
        ' (rate(rankscope_step_duration_seconds_count{rankscope_clock="host"}[1h] offset 30m))',
        "10m",
        "warning",
        "unknown",
        "steps of job {{ $labels.rankscope_job }} take over 10 % longer than they did an hour ago",
        "slow-rank-unexplained",
    ),
    Alert(
        "RankscopeNoProgress",
        "max by (rankscope_job) (rankscope_rank_step) == max by (rankscope_job) (rankscope_rank_step offset 15m)",
        "5m",
        "critical",
        "unknown",
        "no rank of job {{ $labels.rankscope_job }} has ended a step for 15 minutes",
        "rank-hang",
    ),
)


def rules_json() -> str:
    """The text of rules/rankscope.rules.json."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasts,
            "labels": {"severity": alert.severity, "side": alert.side},
            "annotations": {"summary": alert.summary, "runbook": f"{_RUNBOOKS}/{alert.runbook}.md"},
        }
        for alert in ALERTS
    ]
    return json.dumps({"groups": [{"name": "rankscope", "rules": rules}]}, indent=2) + "\n"
