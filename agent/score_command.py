"""The command `rankscope score`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--mode",
    type=click.Choice(["generated", "real"]),
    default="generated",
    show_default=True,
    help="Generated recordings (milliseconds each), or real jobs on simulated GPUs (half a minute each).",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs of each scenario.")
@click.option(
    "--clean-seeds",
    type=click.IntRange(0, 10_000),
    default=0,
    help="Generated runs of scenarios in which nothing is injected, where that is more.",
)
@click.option("--views/--no-views", default=True, help="Judge generated runs with each source taken away, too.")
@click.option("--json", "as_json", is_flag=True, help="Figures and the rows behind them as JSON on standard output.")
@click.option(
    "--markdown",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A page whose section on this mode and directory is written anew; other sections stay.",
)
def score(
    directory: Path, mode: str, seeds: int, clean_seeds: int, views: bool, as_json: bool, page: Path | None
) -> None:
    """Score the verdicts on the scenarios in DIRECTORY (or one file) against what was injected."""
    from rankscope.agent.scoreboard import scenarios_in, score_generated, score_real
    from rankscope.agent.scoreboard_page import markdown, with_section
    from rankscope.agent.verdict import write_text

    def say(line: str) -> None:
        click.echo(line, err=True)

    scenarios = scenarios_in(directory)
    if mode == "real":
        figures = score_real(scenarios, seeds, say=say)
    else:
        figures = score_generated(scenarios, seeds, say=say, views=views, clean_seeds=clean_seeds)
    command = f"rankscope score {directory} --mode {mode} --seeds {seeds}"
    text = markdown(figures, command + (f" --clean-seeds {clean_seeds}" if clean_seeds > seeds else ""))
    if page is not None:
        write_text(page, with_section(page, f"{mode} {directory.name}", text))
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        click.echo(text)
