"""Which jobs lose GPU-hours, and to what?"""

from __future__ import annotations

from dashboards.panels import RATE, Dashboard, Panel

_TO_JOB = ("rankscope-job", {"job": "rankscope_job"})
_LOST = "max by (rankscope_job, rankscope_class, rankscope_side, rankscope_rank) (rankscope_finding_gpu_hours)"

FLEET = Dashboard(
    uid="rankscope-fleet",
    title="Rankscope: fleet",
    description="Which jobs lose GPU-hours, to what, and whose turn it is.",
    variables=(),
    rows={
        "Now": (
            Panel(
                "Jobs watched",
                "How many jobs say something?",
                "count(count by (rankscope_job) (rankscope_rank_step))",
                "jobs",
                kind="stat",
                width=6,
            ),
            Panel(
                "Ranks watched",
                "How many ranks do they have?",
                "count(rankscope_rank_step)",
                "ranks",
                kind="stat",
                width=6,
            ),
            Panel(
                "GPU-hours lost a day",
                "What do the findings that hold now cost, all together?",
                f"sum({_LOST})",
                "GPU-hours a day",
                kind="stat",
                width=6,
            ),
            Panel(
                "Lost to hardware",
                "What of it is hardware's, and so the operators' to mend?",
                'sum(max by (rankscope_job, rankscope_class, rankscope_rank) (rankscope_finding_gpu_hours{rankscope_side="hardware"}))',
                "GPU-hours a day",
                kind="stat",
                width=6,
            ),
            Panel(
                "Findings by cost",
                "Which job loses most, to which cause, at which rank?",
                f"sort_desc({_LOST})",
                "{{rankscope_job}} {{rankscope_class}}",
                kind="table",
                width=24,
                leads_to=_TO_JOB,
            ),
        ),
        "Over time": (
            Panel(
                "GPU-hours lost a day, by cause",
                "To what does the fleet lose its time, and since when?",
                f"sum by (rankscope_class) ({_LOST})",
                "{{rankscope_class}}",
            ),
            Panel(
                "GPU-hours lost a day, by side",
                "Is it hardware, the environment or code?",
                f"sum by (rankscope_side) ({_LOST})",
                "{{rankscope_side}}",
            ),
            Panel(
                "Steps a minute",
                "Does every job advance?",
                f'60 * max by (rankscope_job) (rate(rankscope_step_duration_seconds_count{{rankscope_clock="host"}}{RATE}))',
                "{{rankscope_job}}",
                leads_to=_TO_JOB,
            ),
            Panel(
                "Xids",
                "Which GPUs had errors that the driver reports?",
                'increase(rankscope_events_total{rankscope_event_kind="xid"}[1h]) > 0',
                "Xid {{rankscope_xid}} {{host_name}} {{hw_id}}",
                leads_to=("rankscope-hardware", {"host": "host_name"}),
            ),
        ),
    },
)
