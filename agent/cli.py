"""The command line. Errors of ours are one line on standard error and status 2; the job's own status passes through."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rankscope import __version__
from rankscope.agent.config import load_settings
from rankscope.errors import ExportError, RankscopeError, RecordingError

if TYPE_CHECKING:
    from rich.console import Console

    from rankscope.agent.run import RunResult

CANNOT = 2
_SIDES = ("hardware", "environment", "code", "unknown")
_FILE = click.Path(path_type=Path, dir_okay=False)
_RECORDINGS = click.argument(
    "recordings", nargs=-1, required=True, metavar="RECORDING...", type=click.Path(path_type=Path)
)


#: Commands that stand in modules of their own, as `module:function`; imported when they are called or listed.
_COMMANDS: dict[str, str] = {
    "analyzer": "rankscope.agent.analyzer:analyzer",
    "collectives": "rankscope.agent.collectives:collectives",
    "compare": "rankscope.agent.compare:compare",
    "gpus": "rankscope.agent.gpus:gpus",
    "diagnose": "rankscope.agent.diagnose:diagnose",
    "experiment": "rankscope.agent.experiment:experiment",
    "generate": "rankscope.agent.generated:generate",
    "hang": "rankscope.agent.hang_command:hang",
    "prioritise": "rankscope.agent.prioritise:prioritise",
    "quantiles": "rankscope.agent.quantiles:quantiles",
    "runbook": "rankscope.agent.runbook:runbook",
    "score": "rankscope.agent.score_command:score",
    "snapshot": "rankscope.agent.snapshot:snapshot",
    "trace": "rankscope.agent.trace:trace",
    "whatif": "rankscope.agent.whatif:whatif",
}


class _Commands(click.Group):
    """Turns an error of ours into its one line, wherever it comes from."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, function = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), function)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RankscopeError as error:
            click.echo(f"rankscope: {error}", err=True)
            ctx.exit(CANNOT)
        except BrokenPipeError:
            # Whoever read our output has read enough.
            sys.stderr.close()
            ctx.exit(0)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _put(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rankscope")
def main() -> None:
    """Says why a distributed PyTorch job is slow or died: hardware, environment or code, and which one exactly."""


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--config", type=_FILE, help="Configuration (TOML); also $RANKSCOPE_CONFIG.")
@click.option("--job", default="", help="Name of the job; from the launcher or the script unless given.")
@click.option(
    "--json", "json_file", default="", metavar="FILE", help='Verdict as JSON into FILE, "-" for standard output.'
)
@click.option("--html", type=_FILE, help="Verdict as one HTML page.")
@click.option("--perfetto", type=_FILE, help="Timeline as a trace for ui.perfetto.dev.")
@click.option("--fail-on", multiple=True, type=click.Choice(_SIDES), help="End with 1 where the verdict is this side.")
@click.option(
    "--store", is_flag=True, help="A VictoriaMetrics beside the run, with its page to look at; gone after it."
)
@click.option(
    "--store-directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the store's data here, and show what is there already; implies --store.",
)
@click.option("--store-program", type=_FILE, help="VictoriaMetrics, where it is not on PATH; implies --store.")
@click.option("--quiet", is_flag=True, help="Say nothing on the terminal.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    config: Path | None,
    job: str,
    json_file: str,
    html: Path | None,
    perfetto: Path | None,
    fail_on: Sequence[str],
    store: bool,
    store_directory: Path | None,
    store_program: Path | None,
    quiet: bool,
    command: Sequence[str],
) -> None:
    """Run COMMAND watched; the verdict comes at its end. Ends with the job's own status (128+n for a signal)."""
    from rankscope.agent.run import one_line, run_job

    settings = load_settings(config)

    def say(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    if store or store_directory or store_program:
        from rankscope.agent.local_store import run_beside_store

        result = run_beside_store(
            command, settings=settings, job=job, say=say, program=store_program, directory=store_directory
        )
    else:
        result = run_job(command, settings=settings, job=job, say=say)
    try:
        _tell(result, json_file, html, perfetto, quiet)
    except Exception as error:
        # The job's status is the answer, whatever became of ours.
        click.echo(f"rankscope: the verdict could not be written: {one_line(error)}", err=True)
    failed = result.verdict is not None and result.verdict.verdict in fail_on
    ctx.exit(result.exit_status or int(failed))


def _tell(result: RunResult, json_file: str, html: Path | None, perfetto: Path | None, quiet: bool) -> None:
    from rankscope.agent.verdict import show, write_outputs

    if result.verdict is None or result.window is None:
        return
    if not quiet:
        # Standard output is the job's.
        show(result.verdict, result.window, _console(stderr=True))
        click.echo(f"recording: {result.recording}", err=True)
    write_outputs(result.verdict, result.window, json_file=json_file, html=html, perfetto=perfetto)


@main.command()
@_RECORDINGS
@click.option("--json", "as_json", is_flag=True, help="The verdict as JSON on standard output.")
@click.option("--html", type=_FILE, help="The verdict as one HTML page.")
@click.option("--perfetto", type=_FILE, help="The timeline as a trace for ui.perfetto.dev.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help='The incident as a page to hand over, "-" for standard output.',
)
@click.option("--history", type=_FILE, help="Database of past jobs, to tell what follows a GPU or a rank.")
@click.option("--classes", type=_FILE, help="A site's own priors, log-odds and texts (TOML; docs/classes.md).")
def report(
    recordings: Sequence[Path],
    as_json: bool,
    html: Path | None,
    perfetto: Path | None,
    markdown: Path | None,
    classes: Path | None,
    history: Path | None,
) -> None:
    """The verdict over recordings of one run: one file a host, or a directory of them."""
    from rankscope.agent.hand_off import markdown_page
    from rankscope.agent.history import past_runs
    from rankscope.agent.verdict import conclude, show, write_outputs, write_text

    on_standard_output = markdown is not None and str(markdown) == "-"
    if as_json and on_standard_output:
        raise click.UsageError("--json and --markdown - both want standard output")
    if history is not None and not history.is_file():
        raise RecordingError("no such history", where=str(history))
    verdict, window = conclude(recordings, str(classes or ""), lambda window: past_runs(str(history or ""), window))
    if not (as_json or on_standard_output):
        show(verdict, window, _console())
    if markdown is not None:
        page = markdown_page(recordings, verdict, window)
        if on_standard_output:
            click.echo(page, nl=False)
        else:
            write_text(markdown, page)
    write_outputs(verdict, window, json_file="-" if as_json else "", html=html, perfetto=perfetto)


@main.command()
@_RECORDINGS
@click.option("--endpoint", required=True, help="URL of an OTLP receiver.")
@click.option("--protocol", default="", help="grpc or http/protobuf (default).")
@click.option("--json", "as_json", is_flag=True, help="The accounts as JSON.")
def replay(recordings: Sequence[Path], endpoint: str, protocol: str, as_json: bool) -> None:
    """Send recordings to an OTLP receiver, everything with the time it had."""
    import os

    from rankscope.agent.load import load_window
    from rankscope.exporters.otlp_settings import otlp_targets, resource_attributes
    from rankscope.exporters.replay import replay as send
    from rankscope.rules import diagnose

    window = load_window(recordings)
    balance = send(
        window,
        otlp_targets(os.environ, endpoint=endpoint, protocol=protocol),
        findings=diagnose(window),
        resource_attributes=resource_attributes(os.environ),
        say=lambda line: click.echo(line, err=True),
    )
    amounts = {name: asdict(getattr(balance, name)) for name in ("produced", "acknowledged", "waiting", "dropped")}
    if as_json:
        _put(amounts)
    else:
        click.echo(f"{balance.acknowledged.points} of {balance.produced.points} points delivered")
    if balance.dropped.points:
        raise ExportError(f"{balance.dropped.points} points were refused", where=endpoint)


@main.command()
@click.option("--config", type=_FILE, help="Configuration (TOML); also $RANKSCOPE_CONFIG.")
@click.option("--once", is_flag=True, help="End when every rank that was seen has ended.")
@click.option("--json", "as_json", is_flag=True, help="Say which jobs are watched as JSON lines.")
def agent(config: Path | None, once: bool, as_json: bool) -> None:
    """Watch every job of this host whose ranks attached by themselves. Runs until SIGTERM or Ctrl-C."""
    from rankscope.agent.node import watch_node

    def say(job: str, recording: Path) -> None:
        line = {"job": job, "recording": str(recording)}
        click.echo(json.dumps(line) if as_json else f"watching {job}, recording {recording}")

    def refuse(line: str) -> None:
        click.echo(f"rankscope: {line}", err=True)

    watch_node(load_settings(config), say=say, refuse=refuse, once=once)


@main.command()
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option("--json", "as_json", is_flag=True, help="One picture as JSON.")
def top(recording: Path, once: bool, as_json: bool) -> None:
    """Live view of a recording that is being written."""
    from rankscope.agent.top import picture, watch

    if as_json:
        _put(picture(recording).document())
    else:
        watch(recording, _console(), once=once)


@main.command()
@click.option("--config", type=_FILE, help="Configuration (TOML); also $RANKSCOPE_CONFIG.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(config: Path | None, as_json: bool) -> None:
    """What can be read on this machine, what cannot, and what would change that."""
    from rankscope.agent.doctor import document, examine, find_profile, print_examination

    settings = load_settings(config)
    found, profile = examine(settings), find_profile(settings)
    if as_json:
        _put(document(found, profile))
    else:
        print_examination(found, profile, _console())


@main.command()
@click.option("--scenario", "file", type=_FILE, help="What happens; a GPU that gets too hot unless given.")
@click.option("--seed", type=int, help="Another seed than the scenario's.")
@click.option("--json", "as_json", is_flag=True, help="The verdict as JSON on standard output.")
@click.option(
    "--html", type=_FILE, default=Path("rankscope-demo.html"), show_default=True, help="The verdict as one HTML page."
)
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave recording and log in this directory."
)
@click.pass_context
def demo(ctx: click.Context, file: Path | None, seed: int | None, as_json: bool, html: Path, keep: Path | None) -> None:
    """A real distributed job on simulated GPUs of this machine, with a fault, and the verdict on it."""
    from dataclasses import replace

    from rankscope.agent.demo import demonstrate
    from rankscope.agent.verdict import show, write_outputs
    from rankscope.simulator.scenario_file import SCENARIOS, load_scenario

    scenario = load_scenario(file or SCENARIOS / "demo.toml")
    console = _console(stderr=as_json)
    done = demonstrate(scenario if seed is None else replace(scenario, seed=seed), console, keep=keep)
    result = done.result
    if result.verdict is None or result.window is None:
        ctx.exit(CANNOT)
    if not as_json:
        show(result.verdict, result.window, console)
    write_outputs(result.verdict, result.window, json_file="-" if as_json else "", html=html)
    click.echo(f"page: {html}", err=as_json)
    ctx.exit(result.exit_status if done.interrupted else 0)
