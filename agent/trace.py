"""`rankscope trace`: kernel stalls of profiler traces, one rank or many."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rankscope.agent.kineto import read_trace
from rankscope.agent.trace_document import SCHEMA, comparison_document, rank_document
from rankscope.agent.trace_text import trace_text
from rankscope.errors import TraceError
from rankscope.rules.trace.analysis import analyse
from rankscope.rules.trace.compare import compare, verdict
from rankscope.rules.trace.events import NS_PER_US
from rankscope.rules.trace.exchange import RankExchange, exchange_of

_SUFFIXES = (".json", ".json.gz")
#: A longer number in a file's name is a process or a time.
_RANK_DIGITS = 4


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
@click.option("--all-steps", is_flag=True, help="Count the last profiled step too, whose kernels may be cut off.")
@click.option(
    "--kernel-wait-us",
    type=click.FloatRange(0, 1e6),
    default=30.0,
    show_default=True,
    help="Gaps below this are the launch's own.",
)
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True, help="Lines of each list.")
def trace(files: Sequence[Path], as_json: bool, all_steps: bool, kernel_wait_us: float, top: int) -> None:
    """Kernel stalls of profiler traces (Kineto JSON, plain or gzip); directories stand for the traces in them."""
    document = trace_document(files, all_steps=all_steps, threshold_ns=round(kernel_wait_us * NS_PER_US), top=top)
    click.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else trace_text(document))


def trace_document(
    files: Sequence[Path], *, all_steps: bool = False, threshold_ns: int = 30 * NS_PER_US, top: int = 10
) -> dict[str, Any]:
    """Read and analyse one trace after the other, so that only one is held at a time. Raises TraceError."""
    ranks, exchanges = [], []
    paths = trace_files(files)
    named = numbers_in_names(paths)
    for path in paths:
        rank, exchange = _one(path, named.get(path), all_steps, threshold_ns, top)
        ranks.append(rank)
        exchanges.append(exchange)
    ranks.sort(key=lambda rank: (rank["rank"], rank["file"]))
    compared = compare(exchanges)
    summary = verdict(compared) or (ranks[0]["summary"] if len(ranks) == 1 else "")
    return {"schema": SCHEMA, "summary": summary, "comparison": comparison_document(compared, top), "ranks": ranks}


def _one(
    path: Path, named: int | None, all_steps: bool, threshold_ns: int, top: int
) -> tuple[dict[str, Any], RankExchange]:
    """What is kept of one trace; the rest goes when this returns."""
    read = read_trace(path)
    if not read.rank_from and named is not None:
        read = replace(read, trace=replace(read.trace, rank=named), rank_from="file name")
    analysis = analyse(read.trace, threshold_ns=threshold_ns, all_steps=all_steps)
    return rank_document(read, analysis, top), exchange_of(analysis)


def numbers_in_names(paths: Sequence[Path]) -> dict[Path, int]:
    """The last number in each file's name, where it tells several files apart and may be a rank; else nothing."""
    found = {path: re.findall(r"\d+", path.name.partition(".")[0]) for path in paths}
    numbers = {path: int(each[-1]) for path, each in found.items() if each and len(each[-1]) <= _RANK_DIGITS}
    return numbers if len(paths) > 1 and len(set(numbers.values())) == len(paths) else {}


def trace_files(given: Sequence[Path]) -> list[Path]:
    """The traces meant by files and directories. Raises TraceError where there is none."""
    return list(dict.fromkeys(_found(given)))


def _found(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if not path.is_dir():
            yield path
            continue
        try:
            inside = sorted(each for each in path.iterdir() if each.name.endswith(_SUFFIXES) and each.is_file())
        except OSError as error:
            raise TraceError(error.strerror or "cannot be read", where=str(path)) from None
        if not inside:
            raise TraceError(f"holds no trace ({' or '.join(_SUFFIXES)})", where=str(path))
        yield from inside
