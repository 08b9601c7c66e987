"""What a dashboard is made of: panels that each answer one question, rows of them, variables, and links between.

Grafana's dashboard schema of release 11 and later. Expressions use the names that VictoriaMetrics
(`-opentelemetry.usePrometheusNaming`) and Prometheus give to what the agent exports; quantiles come from recording rules
(recording.py), since the two spell those of native histograms differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dashboards.panel_json import panel_json

SCHEMA_VERSION = 39
RATE = "[$__rate_interval]"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
#: Unit of what the findings cost.
GPU_HOURS = "suffix: GPU-h/day"


@dataclass(frozen=True)
class Column:
    """One more value in each row of a table: its heading and the expression that gives it for the labels of the row."""

    heading: str
    expression: str
    unit: str = "none"


@dataclass(frozen=True)
class Panel:
    """One question and the expression that answers it."""

    title: str
    #: What a person asks who looks here.
    question: str
    expression: str
    #: What a series is called; of a table the heading of the expression's value.
    legend: str
    unit: str = "none"
    #: "timeseries", "status-history" (a row a rank, its colour the value), "table" (newest values) or "stat".
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    #: uid of the dashboard that a click leads to -> its variables, by label of the series.
    leads_to: tuple[str, Mapping[str, str]] | None = None
    #: What stands there where nothing is: good news, or why there is nothing.
    empty: str = ""
    #: Ends of the scale, which goes on where a value does; without them it fits what is shown.
    minimum: float | None = 0
    maximum: float | None = None
    #: Time between two samples where that is longer than most series' 15 s: rates need two of them.
    sampled: str = ""
    #: From which value on -> which colour; a line is drawn there in a time series.
    limits: Mapping[float, str] = field(default_factory=dict)
    #: Name of a series -> its colour.
    colours: Mapping[str, str] = field(default_factory=dict)
    #: Series add up: drawn one upon the other.
    stacked: bool = False
    #: Many series, of which the worst matter: the legend is a table beside them, first those with the highest value of
    #: the time shown ("max"), the lowest ("min"), or the lowest now ("last").
    worst: str = ""
    #: Of a table: label -> heading, in order; what else stands in a row; widths in pixels and, in the place of a value,
    #: words and their colour, by heading.
    columns: Mapping[str, str] = field(default_factory=dict)
    further: tuple[Column, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: values of a label of a metric."""

    name: str
    label: str
    metric: str
    attribute: str
    #: Narrows the choice by the ones before it.
    within: str = ""
    several: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    #: Title of a row -> its panels.
    rows: Mapping[str, Sequence[Panel]]

    def json(self) -> str:
        """The text of its file, as Grafana imports it."""
        return json.dumps(self.document(), indent=2) + "\n"

    def document(self) -> dict[str, Any]:
        """The dashboard as Grafana's own model."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["rankscope"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Rankscope",
                    "tags": ["rankscope"],
                    "icon": "external link",
                    "tooltip": "",
                    "targetBlank": False,
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "panels": list(self._laid_out()),
        }

    def _laid_out(self) -> list[dict[str, Any]]:
        laid: list[dict[str, Any]] = []
        y = 0
        for title, panels in self.rows.items():
            place = {"h": 1, "w": _WIDTH, "x": 0, "y": y}
            laid.append(
                {"id": len(laid) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
            )
            x, y, high = 0, y + 1, 0
            for panel in panels:
                if x + panel.width > _WIDTH:
                    x, y, high = 0, y + high, 0
                place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
                laid.append(panel_json(panel, len(laid) + 1, place, SOURCE))
                x, high = x + panel.width, max(high, panel.height)
            y += high
        return laid


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Store"}


def _variable(variable: Variable) -> dict[str, Any]:
    metric = f"{variable.metric}{{{variable.within}}}" if variable.within else variable.metric
    chosen: dict[str, Any] = {
        "name": variable.name,
        "type": "query",
        "label": variable.label,
        "datasource": SOURCE,
        "query": f"label_values({metric}, {variable.attribute})",
        "refresh": 2,
        "sort": 3,
    }
    if variable.several:
        chosen |= {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return chosen
