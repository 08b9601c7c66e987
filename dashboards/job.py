"""Who is slow in one job, who waits for whom, and what is said about it?"""

from __future__ import annotations

from dashboards.expressions import JOB, mean_ms, phase_ms
from dashboards.panels import RATE, Dashboard, Panel, Variable

JOB_VARIABLE = Variable("job", "Job", "rankscope_rank_step", "rankscope_job")
_TO_RANK = ("rankscope-rank", {"job": "rankscope_job", "rank": "rankscope_rank"})
_BY_JOB = "by (rankscope_job)"

JOB_DASHBOARD = Dashboard(
    uid="rankscope-job",
    title="Rankscope: job",
    description="Who is slow, who waits for whom, what is said about it, and how training gets on.",
    variables=(JOB_VARIABLE,),
    rows={
        "Verdict": (
            Panel(
                "Findings that hold",
                "What is wrong now, where, and what does it cost a day?",
                f"rankscope_finding_gpu_hours{{{JOB}}}",
                "{{rankscope_class}} rank {{rankscope_rank}}",
                kind="table",
            ),
            Panel(
                "Verdicts over time",
                "Since when is it said, and how sure are the rules?",
                f"max by (rankscope_class, rankscope_rank) (rankscope_finding_confidence_ratio{{{JOB}}})",
                "{{rankscope_class}} rank {{rankscope_rank}}",
                "percentunit",
            ),
        ),
        "Steps": (
            Panel(
                "Step time",
                "How long does a step take? Under DDP every rank pays the slowest.",
                mean_ms("rankscope_step_duration", ', rankscope_clock="host"'),
                "rank {{rankscope_rank}}",
                "ms",
                leads_to=_TO_RANK,
            ),
            Panel(
                "Step time, tail",
                "How long do the slowest steps take? A synchronous job pays them.",
                f"1000 * rankscope_job:step_duration_seconds:p99{{{JOB}}} or 1000 * rankscope_job:step_duration_seconds:p95{{{JOB}}}"
                f" or 1000 * rankscope_job:step_duration_seconds:p50{{{JOB}}}",
                "{{quantile}}",
                "ms",
            ),
            Panel(
                "Own backward by rank",
                "Who is slow? The row that is redder than the others.",
                phase_ms("backward_own"),
                "rank {{rankscope_rank}}",
                "ms",
                kind="status-history",
                leads_to=_TO_RANK,
            ),
            Panel(
                "Wait for other ranks",
                "Who is waited for? The rank with the smallest wait is the one that comes last.",
                phase_ms("backward_wait"),
                "rank {{rankscope_rank}}",
                "ms",
                kind="status-history",
                leads_to=_TO_RANK,
            ),
            Panel(
                "Wait for data",
                "Do ranks wait for their loader?",
                phase_ms("data_wait", "host"),
                "rank {{rankscope_rank}}",
                "ms",
            ),
            Panel(
                "Where a step goes",
                "Which phase takes the time, on the mean of all ranks?",
                f"1000 * sum by (rankscope_phase) (rate(rankscope_step_phase_duration_seconds_sum{{{JOB},"
                f' rankscope_clock="host"}}{RATE})) / scalar(sum(rate(rankscope_step_duration_seconds_count{{{JOB},'
                f' rankscope_clock="host"}}{RATE})))',
                "{{rankscope_phase}}",
                "ms",
            ),
            Panel(
                "Stalls inside the step",
                "What kept the training thread: synchronisation, garbage collection, compilation, waiting for a core?",
                f"1000 * sum by (rankscope_rank, rankscope_stall) (rate(rankscope_step_stall_duration_seconds_sum{{{JOB}}}"
                f"{RATE})) / on (rankscope_rank) group_left sum by (rankscope_rank)"
                f' (rate(rankscope_step_duration_seconds_count{{{JOB}, rankscope_clock="host"}}{RATE}))',
                "rank {{rankscope_rank}} {{rankscope_stall}}",
                "ms",
            ),
            Panel(
                "Last step",
                "Does every rank advance?",
                f"rankscope_rank_step{{{JOB}}}",
                "rank {{rankscope_rank}}",
                leads_to=_TO_RANK,
            ),
        ),
        "Goodput": (
            Panel(
                "Share of the time spent in steps",
                "How much of the wall clock is training, and how much restarts, stalls and standstill?",
                f'sum {_BY_JOB} (rate(rankscope_step_duration_seconds_sum{{{JOB}, rankscope_clock="host"}}{RATE}))'
                f" / count {_BY_JOB} (rankscope_rank_step{{{JOB}}})",
                "{{rankscope_job}}",
                "percentunit",
            ),
            Panel(
                "Spread over ranks",
                "How far is the slowest rank's own backward above the median one's?",
                f"max {_BY_JOB} ({phase_ms('backward_own')}) / quantile {_BY_JOB} (0.5, {phase_ms('backward_own')})",
                "{{rankscope_job}}",
            ),
        ),
    },
)
