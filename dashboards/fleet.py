"""Which jobs lose GPU-hours, and to what?"""

from __future__ import annotations

from dashboards.findings import SIDES, findings
from dashboards.panels import GPU_HOURS, RATE, Dashboard, Panel
from dashboards.xids import xids

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
                height=4,
            ),
            Panel(
                "Ranks watched",
                "How many ranks do they have?",
                "count(rankscope_rank_step)",
                "ranks",
                kind="stat",
                width=6,
                height=4,
            ),
            Panel(
                "GPU-hours lost a day",
                "What do the findings that hold now cost, all together?",
                f"sum({_LOST})",
                "GPU-hours a day",
                GPU_HOURS,
                kind="stat",
                width=6,
                height=4,
                empty="nothing",
                limits={1: "orange"},
            ),
            Panel(
                "Lost to hardware",
                "What of it is hardware's, and so the operators' to mend?",
                'sum(max by (rankscope_job, rankscope_class, rankscope_rank) (rankscope_finding_gpu_hours{rankscope_side="hardware"}))',
                "GPU-hours a day",
                GPU_HOURS,
                kind="stat",
                width=6,
                height=4,
                empty="nothing",
                limits={1: "orange"},
            ),
            findings(
                "Findings by cost",
                "Which job loses most, to which cause, at which rank, and whose turn is it?",
                "",
                _TO_JOB,
            ),
        ),
        "Over time": (
            Panel(
                "GPU-hours lost a day, by cause",
                "To what does the fleet lose its time, and since when?",
                f"sum by (rankscope_class) ({_LOST})",
                "{{rankscope_class}}",
                GPU_HOURS,
                stacked=True,
                empty="nothing is found",
            ),
            Panel(
                "GPU-hours lost a day, by side",
                "Is it hardware, the environment or code?",
                f"sum by (rankscope_side) ({_LOST})",
                "{{rankscope_side}}",
                GPU_HOURS,
                stacked=True,
                colours=SIDES,
                empty="nothing is found",
            ),
            Panel(
                "Steps a minute",
                "Does every job advance?",
                f'60 * max by (rankscope_job) (rate(rankscope_step_duration_seconds_count{{rankscope_clock="host"}}{RATE}))',
                "{{rankscope_job}}",
                width=24,
                height=6,
                leads_to=_TO_JOB,
            ),
            xids(
                "Which GPUs had errors that the driver reports?", leads_to=("rankscope-hardware", {"host": "host_name"})
            ),
        ),
    },
)
