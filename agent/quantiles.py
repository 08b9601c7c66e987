"""`rankscope quantiles`: p50, p95, p99 of a stream or log of latencies, or of sketches, with their error bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rankscope.agent.latencies import (
    UNITS,
    Extract,
    Reader,
    blocks,
    by_column,
    by_field,
    by_pattern,
    open_stream,
    whole_line,
)
from rankscope.errors import ConfigurationError
from rankscope.exporters.histogram import SCALES, ExponentialHistogram
from rankscope.exporters.sketch_json import SCHEMA, OtlpHistograms, read_sketch, sketch_document

#: Buckets of a sketch: about 1 MB, and values that spread 2**64 times at the finest scale that --relative-error gives
#: by default before neighbours are joined.
MAX_BUCKETS = 8192
DEFAULT_RELATIVE_ERROR = 0.005


@dataclass(slots=True)
class Sketched:
    """What was read: the sketch, the unit of its values ("" where nobody said), lines without a latency."""

    histogram: ExponentialHistogram
    unit: str = ""
    unread: int = 0
    example: str = ""
    interrupted: bool = False

    def merge(self, histogram: ExponentialHistogram, unit: str, where: str) -> None:
        """Add a sketch; raises ConfigurationError where its unit is another."""
        if self.histogram.count and unit != self.unit:
            raise ConfigurationError(
                f'values in "{unit}" beside values in "{self.unit}"', where=where, todo="name the unit of bare numbers"
            )
        self.unit = unit
        self.histogram.merge(histogram)

    def document(self, quantiles: Sequence[float]) -> dict[str, Any]:
        """As JSON (docs/schemas/quantiles.schema.json)."""
        histogram = self.histogram
        rows = []
        for q in quantiles:
            bounds, value = histogram.quantile_bounds(q), histogram.quantile(q)
            if bounds is not None:
                rows.append({"q": q, "value": value, "low": bounds[0], "high": bounds[1]})
        return {
            "schema": "rankscope.quantiles/1",
            "unit": self.unit,
            "count": histogram.count,
            "unread": self.unread,
            "interrupted": self.interrupted,
            "sum": histogram.sum,
            "minimum": histogram.minimum if histogram.count else None,
            "maximum": histogram.maximum if histogram.count else None,
            "relative_error": histogram.relative_error,
            "quantiles": rows,
        }


def scale_for(relative_error: float) -> int:
    """The coarsest scale whose quantiles are wrong by at most that much. Raises ConfigurationError."""
    if 0 < relative_error < 1:
        scale = math.ceil(-math.log2(math.log2((1 + relative_error) / (1 - relative_error))))
        if scale in SCALES:
            return scale
    raise ConfigurationError(
        f"{relative_error:g} is out of reach", where="--relative-error", todo="choose one between 0.000001 and 0.9"
    )


def sketch(files: Sequence[Path], extract: Extract | str, reader: Reader, scale: int, metric: str) -> Sketched:
    """One sketch over all files; `extract` may be the name of a CSV column. Raises RankscopeError.

    Ctrl-C ends the reading, and what was read counts.
    """
    found = Sketched(ExponentialHistogram(scale=scale, max_buckets=MAX_BUCKETS))
    read = ExponentialHistogram(scale=scale, max_buckets=MAX_BUCKETS)
    otlp = OtlpHistograms()
    where = ""
    try:
        for path in files:
            where = str(path)
            with open_stream(path) as stream:
                _read(blocks(stream, where), extract, reader, read, found, otlp, where)
    except KeyboardInterrupt:
        found.interrupted = True
    merged = otlp.merged()
    names = sorted({name for name, _ in merged})
    if metric and metric not in names:
        raise ConfigurationError(f'no metric "{metric}"; there are {", ".join(names) or "none"}', where="--metric")
    if len(names) > 1 and not metric:
        raise ConfigurationError(f"several metrics: {', '.join(names)}", where=where, todo="choose one with --metric")
    for (name, unit), histogram in merged.items():
        if metric in ("", name):
            found.merge(histogram, unit, where)
    if read.count:
        found.merge(read, reader.unit, where)
    found.unread, found.example = reader.unread, reader.example
    return found


def _read(
    lines: Iterator[list[str]],
    extract: Extract | str,
    reader: Reader,
    read: ExponentialHistogram,
    found: Sketched,
    otlp: OtlpHistograms,
    where: str,
) -> None:
    kind: Extract | None = None if isinstance(extract, str) else extract
    documents: bool | None = None
    for block in lines:
        if kind is None and block:
            kind = by_column(str(extract), block.pop(0), where)
        if documents is None and any(block):
            documents = not isinstance(extract, str) and kind is _WHOLE and next(filter(None, block)).startswith("{")
        if documents:
            for line in filter(None, block):
                _take_document(line, found, otlp, where)
        elif kind is not None:
            read.add_all(reader.values(block, kind, where))


def _take_document(line: str, found: Sketched, otlp: OtlpHistograms, where: str) -> None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and document.get("schema") == SCHEMA:
        histogram, unit = read_sketch(document, where)
        found.merge(histogram, unit, where)
    elif isinstance(document, dict) and "resourceMetrics" in document:
        otlp.add(document, where)
    else:
        raise ConfigurationError(
            "JSON that is neither a sketch nor OTLP metrics", where=where, todo="name the latency's field with --field"
        )


_WHOLE = whole_line()


def _asked(text: str) -> list[float]:
    try:
        quantiles = [float(part.strip().removeprefix("p")) / (100 if "p" in part else 1) for part in text.split(",")]
    except ValueError:
        quantiles = []
    if not quantiles or not all(0 <= q <= 1 for q in quantiles):
        raise ConfigurationError(f"cannot use {text!r}", where="--quantiles", todo='write "p50,p99" or "0.5,0.99"')
    return quantiles


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE...]", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--field", default="", help="The latency's field in JSON lines (dots go into objects) or logfmt.")
@click.option("--column", default="", help="Its column in comma-separated lines with a header.")
@click.option("--pattern", default="", help="A regular expression whose first group is the latency.")
@click.option("--unit", default="", type=click.Choice(["", *UNITS]), help="Unit of numbers that carry none.")
@click.option("--metric", default="", help="Which exponential histogram of OTLP/JSON lines.")
@click.option("--quantiles", "asked", default="p50,p95,p99", show_default=True, help="Which quantiles.")
@click.option("--relative-error", default=DEFAULT_RELATIVE_ERROR, show_default=True, help="How wrong they may be.")
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Leave the sketch here, to be merged.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def quantiles(
    files: Sequence[Path],
    field: str,
    column: str,
    pattern: str,
    unit: str,
    metric: str,
    asked: str,
    relative_error: float,
    save: Path | None,
    as_json: bool,
) -> None:
    """Quantiles of latencies in FILEs (or standard input), of any length, with their error bounds.

    A line is a latency ("12.3", "12.3ms"), or holds one (--field, --column, --pattern). FILEs that hold sketches
    (--save) or a collector's OTLP/JSON lines are merged. Files may be gzipped.
    """
    from rankscope.agent.verdict import write_text

    if sum(map(bool, (field, column, pattern))) > 1:
        raise ConfigurationError("--field, --column and --pattern exclude each other", where="quantiles")
    extract: Extract | str = column
    if not column:
        extract = by_field(field) if field else by_pattern(pattern) if pattern else _WHOLE
    wanted = _asked(asked)
    sources = files or (Path("-"),)
    found = sketch(sources, extract, Reader(unit), scale_for(relative_error), metric)
    if not found.histogram.count:
        example = f', as in "{found.example}"' if found.example else ""
        raise ConfigurationError(
            f"no latency in {found.unread} lines{example}",
            where=", ".join(map(str, sources)),
            todo="say where it stands with --field, --column or --pattern",
        )
    if save is not None:
        write_text(save, json.dumps(sketch_document(found.histogram, found.unit)) + "\n")
    document = found.document(wanted)
    click.echo(json.dumps(document, indent=2) if as_json else told(document))
    if found.unread and not as_json:
        click.echo(f'{found.unread} lines without a latency, as "{found.example}"', err=True)


def told(document: dict[str, Any]) -> str:
    """The document for a person."""
    unit = document["unit"]
    count = document["count"]
    mean, least, most = (
        _spoken(value, unit) for value in (document["sum"] / count, document["minimum"], document["maximum"])
    )
    lines = [f"{count} values, mean {mean}, from {least} to {most}"]
    for row in document["quantiles"]:
        value, low, high = (_spoken(row[key], unit) for key in ("value", "low", "high"))
        lines.append(f"p{100 * row['q']:<6g} {value:>12}   between {low} and {high}")
    lines.append(f"relative error at most {100 * document['relative_error']:.2g} %")
    return "\n".join(lines)


def _spoken(value: float, unit: str) -> str:
    if unit != "s" or not value:
        return f"{value:.4g}{' ' if unit else ''}{unit}"
    for name in ("s", "ms", "us", "ns"):
        if value >= UNITS[name] or name == "ns":
            return f"{value / UNITS[name]:.4g} {name}"
    return ""
