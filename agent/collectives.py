"""`rankscope collectives`: who comes late in a job's collectives, by the best record of them that a user has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rankscope.agent.collectives_document import flight_document, timed_document
from rankscope.agent.inspector_files import is_inspector_output, read_inspector
from rankscope.rules.flight_lateness import arrivals, clocks_of
from rankscope.rules.lateness import rank_lateness
from rankscope.rules.timed import join, meetings, processes_of, slow_links


@click.command("collectives")
@click.argument("files", nargs=-1, required=True, metavar="FILES...", type=click.Path(path_type=Path, exists=True))
@click.option("--json", "as_json", is_flag=True, help="The comparison as JSON on standard output.")
@click.option("--one-clock", is_flag=True, help="All ranks ran on one host: flight recorders share its clock.")
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True, help="Lines of each list.")
def collectives(files: Sequence[Path], as_json: bool, one_clock: bool, top: int) -> None:
    """Who comes late in collectives, and which links are slow.

    FILES (or directories) are what NCCL's Inspector wrote, which times every collective on the device, or
    flight-recorder dumps of a job that runs, which tell when each host enqueued it.
    """
    document = collectives_document(files, one_clock=one_clock)
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        from rankscope.agent.collectives_text import collectives_text

        click.echo(collectives_text(document, top))


def collectives_document(files: Sequence[Path], *, one_clock: bool = False) -> dict[str, Any]:
    """Read and compare. Raises TraceError, DumpError."""
    if any(is_inspector_output(path) for path in files):
        read = read_inspector(files)
        joined = join(read.operations)
        processes = processes_of(read.operations)
        ranking = rank_lateness(meetings(joined, processes))
        return timed_document(read, joined, processes, ranking, slow_links(joined, read.operations))
    from rankscope.agent.flight_files import read_dumps

    dumps = read_dumps(files)
    clocks = clocks_of(dumps.dumps, one_clock=one_clock)
    return flight_document(dumps, clocks, rank_lateness(arrivals(dumps.dumps, clocks)))
