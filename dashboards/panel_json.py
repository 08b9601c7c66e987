"""A panel as Grafana's own model: query, field configuration, options and transformations of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dashboards.panels import Panel

#: What a legend sorts by -> Grafana's calculation and the heading that it gives to it.
_WORST = {"max": ("max", "Max"), "min": ("min", "Min"), "last": ("lastNotNull", "Last *")}


def panel_json(panel: Panel, number: int, place: dict[str, int], source: dict[str, str]) -> dict[str, Any]:
    """The panel with its number and its place on the page."""
    found = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.question,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
        "targets": _targets(panel, source),
    }
    if panel.kind == "table":
        found["transformations"] = _transformations(panel)
    return found


def _targets(panel: Panel, source: dict[str, str]) -> list[dict[str, Any]]:
    at_once = panel.kind in ("table", "stat")
    targets = []
    for index, expression in enumerate([panel.expression, *(column.expression for column in panel.further)]):
        target: dict[str, Any] = {
            "refId": chr(ord("A") + index),
            "datasource": source,
            "expr": expression,
            "legendFormat": panel.legend,
            "instant": at_once,
            "range": not at_once,
        }
        if panel.kind == "table":
            target["format"] = "table"
        if panel.sampled:
            target["interval"] = panel.sampled
        targets.append(target)
    return targets


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": "none" if panel.kind == "table" else panel.unit}
    if panel.empty:
        defaults["noValue"] = panel.empty
    # Grafana's own first limit is 80, in red: right for none of these.
    steps: list[dict[str, Any]] = [{"value": None, "color": "green" if panel.limits else "text"}]
    steps += [{"value": value, "color": colour} for value, colour in panel.limits.items()]
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind == "table":
        return defaults
    defaults["color"] = {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}
    if panel.kind == "timeseries":
        custom: dict[str, Any] = {"spanNulls": False, "lineWidth": 1, "fillOpacity": 0, "showPoints": "auto"}
        # A flat line of zeros is no reason for an axis up to 100.
        highest = 1 if panel.maximum is None and panel.unit == "none" else panel.maximum
        ends = {"axisSoftMin": panel.minimum, "axisSoftMax": highest}
        custom |= {name: value for name, value in ends.items() if value is not None}
        if panel.stacked:
            custom |= {"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}}
        if panel.limits:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["custom"] = custom
    if panel.leads_to is not None:
        uid, labels = panel.leads_to
        chosen = "&".join(f"var-{name}=${{__field.labels.{label}}}" for name, label in labels.items())
        defaults["links"] = [_link(uid, chosen)]
    return defaults


def _link(uid: str, chosen: str) -> dict[str, str]:
    return {"title": "look closer", "url": f"/d/{uid}?{chosen}&${{__url_time_range}}"}


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    if panel.kind != "table":
        return [
            _override(name, {"color": {"mode": "fixed", "fixedColor": colour}})
            for name, colour in panel.colours.items()
        ]
    headings = [*panel.columns.values(), panel.legend, *(column.heading for column in panel.further)]
    properties: dict[str, dict[str, Any]] = {heading: {"noValue": "-"} for heading in headings}
    properties[panel.legend]["unit"] = panel.unit
    for column in panel.further:
        properties[column.heading]["unit"] = column.unit
    for heading, width in panel.widths.items():
        properties[heading]["custom.width"] = width
    for heading, words in panel.words.items():
        options = {value: {"text": text, "color": colour} for value, (text, colour) in words.items()}
        properties[heading]["mappings"] = [{"type": "value", "options": options}]
        if any(colour != "text" for _, colour in words.values()):
            properties[heading]["custom.cellOptions"] = {"type": "color-text"}
    if panel.leads_to is not None:
        # A cell has no labels: the other cells of its row say what was chosen.
        uid, labels = panel.leads_to
        chosen = "&".join(f'var-{name}=${{__data.fields["{panel.columns[label]}"]}}' for name, label in labels.items())
        properties[panel.columns[list(labels.values())[-1]]]["links"] = [_link(uid, chosen)]
    return [_override(heading, each) for heading, each in properties.items()]


def _override(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _transformations(panel: Panel) -> list[dict[str, Any]]:
    """Rows of several queries joined by their labels, headings for labels, the dearest first."""
    values = {"Value": panel.legend}
    if panel.further:
        headings = [panel.legend, *(column.heading for column in panel.further)]
        values = {f"Value #{chr(ord('A') + index)}": heading for index, heading in enumerate(headings)}
    order = [*panel.columns, *values]
    organised = {
        "excludeByName": {"Time": True},
        "indexByName": {name: index for index, name in enumerate(order)},
        "renameByName": {**panel.columns, **values},
    }
    return [
        *([{"id": "merge", "options": {}}] if panel.further else []),
        {"id": "organize", "options": organised},
        {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": panel.legend, "desc": True}]}},
    ]


def _options(panel: Panel) -> dict[str, Any]:
    legend: dict[str, Any] = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    if panel.worst:
        calculated, heading = _WORST[panel.worst]
        legend |= {"displayMode": "table", "placement": "right", "calcs": [calculated]}
        legend |= {"sortBy": heading, "sortDesc": panel.worst == "max"}
    if panel.kind == "timeseries":
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "status-history":
        return {"legend": legend, "tooltip": {"mode": "single", "sort": "none"}, "showValue": "never", "rowHeight": 0.9}
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "orientation": "auto",
            "textMode": "value",
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        }
    return {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
