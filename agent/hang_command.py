"""`rankscope hang`: flight-recorder dumps of a job that hung, compared over ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rankscope.rules.flight_suspects import Comparison


@click.command("hang")
@click.argument("dumps", nargs=-1, required=True, metavar="DUMPS...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The comparison as JSON on standard output.")
@click.option("--all", "show_all", is_flag=True, help="Every operation that does not end, not only the first ones.")
def hang(dumps: Sequence[Path], as_json: bool, show_all: bool) -> None:
    """Which rank holds up a hung job, from the flight-recorder DUMPS of its ranks (files or directories)."""
    comparison = compare_files(dumps)
    if as_json:
        from rankscope.agent.hang_document import comparison_document

        click.echo(json.dumps(comparison_document(comparison), indent=2))
    else:
        from rich.console import Console

        from rankscope.agent.hang_terminal import print_comparison

        print_comparison(comparison, Console(), show_all=show_all)


def compare_files(paths: Sequence[Path]) -> Comparison:
    """Read and compare. Raises DumpError."""
    from rankscope.agent.flight_files import read_dumps
    from rankscope.rules.flight_suspects import compare

    files = read_dumps(paths)
    return compare(files.dumps, files.notes)
