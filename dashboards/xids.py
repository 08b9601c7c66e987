"""Xids of the last hour as a table that says what each number means."""

from __future__ import annotations

from collections.abc import Mapping

from dashboards.expressions import risen
from dashboards.panels import Panel

from rankscope.rules.xids import load

_HEADINGS = {"rankscope_job": "Job", "host_name": "Host", "hw_id": "GPU", "rankscope_xid": "Xid"}


def xids(question: str, select: str = "", leads_to: tuple[str, Mapping[str, str]] | None = None) -> Panel:
    """A row for each number at each GPU."""
    counter = f'rankscope_events_total{{{select}{", " if select else ""}rankscope_event_kind="xid"}}'
    return Panel(
        "Xids in the last hour",
        question,
        f"sum by ({', '.join(_HEADINGS)}) ({risen(counter, '1h')})",
        "Times",
        kind="table",
        width=24,
        height=6,
        leads_to=leads_to,
        empty="none",
        columns=_HEADINGS,
        widths={"Job": 160, "Host": 160, "GPU": 350, "Times": 80},
        words={"Xid": {str(number): (f"{number}: {xid.name}", "text") for number, xid in load().items()}},
    )
