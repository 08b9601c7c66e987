"""Incidents from files, verdicts and recordings, for `rankscope prioritise`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankscope.errors import ConfigurationError
from rankscope.finding import VERDICT_SCHEMA
from rankscope.rules.documents import parse_toml
from rankscope.rules.priorities import Incident, Matrix, parse_incident

_HOURS_PER_DAY = 24
#: Findings that nobody need act on now.
_QUIET = "info"


def incidents_of_file(path: Path, matrix: Matrix) -> list[Incident]:
    """Incidents of a file: TOML ([[incident]]), JSON (a list, or {"incidents": [...]}) or CSV.

    Raises ConfigurationError.
    """
    if path.suffix.lower() == ".toml":
        document = parse_toml(path)
        stray = [key for key in document if key != "incident"]
        if stray:
            raise ConfigurationError(f"holds {stray[0]!r}; incidents stand as [[incident]]", where=str(path))
        tables: Any = document.get("incident", [])
    else:
        text = _text(path)
        if text.lstrip()[:1] in ("[", "{"):
            found = _json(text, path)
            tables = found.get("incidents") if isinstance(found, dict) else found
        else:
            rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
            if "name" not in (rows.fieldnames or ()):
                todo = "incidents stand in TOML as [[incident]], in a JSON list, or in CSV with a head line"
                raise ConfigurationError("has no column 'name'", where=str(path), todo=todo)
            tables = [{name: cell for name, cell in row.items() if name is not None} for row in rows]
    if not isinstance(tables, list) or not tables:
        raise ConfigurationError("holds no incidents", where=str(path), todo="TOML [[incident]], a JSON list, or CSV")
    return [parse_incident(table, matrix, str(path)) for table in tables]


def runs_in(path: Path) -> list[Path]:
    """What a source stands for: itself, or of a directory without recordings the directories in it that have some."""
    if not path.is_dir() or any(path.glob("*.db")):
        return [path]
    runs = sorted({recording.parent for recording in path.glob("*/*.db")})
    if not runs:
        raise ConfigurationError("holds no recording", where=str(path), todo="name a directory that `run` wrote to")
    return runs


def verdict_of(path: Path) -> dict[str, Any]:
    """The verdict that a recording, a directory of recordings or a JSON file of `report --json` holds."""
    if path.is_dir() or path.suffix == ".db":
        from rankscope.agent.verdict import conclude, json_text

        document: dict[str, Any] = json.loads(json_text(*conclude([path])))
        return document
    found = _json(_text(path), path)
    if not isinstance(found, dict) or found.get("schema") != VERDICT_SCHEMA:
        raise ConfigurationError(
            f"is no {VERDICT_SCHEMA}", where=str(path), todo="give recordings, `report --json`, or --incidents FILE"
        )
    return found


def incidents_of_verdicts(verdicts: Iterable[tuple[str, Mapping[str, Any]]], matrix: Matrix) -> list[Incident]:
    """One incident a finding; the same class at the same GPU, link or host in several jobs is one.

    Takes (source, verdict) pairs. Findings of severity info are left out: nobody need act on them now.
    """
    found: dict[tuple[str, ...], Incident] = {}
    for source, verdict in verdicts:
        try:
            for finding in verdict["findings"]:
                if finding["severity"] == _QUIET:
                    continue
                incident = _incident(finding, verdict["job"], source, matrix)
                key = _place(finding, source)
                found[key] = _together(found[key], incident) if key in found else incident
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"is no whole verdict (lacks {error})", where=source) from None
    return list(found.values())


def _incident(finding: Mapping[str, Any], job: Mapping[str, Any], source: str, matrix: Matrix) -> Incident:
    values = matrix.of_finding(finding["side"], finding["class"], str(job["name"]))
    where = finding["where"]
    ranks = int(job.get("world_size") or job.get("ranks_seen") or 0)
    # One late rank makes all of its job wait, so the whole job is affected.
    values |= {"ranks": float(ranks), "jobs": 1.0, "confidence": float(finding["confidence"])}
    per_day = finding["impact"]["gpu_hours_per_day"]
    if per_day is not None:
        values["gpu_hours_per_hour"] = float(per_day) / _HOURS_PER_DAY
    elif finding["severity"] == "critical" and finding["impact"]["ms_per_step"] is None:
        # The job stopped: every GPU of it stands still.
        values["gpu_hours_per_hour"] = float(ranks)
    place = " ".join(
        f"{name} {where[name]}" for name in ("rank", "host", "link", "device") if where.get(name) is not None
    )
    name = f"{finding['class']} in {job['name']}" + (f" ({place})" if place else "")
    known = {criterion.name for criterion in matrix.criteria}
    kept = {key: value for key, value in values.items() if key in known}
    return Incident(name, str(finding.get("summary", "")), source, kept)


def _place(finding: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """What makes two findings one: a class at a thing that jobs share; else each stands for itself."""
    where = finding["where"]
    shared = where.get("gpu_uuid") or where.get("link") or where.get("device")
    if shared:
        return (finding["class"], str(where.get("host")), str(shared))
    return (finding["class"], source, str(where.get("host")), str(where.get("rank")))


def _together(first: Incident, second: Incident) -> Incident:
    """Two jobs that suffer from one thing: what they lose adds up, what they risk is the greater."""
    values = dict(first.values)
    for name, value in second.values.items():
        if name in ("jobs", "ranks", "gpu_hours_per_hour", "customers"):
            values[name] = values.get(name, 0.0) + value
        elif name in ("deadline_hours", "fix_hours"):
            values[name] = min(values.get(name, value), value)
        else:
            values[name] = max(values.get(name, value), value)
    return replace(
        first, what=f"{first.what} Also {second.name}.", source=f"{first.source}, {second.source}", values=values
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except UnicodeDecodeError:
        raise ConfigurationError("is no text", where=str(path)) from None


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"is no JSON ({error})", where=str(path)) from None


def distinct(incidents: Sequence[Incident]) -> list[Incident]:
    """Incidents under names that tell them apart."""
    seen: dict[str, int] = {}
    found = []
    for incident in incidents:
        count = seen[incident.name] = seen.get(incident.name, 0) + 1
        found.append(incident if count == 1 else replace(incident, name=f"{incident.name} [{count}]"))
    return found
