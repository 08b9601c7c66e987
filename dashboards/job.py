"""Who is slow in one job, who waits for whom, and what is said about it?"""

from __future__ import annotations

from dashboards.expressions import JOB, at_rank, mean_ms, phase_ms
from dashboards.findings import findings
from dashboards.panels import RATE, Dashboard, Panel, Variable

JOB_VARIABLE = Variable("job", "Job", "rankscope_rank_step", "rankscope_job")
_TO_RANK = ("rankscope-rank", {"job": "rankscope_job", "rank": "rankscope_rank"})
_BY_JOB = "by (rankscope_job)"
_OWN = phase_ms("backward_own")
_WAIT = phase_ms("backward_wait")
_STEP = mean_ms("rankscope_step_duration", ', rankscope_clock="host"')

JOB_DASHBOARD = Dashboard(
    uid="rankscope-job",
    title="Rankscope: job",
    description="Who is slow, who waits for whom, what is said about it, and how training gets on.",
    variables=(JOB_VARIABLE,),
    rows={
        "Verdict": (
            findings(
                "Findings that hold", "What is wrong now, where, how sure is it, and what does it cost?", JOB, _TO_RANK
            ),
            Panel(
                "Verdicts over time",
                "Since when is it said, and how sure are the rules?",
                at_rank(f"max by (rankscope_class, rankscope_rank) (rankscope_finding_confidence_ratio{{{JOB}}})"),
                "{{rankscope_class}}{{where}}",
                "percentunit",
                width=24,
                height=6,
                maximum=1,
                empty="nothing was found",
            ),
        ),
        "Steps": (
            Panel(
                "Step time",
                "How long does a step take? Under DDP every rank pays the slowest.",
                _STEP,
                "rank {{rankscope_rank}}",
                "ms",
                worst="max",
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
                "Own backward, above the median rank's",
                "Who is slow? How much longer than the median rank each takes for its own part of the backward pass.",
                f"({_OWN}) / on (rankscope_job) group_left quantile {_BY_JOB} (0.5, {_OWN}) - 1",
                "rank {{rankscope_rank}}",
                "percentunit",
                kind="status-history",
                minimum=None,
                leads_to=_TO_RANK,
                limits={0.05: "yellow", 0.1: "orange", 0.25: "red"},
            ),
            Panel(
                "Share of the step that others wait for a rank",
                "Who is waited for? The one that waits least itself: how much less than the median rank, of a step.",
                f"clamp_min(-({_WAIT}) + on (rankscope_job) group_left quantile {_BY_JOB} (0.5, {_WAIT}), 0)"
                f" / on (rankscope_job) group_left avg {_BY_JOB} ({_STEP})",
                "rank {{rankscope_rank}}",
                "percentunit",
                kind="status-history",
                minimum=None,
                leads_to=_TO_RANK,
                limits={0.02: "yellow", 0.05: "orange", 0.1: "red"},
            ),
            Panel(
                "Wait for data",
                "Do ranks wait for their loader?",
                phase_ms("data_wait", "host"),
                "rank {{rankscope_rank}}",
                "ms",
                worst="max",
            ),
            Panel(
                "Where a step goes",
                "Which phase takes the time, on the mean of all ranks?",
                f"1000 * sum by (rankscope_phase) (rate(rankscope_step_phase_duration_seconds_sum{{{JOB},"
                f' rankscope_clock="host"}}{RATE})) / scalar(sum(rate(rankscope_step_duration_seconds_count{{{JOB},'
                f' rankscope_clock="host"}}{RATE})))',
                "{{rankscope_phase}}",
                "ms",
                stacked=True,
                worst="max",
            ),
            Panel(
                "Stalls inside the step",
                "What kept the training thread: synchronisation, garbage collection, compilation, waiting for a core?",
                f"1000 * sum by (rankscope_rank, rankscope_stall) (rate(rankscope_step_stall_duration_seconds_sum{{{JOB}}}"
                f"{RATE})) / on (rankscope_rank) group_left sum by (rankscope_rank)"
                f' (rate(rankscope_step_duration_seconds_count{{{JOB}, rankscope_clock="host"}}{RATE}))',
                "rank {{rankscope_rank}} {{rankscope_stall}}",
                "ms",
                worst="max",
            ),
            Panel(
                "Last step",
                "Does every rank advance?",
                f"rankscope_rank_step{{{JOB}}}",
                "rank {{rankscope_rank}}",
                minimum=None,
                worst="last",
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
                maximum=1,
            ),
            Panel(
                "Spread over ranks",
                "How far is the slowest rank's own backward above the median one's?",
                f"max {_BY_JOB} ({_OWN}) / quantile {_BY_JOB} (0.5, {_OWN}) - 1",
                "{{rankscope_job}}",
                "percentunit",
            ),
        ),
    },
)
