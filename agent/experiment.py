"""`rankscope experiment`: what a knob really does to the step, and whether two series are a feedback loop."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import numpy as np

from rankscope.agent.config import Settings, load_settings, ring_root
from rankscope.agent.environment_knob import Variable, parse_variable
from rankscope.agent.experiment_text import switchback_document, told_loop, told_switchback
from rankscope.agent.loop_series import recorded_columns
from rankscope.agent.switchback import AgentKnob, CommandKnob, Design, GroupKnob, Knob, Switchback
from rankscope.errors import ConfigurationError
from rankscope.rules import feedback
from rankscope.rules.switchback import LEAST_BLOCKS

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def experiment() -> None:
    """What a knob really does to the step, by randomised windows; and feedback loops told from coincidence."""


@experiment.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--on", "on_command", default="", help="Command that turns the knob on.")
@click.option("--off", "off_command", default="", help="Command that turns it off; it is off at the end.")
@click.option("--agent", "the_agent", is_flag=True, help="The knob is Rankscope's own agent.")
@click.option("--group", "groups", multiple=True, help="The knob is a group of a probe (nvml/gpm); several at once.")
@click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME=OFF,ON",
    help="The knob is an environment variable: COMMAND is run anew for every window. An empty value leaves it unset.",
)
@click.option("--window-steps", default=20, show_default=True, type=click.IntRange(2), help="Steps of a window.")
@click.option("--settle-steps", default=3, show_default=True, type=click.IntRange(0), help="Steps left out before.")
@click.option("--max-blocks", default=200, show_default=True, type=click.IntRange(LEAST_BLOCKS), help="Then stop.")
@click.option("--margin", default=0.005, show_default=True, help="Share of the step that does not matter.")
@click.option("--seed", default=0, help="Of the order of the windows.")
@click.option(
    "--limit",
    "limit_seconds",
    default=1800.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="With --env: seconds in which a run has to fill its window.",
)
@click.option("--config", type=_FILE, help="Configuration (TOML); also $RANKSCOPE_CONFIG.")
@click.option("--json", "json_file", default="", metavar="FILE", help='As JSON into FILE, "-" for standard output.')
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    on_command: str,
    off_command: str,
    the_agent: bool,
    groups: tuple[str, ...],
    variables: tuple[str, ...],
    window_steps: int,
    settle_steps: int,
    max_blocks: int,
    margin: float,
    seed: int,
    limit_seconds: float,
    config: Path | None,
    json_file: str,
    command: Sequence[str],
) -> None:
    """Run COMMAND and switch a knob on and off in random order: what a step costs with it, until that is decided.

    Ends with the job's own status, and the job goes on when it is decided. With --env it is run anew for every window
    and ended after it: 0 when there is an answer, else the status of the run that failed.
    """
    from rankscope.agent.run import run_job

    settings = load_settings(config)
    if [the_agent, bool(on_command or off_command), bool(groups), bool(variables)].count(True) != 1:
        todo = "give --on and --off, or --agent, or --group, or --env"
        raise ConfigurationError("needs one knob", where="experiment run", todo=todo)
    design = Design(window_steps, settle_steps, max_blocks=max_blocks, margin=margin, seed=seed)
    if variables:
        variable = parse_variable(variables)
        ctx.exit(_run_anew(command, variable, design, settings, limit_seconds, json_file))
    knob: Knob = AgentKnob() if the_agent else CommandKnob(on_command, off_command)
    if groups:
        _refuse_unknown(groups)
        knob = GroupKnob(groups, settings.rings.poll_seconds)
    begun: list[Switchback] = []

    def begin(rings: Path) -> None:
        if isinstance(knob, GroupKnob):
            knob.rings = rings
        begun.append(Switchback(rings, knob, design, _say))
        begun[0].start()

    def end() -> None:
        for ran in begun:
            ran.stop()

    result = run_job(command, settings=settings, say=_say, rings_made=begin, job_ended=end)
    document = switchback_document(begun[0] if begun else None, knob.name, design)
    _put(document, json_file)
    click.echo(told_switchback(document), err=True)
    ctx.exit(result.exit_status)


def _run_anew(
    command: Sequence[str], variable: Variable, design: Design, settings: Settings, limit_seconds: float, json_file: str
) -> int:
    """The experiment with a variable; its exit status."""
    from rankscope.agent.restarts import Restarts
    from rankscope.agent.run import own_rings, sweep

    root = ring_root(settings, os.environ)
    sweep(root)
    ran = Restarts(
        command, variable, design, rings=own_rings(root), environ=os.environ, limit_seconds=limit_seconds, say=_say
    )
    ran.run()
    document = switchback_document(
        ran, f"{variable.told(True)} instead of {variable.told(False)}", design, ran.run_seconds
    )
    _put(document, json_file)
    click.echo(told_switchback(document), err=True)
    return ran.exit_status


def _say(line: str) -> None:
    click.echo(line, err=True)


def _refuse_unknown(groups: tuple[str, ...]) -> None:
    from rankscope.probes.registry import built_in

    known = [f"{probe.name}/{group.name}" for probe in built_in() for group in probe.groups]
    for group in groups:
        if group not in known:
            there = ", ".join(get_close_matches(group, known, 3, 0.3) or known)
            raise ConfigurationError(f'no group "{group}"', where="--group", todo=f"there are {there}")


@experiment.command("loop")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--cause", required=True, help="Column of the series that may be driven.")
@click.option("--effect", "effect_name", required=True, help="Column of the series that may come back into it.")
@click.option("--cut", "cut_name", default="cut", show_default=True, help="Column: 1 where the return path was cut.")
@click.option("--cuts", type=_FILE, help="Of a recording: CSV with begin and end (seconds since 1970) of each cut.")
@click.option("--every", default=1.0, show_default=True, help="Of a recording: seconds of a sample.")
@click.option("--max-delay", default=12, show_default=True, type=click.IntRange(1), help="Samples to look back.")
@click.option("--period", type=click.IntRange(2), help="Length of a shared cycle, in samples (24 hours of a day).")
@click.option("--alpha", default=0.01, show_default=True, help="Chance to call a coincidence a loop.")
@click.option("--seed", default=0, help="Of the redraws.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def loop(
    table: Path,
    cause: str,
    effect_name: str,
    cut_name: str,
    cuts: Path | None,
    every: float,
    max_delay: int,
    period: int | None,
    alpha: float,
    seed: int,
    as_json: bool,
) -> None:
    """Whether one series of TABLE comes back into another: gain, delay, interval.

    TABLE is a CSV of evenly spaced rows, or, with --cuts, a recording or a directory of them: series are then named
    METRIC or METRIC@DEVICE, and step_ms are the steps. Without windows in which the return path was cut there is no
    telling: `experiment schedule` draws them.
    """
    if cuts is not None:
        if not 1e-3 <= every <= 1e6:
            raise ConfigurationError(f"--every {every:g} is no length of a sample", todo="give seconds: 1")
        columns, cut = recorded_columns(table, (cause, effect_name), cuts, every)
    else:
        columns = read_table(table, (cause, effect_name, cut_name))
        if not np.isin(columns[cut_name], (0.0, 1.0)).all():
            raise ConfigurationError(f'column "{cut_name}" holds more than 0 and 1', where=str(table))
        cut = columns[cut_name].astype(bool)
    found = feedback.loop(
        columns[cause],
        columns[effect_name],
        cut,
        max_delay=max_delay,
        period=period,
        alpha=alpha,
        seed=seed,
    )
    if found is None:
        raise ConfigurationError(
            f"fewer than {feedback.LEAST_WINDOWS} windows of either kind",
            where=f'{table}, column "{cut_name}"' if cuts is None else str(cuts),
            todo="cut the return path in windows drawn by chance: `rankscope experiment schedule`",
        )
    document = {"schema": "rankscope.loop/1", "cause": cause, "effect": effect_name, **asdict(found)}
    document["verdict"] = str(found.verdict)
    click.echo(json.dumps(document, indent=2) if as_json else told_loop(document))


@experiment.command("schedule")
@click.option("--windows", default=40, show_default=True, type=click.IntRange(2 * feedback.LEAST_WINDOWS))
@click.option("--length", default=12, show_default=True, type=click.IntRange(1), help="Samples of a window.")
@click.option("--share", default=0.3, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True))
@click.option("--seed", default=0)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def schedule(windows: int, length: int, share: float, seed: int, as_json: bool) -> None:
    """Windows in which to cut the return path, drawn by chance: a column of 0 and 1, one a sample."""
    cut = feedback.schedule(windows, length, share, seed).astype(int).tolist()
    click.echo(json.dumps({"cut": cut}) if as_json else "cut\n" + "\n".join(map(str, cut)))


def read_table(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Columns of numbers. Raises ConfigurationError that names the file, the column and the line."""
    try:
        stream = sys.stdin if str(path) == "-" else path.open(newline="", encoding="utf-8")
        with stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"cannot be read ({error})", where=str(path)) from error
    if not rows:
        raise ConfigurationError("holds no rows under a header", where=str(path))
    columns = {}
    for name in names:
        if name not in rows[0]:
            there = ", ".join(str(column) for column in rows[0])
            raise ConfigurationError(f'no column "{name}"; there are {there}', where=str(path))
        try:
            columns[name] = np.array([float(row[name]) for row in rows])
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f'column "{name}" holds what is no number ({error})', where=str(path)) from error
        if not np.isfinite(columns[name]).all():
            raise ConfigurationError(f'column "{name}" holds what is not finite', where=str(path))
    return columns


def _put(document: dict[str, Any], json_file: str) -> None:
    from rankscope.agent.verdict import write_text

    text = json.dumps(document, indent=2) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
    elif json_file:
        write_text(Path(json_file), text)
