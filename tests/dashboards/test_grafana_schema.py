"""Dashboards against Grafana's own schema, panel by panel: `@grafana/schema`, its types as JSON Schemas."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import components
import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
SCHEMAS = components.TOOLS / "grafana-schema"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards/grafana").glob("*.json"))}


def wrong(schema: str, document: Any) -> list[str]:
    """What a schema has against a document."""
    path = SCHEMAS / f"{schema}.json"
    if not path.exists():
        components.missing("Grafana's schemas are not in .tools: run `make tools`")
    validator = jsonschema.Draft7Validator(json.loads(path.read_text()))
    return [f"{schema} {list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(document)]


def wrong_panel(panel: dict[str, Any]) -> list[str]:
    """The same of a panel: its shell, the options of its kind, and what a series of it looks like."""
    if panel["type"] == "row":
        return wrong("row", panel)
    found = wrong("panel", panel) + wrong(panel["type"], panel["options"])
    custom = panel["fieldConfig"]["defaults"].get("custom")
    return found if custom is None else found + wrong("timeseries-field", custom)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_dashboard_and_panel_is_grafanas(name: str) -> None:
    """The page without its panels, its variables, and every panel, with nothing that the schema does not know."""
    dashboard = DASHBOARDS[name]
    assert wrong("dashboard", {key: value for key, value in dashboard.items() if key != "panels"}) == []
    for variable in dashboard["templating"]["list"]:
        assert wrong("variable", variable) == []
    for panel in dashboard["panels"]:
        assert wrong_panel(panel) == [], panel["title"]


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("timeseries", ("options", "legned"), {}),
        ("timeseries", ("options", "legend", "placement"), "left-ish"),
        ("timeseries", ("fieldConfig", "defaults", "custom", "lineWidth"), "thick"),
        ("stat", ("options", "colorMode"), "colourful"),
        ("table", ("options", "showHeader"), "yes"),
        ("status-history", ("options", "rowHeight"), "tall"),
        ("stat", ("gridPos", "w"), "wide"),
    ],
)
def test_a_mistake_is_seen(kind: str, path: tuple[str, ...], value: Any) -> None:
    """A misspelt key, a word that is none of the choices, a wrong type: each is an error of the schema."""
    panels = [panel for each in DASHBOARDS.values() for panel in each["panels"] if panel["type"] == kind]
    panel = copy.deepcopy(panels[0])
    place = panel
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert wrong_panel(panel)
