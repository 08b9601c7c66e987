"""`rankscope whatif`: what slows a job, or a service, by replay of operations or spans that were recorded elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rankscope.agent.load import load_window
from rankscope.agent.tables import table
from rankscope.agent.whatif_files import Recorded, read_recorded
from rankscope.exporters.wording import visible
from rankscope.rules.whatif import WhatIf
from rankscope.rules.whatif import whatif as replay_operations
from rankscope.rules.whatif_operations import OperationsError, operations
from rankscope.rules.whatif_spans import SpanWhatIf, whatif_spans
from rankscope.rules.whatif_verdict import Reading, read
from rankscope.rules.whatif_window import whatif_window

SCHEMA = "rankscope.whatif/1"
#: Lines of a table on the terminal; --json has them all.
_SHOWN = 10


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(path_type=Path, exists=True),
)
@click.option("--json", "as_json", is_flag=True, help="As JSON (docs/schemas/whatif.schema.json).")
def whatif(files: Sequence[Path], as_json: bool) -> None:
    """What slows a job: its operations replayed without one worker's, stage's or kind's slowness.

    FILE holds operations of pipeline-parallel training (Parquet, CSV or JSON lines, with the columns dp_rank, stage,
    step, optype, start_ts, duration), or spans of distributed traces (OTLP as JSON lines or protobuf), or is a
    recording of `rankscope run`. Several files are one job.
    """
    found: WhatIf | None = None
    recordings = [path for path in files if path.is_dir() or path.suffix == ".db"]
    if recordings:
        if len(recordings) < len(files):
            raise OperationsError("some of these are recordings and some are not", todo="give one kind at a time")
        found = _of_recordings(recordings)
    recorded = Recorded() if recordings else read_recorded(files)
    if recorded.spans:
        spans = whatif_spans(recorded.spans)
        text, document = spans_text(spans), spans_document(spans)
    else:
        try:
            found = found or replay_operations(operations(recorded.columns))
        except OperationsError as error:
            names = ", ".join(map(str, files))
            where = f"{names}: {error.where}" if error.where else names
            raise OperationsError(error.what, where=where, todo=error.todo) from None
        reading = read(found)
        text, document = operations_text(found, reading), operations_document(found, reading)
    click.echo(json.dumps(document, indent=2) if as_json else text)


def _of_recordings(paths: Sequence[Path]) -> WhatIf:
    """The replay of a run of ours, with its hosts priced too."""
    try:
        return whatif_window(load_window(paths))
    except OperationsError as error:
        raise OperationsError(error.what, where=", ".join(map(str, paths)), todo=error.todo) from None


def operations_document(found: WhatIf, reading: Reading) -> dict[str, Any]:
    """The JSON of an analysis of operations."""
    body = asdict(found)
    for name in ("by_stage", "stage_ms", "step_slowdown"):
        body[name] = {str(key): value for key, value in body[name].items()}
    return {
        "schema": SCHEMA,
        "kind": "operations",
        "cause": reading.cause,
        "looks_like": reading.looks_like,
        "pattern": reading.pattern,
        "summary": list(reading.sentences),
        "also": list(reading.also),
        **body,
    }


def spans_document(found: SpanWhatIf) -> dict[str, Any]:
    """The JSON of an analysis of spans."""
    return {"schema": SCHEMA, "kind": "spans", "summary": _span_sentences(found), **asdict(found)}


def operations_text(found: WhatIf, reading: Reading) -> str:
    """An analysis of operations for a person."""
    share = {"M_W": found.m_w, "M_S": found.m_s}
    figures = ", ".join(f"{name} {_rounded(value):.2f}" for name, value in share.items() if value is not None)
    looks_like = "" if reading.looks_like == "unknown" else f" (looks like {reading.looks_like})"
    size = f"{found.steps} steps, {found.dp_ranks} data-parallel ranks x {found.stages} stages"
    if found.recorded:
        size = f"{found.steps} steps, {found.dp_ranks} ranks" + (
            f", {found.stages} stages" if found.m_s is not None else ""
        )
    lines = [
        f"{reading.cause}{looks_like}",
        *(f"  {sentence}" for sentence in reading.sentences),
        *(f"  also {line}" for line in reading.also),
        "",
        f"S {found.slowdown:.3f}: {found.actual_ms:,.1f} ms a step against {found.ideal_ms:,.1f} ms ideal"
        + (f"; {figures}" if figures else ""),
        f"{size}; recorded {found.recorded_ms:,.1f} ms a step, the replay gives {found.replayed_ms:,.1f} ms",
        "",
    ]
    rows = [
        (
            str(worker.dp_rank),
            str(worker.stage),
            "" if worker.rank is None else str(worker.rank),
            f"{worker.slowdown:.3f}",
            "" if worker.ms_per_step is None else f"{worker.ms_per_step:,.1f}",
            "  ".join(f"{name} {ratio:.2f}x" for name, ratio in worker.against_peers.items()),
        )
        for worker in found.slowest[:_SHOWN]
    ]
    lines += table(("dp", "stage", "rank", "slowdown", "ms a step back", "against its stage's peers"), rows)
    if len(found.slowest) > _SHOWN:
        lines.append(f"... {len(found.slowest) - _SHOWN} more workers")
    causes = [(cause.kind, f"{_rounded(cause.share):.0%}", f"{cause.ms_per_step:,.1f}") for cause in found.causes]
    if causes:
        lines += ["", *table(("without", "of the lost time", "ms a step back"), causes)]
    for what, priced in (("host", found.by_place), ("group", found.by_group if found.recorded else {})):
        places = sorted(priced.items(), key=lambda item: -item[1])
        if places:
            rows_of = [(visible(name), f"{ms:,.1f}") for name, ms in places[:_SHOWN]]
            lines += ["", *table((f"without {what}", "ms a step back"), rows_of)]
    kinds = [
        (name, f"{value:.3f}", f"{found.optype_ms[name]:,.1f}")
        for name, value in found.by_optype.items()
        if value > 1.001 or found.optype_ms[name] > 0.001 * found.actual_ms
    ]
    if kinds:
        lines += ["", *table(("operation", "slowdown by it alone", "ms a step back"), kinds)]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _rounded(share: float) -> float:
    """A share in hundredths, never a negative zero."""
    return round(share, 2) + 0.0


def spans_text(found: SpanWhatIf) -> str:
    """An analysis of spans for a person."""
    rows = [
        (
            price.service,
            price.operation,
            str(price.spans),
            f"{price.median_self_ms:,.3f}",
            f"{price.critical_ms:,.3f}",
            f"{price.on_critical_path} of {found.traces}",
            "" if price.returns_ms is None else f"{price.returns_ms:,.3f}",
        )
        for price in found.operations[:_SHOWN]
    ]
    head = ("service", "operation", "spans", "median own ms", "critical ms", "on the path", "ms a trace back")
    rest = len(found.operations) - _SHOWN
    return "\n".join(
        [
            *_span_sentences(found),
            "",
            *table(head, rows),
            *([f"... {rest} more operations"] if rest > 0 else []),
            *(f"note: {note}" for note in found.notes),
        ]
    )


def _span_sentences(found: SpanWhatIf) -> list[str]:
    ideal = f"{found.ideal_ms:,.3f} ms with every operation at its median"
    lines = [f"S {found.slowdown:.3f}: {found.traces} traces of {found.mean_ms:,.3f} ms, {ideal}"]
    for price in found.operations[:3]:
        if price.returns_ms is not None and price.returns_ms > 0.01 * found.mean_ms:
            who = visible(f"{price.service} {price.operation}")
            where = f"on the critical path in {price.on_critical_path} of {found.traces} traces"
            copy = "" if price.instance is None else f"; most of it on {visible(price.instance)}"
            lines.append(f"speeding {who} to its median returns {price.returns_ms:,.3f} ms a trace; {where}{copy}")
    if len(lines) == 1:
        lines.append("no operation gives back more than 1 % of a trace")
    return lines
