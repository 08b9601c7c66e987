"""Findings that hold, as a table: what, where, how sure, what it costs."""

from __future__ import annotations

from dashboards.panels import GPU_HOURS, Column, Panel

#: What makes findings one: every agent of a job says what concerns the whole job.
_SAME = "rankscope_job, rankscope_class, rankscope_side, rankscope_rank, hw_id"
#: Where each rank runs; of a rank that was restarted elsewhere one of the two for a while.
_PLACES = (
    "topk by (rankscope_job, rankscope_rank)"
    " (1, max by (rankscope_job, rankscope_rank, host_name) (rankscope_rank_info))"
)
_COLUMNS = {
    "rankscope_job": "Job",
    "rankscope_class": "Cause",
    "rankscope_side": "Side",
    "rankscope_rank": "Rank",
    "host_name": "Host",
    "hw_id": "GPU",
}
SIDES = {"hardware": "red", "environment": "orange", "code": "blue", "unknown": "purple"}


def findings(title: str, question: str, select: str, leads_to: tuple[str, dict[str, str]]) -> Panel:
    """A row a finding, the dearest first."""
    sure = f"rankscope_finding_confidence_ratio{{{select}}}"
    act = f'rankscope_finding_confidence_ratio{{{select}{", " if select else ""}rankscope_advice="act"}}'
    return Panel(
        title,
        question,
        _placed(f"rankscope_finding_gpu_hours{{{select}}}"),
        "Cost",
        GPU_HOURS,
        kind="table",
        width=24,
        leads_to=leads_to,
        empty="nothing is found",
        columns=_COLUMNS,
        further=(
            Column("Sure", _placed(sure), "percentunit"),
            Column("Advice", _placed(f"{act} > bool 0 or {sure} * 0")),
        ),
        widths={"Side": 110, "Rank": 60, "GPU": 350, "Cost": 140, "Sure": 80, "Advice": 80},
        words={"Advice": {"0": ("watch", "text"), "1": ("act", "red")}},
    )


def _placed(expression: str) -> str:
    once = f"max by ({_SAME}) ({expression})"
    return f"{once} * on (rankscope_job, rankscope_rank) group_left (host_name) {_PLACES} or on ({_SAME}) {once}"
