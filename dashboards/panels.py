"""What a dashboard is made of: panels that each answer one question, rows of them, variables, and links between.

Grafana's dashboard schema of release 11 and later. Expressions use the names that VictoriaMetrics
(`-opentelemetry.usePrometheusNaming`) and Prometheus give to what the agent exports; quantiles come from recording rules
(recording.py), since the two spell those of native histograms differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 39
RATE = "[$__rate_interval]"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24


@dataclass(frozen=True)
class Panel:
    """One question and the expression that answers it."""

    title: str
    #: What a person asks who looks here.
    question: str
    expression: str
    legend: str
    unit: str = "none"
    #: "timeseries", "status-history" (a row a rank, its colour the value), "table" (newest values) or "stat".
    kind: str = "timeseries"
    width: int = 12
    #: uid of the dashboard that a click leads to -> its variables, by label of the series.
    leads_to: tuple[str, Mapping[str, str]] | None = None


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
            y += 1
            x = 0
            for panel in panels:
                if x + panel.width > _WIDTH:
                    x, y = 0, y + 8
                laid.append(_panel(panel, len(laid) + 1, {"h": 8, "w": panel.width, "x": x, "y": y}))
                x += panel.width
            y += 8
        return laid


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Store"}


def _variable(variable: Variable) -> dict[str, Any]:
    metric = f"{variable.metric}{{{variable.within}}}" if variable.within else variable.metric
    chosen: dict[str, Any] = {
        "name": variable.name,
        "type": "query",
        "label": variable.label,
        "datasource": _SOURCE,
        "query": f"label_values({metric}, {variable.attribute})",
        "refresh": 2,
        "sort": 3,
    }
    if variable.several:
        chosen |= {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return chosen


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    at_once = panel.kind in ("table", "stat")
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.leads_to is not None:
        uid, labels = panel.leads_to
        chosen = "&".join(f"var-{name}=${{__field.labels.{label}}}" for name, label in labels.items())
        defaults["links"] = [{"title": "look closer", "url": f"/d/{uid}?{chosen}&${{__url_time_range}}"}]
    if panel.kind == "status-history":
        defaults["color"] = {"mode": "continuous-GrYlRd"}
    if panel.kind == "timeseries":
        defaults["custom"] = {"spanNulls": False, "lineWidth": 1, "fillOpacity": 0}
    target = {
        "refId": "A",
        "datasource": _SOURCE,
        "expr": panel.expression,
        "legendFormat": panel.legend,
        "instant": at_once,
        "range": not at_once,
    }
    if panel.kind == "table":
        target["format"] = "table"
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.question,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel.kind),
        "targets": [target],
    }


def _options(kind: str) -> dict[str, Any]:
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    if kind == "timeseries":
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind == "status-history":
        return {"legend": legend, "tooltip": {"mode": "single", "sort": "none"}, "showValue": "never", "rowHeight": 0.9}
    if kind == "stat":
        calculated = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {
            "reduceOptions": calculated,
            "orientation": "auto",
            "textMode": "auto",
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        }
    return {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
