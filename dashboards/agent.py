"""What does watching cost, and is anything not seen?"""

from __future__ import annotations

from dashboards.panels import RATE, Dashboard, Panel, Variable

_HOST = 'host_name=~"$host"'

AGENT = Dashboard(
    uid="rankscope-agent",
    title="Rankscope: agent",
    description="Cost, silence and losses of the agents themselves.",
    variables=(Variable("host", "Host", "rankscope_agent_cpu_ratio", "host_name", several=True),),
    rows={
        "Cost": (
            Panel(
                "CPU",
                "What share of a core does an agent use? Its budget is 1 %.",
                f"rankscope_agent_cpu_ratio{{{_HOST}}}",
                "{{host_name}}",
                "percentunit",
                limits={0.01: "orange"},
                worst="max",
            ),
            Panel(
                "Memory",
                "How much memory, children included? Its budget is 100 MB.",
                f"rankscope_agent_memory_bytes{{{_HOST}}}",
                "{{host_name}}",
                "decbytes",
                limits={100e6: "orange"},
                worst="max",
            ),
            Panel(
                "Reads of a probe",
                "Which source is slow to answer, on the host where it is slowest?",
                f"max by (rankscope_probe) (rankscope_agent_probe_duration_nanoseconds{{{_HOST}}}) / 1e6",
                "{{rankscope_probe}}",
                "ms",
                width=24,
                worst="max",
            ),
        ),
        "Silence and losses": (
            Panel(
                "Agents that fell silent",
                "Which hosts said something an hour ago and say nothing now?",
                f"count by (host_name) (rankscope_agent_cpu_ratio{{{_HOST}}} offset 1h) unless count by (host_name) (rankscope_agent_cpu_ratio{{{_HOST}}})",
                "Series",
                kind="table",
                empty="none",
                columns={"host_name": "Host"},
            ),
            Panel(
                "Events of loss",
                "Was anything overwritten, dropped or given up?",
                f'increase(rankscope_events_total{{{_HOST}, rankscope_event_kind=~"ring-.*|recording-lost|export-dropped|kernel-log-lost|probe-.*|governor"}}{RATE}) > 0',
                "{{host_name}} {{rankscope_event_kind}}",
                empty="nothing was lost",
            ),
        ),
    },
)
