"""Alert rules over what the agent exports, for Prometheus and vmalert. `scripts/generated.py` writes the file.

JSON is YAML: the file is written as JSON, one rule an entry. Two windows must agree before a slow job pages: a short one says
that it still holds, a long one that it is no single step. `team` routes hardware to operators and code to the job's
owner; by `incident` the signs of a fault are silenced beside the finding that names it, so that one fault is one page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dashboards.expressions import risen

_RUNBOOKS = "docs/runbooks"
#: Whom a side concerns. What is unknown goes to the job's owner, who can try a swap.
_TEAM = {"hardware": "operators", "environment": "operators", "code": "owner", "unknown": "owner"}


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
    #: What it tells of: a finding by name, or a sign seen at a GPU, a host or a job.
    incident: str


def _held_down(reason: str) -> str:
    """Share of time held down, over a short and a long window."""
    counter = f"rankscope_gpu_throttle_{reason}_nanoseconds_total"
    return f"rate({counter}[5m]) / 1e9 > 0.1 and rate({counter}[30m]) / 1e9 > 0.05"


def _phase_share(phase: str, window: str) -> str:
    select = f'{{rankscope_clock="host",rankscope_phase="{phase}"}}'
    return (
        f"sum by (rankscope_job) (rate(rankscope_step_phase_duration_seconds_sum{select}[{window}]))"
        f' / sum by (rankscope_job) (rate(rankscope_step_duration_seconds_sum{{rankscope_clock="host"}}[{window}]))'
    )


def _slower(window: str) -> str:
    def mean(over: str) -> str:
        select = 'rankscope_clock="host"'
        return (
            f"sum by (rankscope_job) (rate(rankscope_step_duration_seconds_sum{{{select}}}[{window}]{over}))"
            f" / sum by (rankscope_job) (rate(rankscope_step_duration_seconds_count{{{select}}}[{window}]{over}))"
        )

    return f"{mean('')} > 1.1 * {mean(' offset 1h')}"


def _tail(name: str) -> str:
    """The tail above its own past and far above the median: now, and a quarter of an hour ago too."""
    p99, p50 = f"rankscope_job:{name}:p99", f"rankscope_job:{name}:p50"
    risen = f"{p99} > 1.5 * {p99} offset 1h and {p99} offset 10m > 1.5 * {p99} offset 1h"
    return f"({risen}) and ignoring (quantile) ({p99} > ignoring (quantile) 3 * {p50})"


_GPU = "{{ $labels.hw_id }} on {{ $labels.host_name }}"
_JOB = "job {{ $labels.rankscope_job }}"

ALERTS = (
    Alert(
        "RankscopeHardwareFinding",
        "max by (rankscope_job, rankscope_class, rankscope_rank, hw_id, host_name)"
        ' (rankscope_finding_confidence_ratio{rankscope_side="hardware", rankscope_advice="act"}) >= 0.9',
        "2m",
        "critical",
        "hardware",
        f"{_JOB}: {{{{ $labels.rankscope_class }}}} at rank {{{{ $labels.rankscope_rank }}}}, {_GPU}",
        "",
        "finding",
    ),
    Alert(
        "RankscopeCodeFinding",
        "max by (rankscope_job, rankscope_class, rankscope_rank)"
        ' (rankscope_finding_confidence_ratio{rankscope_side="code"}) >= 0.9',
        "10m",
        "warning",
        "code",
        f"{_JOB}: {{{{ $labels.rankscope_class }}}}",
        "",
        "finding",
    ),
    Alert(
        "RankscopeEnvironmentFinding",
        "max by (rankscope_job, rankscope_class, host_name)"
        ' (rankscope_finding_confidence_ratio{rankscope_side="environment"}) >= 0.9',
        "5m",
        "warning",
        "environment",
        f"{_JOB}: {{{{ $labels.rankscope_class }}}} on {{{{ $labels.host_name }}}}",
        "",
        "finding",
    ),
    Alert(
        "RankscopeStraggler",
        'max by (rankscope_job, rankscope_rank) (rankscope_finding_cost_milliseconds{rankscope_rank!=""}) / 1000'
        " > on (rankscope_job) group_left 0.1 * max by (rankscope_job) (rankscope_job:step_duration_seconds:mean10m)",
        # Longer than any finding by name: that one silences it.
        "12m",
        "warning",
        "unknown",
        f"rank {{{{ $labels.rankscope_rank }}}} of {_JOB} costs over 10 % of every step",
        "slow-rank-unexplained",
        "finding",
    ),
    Alert(
        "RankscopeXid",
        risen('rankscope_events_total{rankscope_event_kind="xid"}', "10m"),
        "0m",
        "critical",
        "hardware",
        f"Xid {{{{ $labels.rankscope_xid }}}}: {_GPU}",
        "",
        "gpu",
    ),
    Alert(
        "RankscopeGpuThermalSlowdown",
        _held_down("hw_thermal"),
        "5m",
        "critical",
        "hardware",
        f"{_GPU} held itself down for heat in {{{{ $value | humanizePercentage }}}} of the time",
        "gpu-thermal-slowdown",
        "gpu",
    ),
    Alert(
        "RankscopeGpuEccUncorrectable",
        "increase(rankscope_gpu_ecc_uncorrected_total[10m]) > 0",
        "0m",
        "critical",
        "hardware",
        f"{_GPU} had an uncorrectable memory error",
        "gpu-ecc-uncorrectable",
        "gpu",
    ),
    Alert(
        "RankscopeNvlinkErrors",
        "sum by (host_name, hw_id, rankscope_link) (increase(rankscope_nvlink_replay_errors_total[10m])) > 0"
        " and sum by (host_name, hw_id, rankscope_link) (increase(rankscope_nvlink_replay_errors_total[1h])) > 3",
        "5m",
        "warning",
        "hardware",
        f"NVLink {{{{ $labels.rankscope_link }}}} of {_GPU} repeats what it sends",
        "nvlink-degraded",
        "gpu",
    ),
    Alert(
        "RankscopeInputBound",
        f"{_phase_share('data_wait', '10m')} > 0.2 and {_phase_share('data_wait', '1h')} > 0.1",
        "10m",
        "warning",
        "code",
        f"{_JOB} waits for data in {{{{ $value | humanizePercentage }}}} of its steps' time",
        "input-bound",
        "job",
    ),
    Alert(
        "RankscopeStepSlower",
        f"{_slower('10m')} and {_slower('30m')}",
        "10m",
        "warning",
        "unknown",
        f"steps of {_JOB} take over 10 % longer than they did an hour ago",
        "slow-rank-unexplained",
        "job",
    ),
    Alert(
        "RankscopeStepTail",
        _tail("step_duration_seconds"),
        "10m",
        "warning",
        "unknown",
        f"one step in a hundred of {_JOB} takes {{{{ $value | humanizeDuration }}}}, three times the median and half as"
        " much again as an hour ago",
        "slow-rank-unexplained",
        "job",
    ),
    Alert(
        "RankscopeNoProgress",
        "max by (rankscope_job) (rankscope_rank_step) == max by (rankscope_job) (rankscope_rank_step offset 15m)",
        "5m",
        "critical",
        "unknown",
        f"no rank of {_JOB} has ended a step for 15 minutes",
        "rank-hang",
        "job",
    ),
    Alert(
        "RankscopeAgentSilent",
        "(count by (rankscope_job, host_name) (rankscope_agent_cpu_ratio offset 30m)"
        " unless count by (rankscope_job, host_name) (rankscope_agent_cpu_ratio))"
        " and on (rankscope_job) count by (rankscope_job) (rankscope_agent_cpu_ratio)",
        "5m",
        "warning",
        "environment",
        "{{ $labels.host_name }} fell silent while its job goes on elsewhere: the host, its network, or the agent is gone",
        "",
        "host",
    ),
)


def _page(alert: Alert) -> str:
    """What to read: a class's runbook, the runbook of the class that a finding names, or the page of all Xids."""
    if alert.runbook:
        return f"{_RUNBOOKS}/{alert.runbook}.md"
    by_incident = {"finding": f"{_RUNBOOKS}/{{{{ $labels.rankscope_class }}}}.md", "gpu": "docs/xids.md"}
    return by_incident.get(alert.incident, "docs/dashboards.md")


def rules_json() -> str:
    """The text of rules/rankscope.rules.json."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasts,
            "labels": {
                "severity": alert.severity,
                "side": alert.side,
                "team": _TEAM[alert.side],
                "incident": alert.incident,
            },
            "annotations": {
                "summary": alert.summary,
                "runbook": _page(alert),
            },
        }
        for alert in ALERTS
    ]
    return json.dumps({"groups": [{"name": "rankscope", "rules": rules}]}, indent=2) + "\n"
