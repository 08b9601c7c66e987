"""The Grafana dashboard of one job: who is slow, who waits, and what the GPUs and hosts did meanwhile.

Expressions use the names that VictoriaMetrics (`-opentelemetry.usePrometheusNaming`) and Prometheus give to what the
agent exports, and only sums and counts of histograms, which both spell alike. `scripts/generated.py` writes the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

#: Grafana's dashboard schema of release 11 and later.
SCHEMA_VERSION = 39
_SELECT = 'rankscope_job=~"$job"'
_RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One question and its answer."""

    title: str
    question: str
    expression: str
    legend: str
    unit: str


def mean_ms(metric: str, labels: str = "") -> str:
    """Mean duration in ms a rank over the rate interval, from a histogram's sum and count."""
    select = f"{{{_SELECT}{labels}}}"
    by = "by (rankscope_rank)"
    return (
        f"1000 * sum {by} (rate({metric}_seconds_sum{select}{_RATE}))"
        f" / sum {by} (rate({metric}_seconds_count{select}{_RATE}))"
    )


def phase_ms(phase: str, clock: str = "device") -> str:
    """ms a step that a rank spends in a phase: phases that took no time in a step are not counted, steps are."""
    by = "by (rankscope_rank)"
    phases = f'{{{_SELECT}, rankscope_clock="{clock}", rankscope_phase="{phase}"}}'
    steps = f'{{{_SELECT}, rankscope_clock="{clock}"}}'
    return (
        f"1000 * sum {by} (rate(rankscope_step_phase_duration_seconds_sum{phases}{_RATE}))"
        f" / sum {by} (rate(rankscope_step_duration_seconds_count{steps}{_RATE}))"
    )


def throttled(what: str) -> str:
    """Share of time in which a GPU was held down."""
    return f"rate(rankscope_gpu_throttle_{what}_nanoseconds_total{{{_SELECT}}}{_RATE}) / 1e9"


PANELS = (
    Panel(
        "Step time",
        "How long does a step take? Under DDP every rank pays the slowest.",
        mean_ms("rankscope_step_duration", ', rankscope_clock="host"'),
        "rank {{rankscope_rank}}",
        "ms",
    ),
    Panel(
        "Own backward, on the device",
        "Who is slow? The rank whose own backward stands above its peers.",
        phase_ms("backward_own"),
        "rank {{rankscope_rank}}",
        "ms",
    ),
    Panel(
        "Wait for other ranks, on the device",
        "Who is waited for? The rank with the smallest wait is the one that comes last.",
        phase_ms("backward_wait"),
        "rank {{rankscope_rank}}",
        "ms",
    ),
    Panel(
        "Wait for data",
        "Do ranks wait for their loader?",
        phase_ms("data_wait", "host"),
        "rank {{rankscope_rank}}",
        "ms",
    ),
    Panel(
        "Stalls inside the step",
        "What kept the training thread: synchronisation, garbage collection, compilation, waiting for a core?",
        f"1000 * sum by (rankscope_rank, rankscope_stall) (rate(rankscope_step_stall_duration_seconds_sum{{{_SELECT}}}"
        f"{_RATE})) / on (rankscope_rank) group_left sum by (rankscope_rank)"
        f' (rate(rankscope_step_duration_seconds_count{{{_SELECT}, rankscope_clock="host"}}{_RATE}))',
        "rank {{rankscope_rank}} {{rankscope_stall}}",
        "ms",
    ),
    Panel(
        "Last step",
        "Does every rank advance?",
        f"rankscope_rank_step{{{_SELECT}}}",
        "rank {{rankscope_rank}}",
        "none",
    ),
    Panel(
        "SM clock",
        "Does a GPU run slower than its peers?",
        f"rankscope_gpu_clock_sm_MHz{{{_SELECT}}}",
        "{{hw_id}}",
        "none",
    ),
    Panel("Temperature", "Does a GPU run hot?", f"hw_temperature_celsius{{{_SELECT}}}", "{{hw_id}}", "celsius"),
    Panel(
        "Power",
        "Is a GPU at its limit, or drawing less than peers that do the same work?",
        f'hw_power_watts{{{_SELECT}, hw_type="gpu"}}',
        "{{hw_id}}",
        "watt",
    ),
    Panel(
        "Held down by heat (hardware)",
        "For how much of the time did the GPU slow itself for heat?",
        throttled("hw_thermal"),
        "{{hw_id}}",
        "percentunit",
    ),
    Panel(
        "Held down by the power cap",
        "For how much of the time was the power limit reached? Normal at full load.",
        throttled("sw_power"),
        "{{hw_id}}",
        "percentunit",
    ),
    Panel(
        "Uncorrected ECC errors",
        "Did GPU memory fail?",
        f"rankscope_gpu_ecc_uncorrected_total{{{_SELECT}}}",
        "{{hw_id}}",
        "none",
    ),
    Panel(
        "I/O pressure",
        "For how much of the time did tasks of the host wait for storage?",
        f"rate(rankscope_host_pressure_io_some_nanoseconds_total{{{_SELECT}}}{_RATE}) / 1e9",
        "{{host_name}}",
        "percentunit",
    ),
    Panel(
        "Cost of watching",
        "What share of a core does the agent use?",
        f"rankscope_agent_cpu_ratio{{{_SELECT}}}",
        "{{host_name}}",
        "percentunit",
    ),
)


def _panel(index: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.question,
        "datasource": source,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": {"spanNulls": False}}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": "A", "datasource": source, "expr": panel.expression, "legendFormat": panel.legend, "range": True}
        ],
    }


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": "rankscope-job",
        "title": "Rankscope: job",
        "description": "Who is slow, who waits, and what the GPUs and hosts did meanwhile.",
        "tags": ["rankscope"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Store"},
                {
                    "name": "job",
                    "type": "query",
                    "label": "Job",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": "label_values(rankscope_rank_step, rankscope_job)",
                    "refresh": 2,
                },
            ]
        },
        "panels": [_panel(index, panel) for index, panel in enumerate(PANELS)],
    }


def dashboard_json() -> str:
    """The text of grafana/job.json."""
    return json.dumps(dashboard(), indent=2) + "\n"
