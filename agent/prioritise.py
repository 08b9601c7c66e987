"""`rankscope prioritise`: what to take up first, of findings over several jobs and of incidents from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rankscope.agent.incidents import distinct, incidents_of_file, incidents_of_verdicts, runs_in, verdict_of
from rankscope.agent.tables import table
from rankscope.errors import ConfigurationError
from rankscope.exporters.wording import visible
from rankscope.rules.priorities import SENSITIVITY, Order, load_matrix
from rankscope.rules.priorities import prioritise as rank

SCHEMA = "rankscope.priorities/1"
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...", type=click.Path(path_type=Path, exists=True))
@click.option("--incidents", "files", multiple=True, type=_FILE, help="Incidents from elsewhere: TOML, JSON or CSV.")
@click.option("--matrix", type=_FILE, help="Criteria and weights of this site (TOML), over the built-in ones.")
@click.option("--json", "as_json", is_flag=True, help="As JSON (docs/schemas/priorities.schema.json).")
def prioritise(sources: Sequence[Path], files: Sequence[Path], matrix: Path | None, as_json: bool) -> None:
    """What to take up first: findings of several jobs and incidents from elsewhere, ranked P1 to P4 with the reason.

    SOURCE is a recording, a directory of one run's recordings or of several runs' directories, or the JSON of
    `report --json`.
    """
    weights = load_matrix(matrix)
    runs = [run for path in sources for run in runs_in(path)]
    found = incidents_of_verdicts([(str(path), verdict_of(path)) for path in runs], weights)
    for path in files:
        found += incidents_of_file(path, weights)
    if not sources and not files:
        raise ConfigurationError("nothing to rank", todo="give recordings, verdicts, or --incidents FILE")
    order = rank(distinct(found), weights)
    click.echo(json.dumps(order_document(order), indent=2) if as_json else order_text(order))


def order_document(order: Order) -> dict[str, Any]:
    """The JSON of an order; a deadline that is never is null, as JSON knows no infinity."""
    body = asdict(order)
    for row in body["ranked"]:
        row.update(row.pop("incident"))
        row["values"] = {name: _finite(value) for name, value in row["values"].items()}
        for part in row["parts"]:
            part["value"] = _finite(part["value"])
    return {"schema": SCHEMA, **body}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def order_text(order: Order) -> str:
    """An order for a person: the table, then why each stands where it does."""
    if not order.ranked:
        return "nothing to take up: no finding, no incident"
    rows = [
        (str(row.place), row.priority, f"{row.score:.2f}", f"{row.score_at_worst:.2f}", row.incident.name)
        for row in order.ranked
    ]
    lines = table(("place", "", "score", "at worst", "incident"), rows)
    for row in order.ranked:
        lines += ["", visible(f"{row.place}. {row.incident.name}"), f"   because of {visible(row.reason)}"]
        if row.incident.what:
            lines.insert(-1, f"   {visible(row.incident.what)}")
        if row.unknown:
            lines.append(f"   not known: {', '.join(row.unknown)}")
    lines += ["", f"If one weight moves by {SENSITIVITY:.0%}:"]
    if not order.flips:
        lines.append("  nothing changes: neither the order nor a priority")
    lines += [f"  {flip.criterion} x {flip.factor:g}: {visible(flip.what)}" for flip in order.flips]
    return "\n".join(lines)
