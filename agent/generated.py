"""`rankscope generate`: a scenario as the recordings it would have left, one file a host."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from rankscope.agent.recording import Recording
from rankscope.errors import RecordingError
from rankscope.reading import Reading
from rankscope.records import DeviceRecord, GroupRecord, RingRecord, StepRecord
from rankscope.ring import VERSION, RingHeader
from rankscope.window import Columns, RankWindow, Window


def write_recordings(window: Window, directory: Path) -> list[Path]:
    """Write a window as recordings, one a host, into an empty or new directory. Raises RecordingError."""
    hosts = list(window.anchors)
    paths = [directory / f"{host}.db" for host in hosts]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = next((path for path in paths if path.exists()), None)
    except OSError as error:
        raise RecordingError(f"cannot be used ({error.strerror})", where=str(directory)) from error
    if taken is not None:
        raise RecordingError("is there already", where=str(taken), todo="name a new directory")
    for host, path in zip(hosts, paths, strict=True):
        _write(window, host, path)
    return paths


def _write(window: Window, host: str, path: Path) -> None:
    recording = Recording.create(path, job=window.job, host=host)
    try:
        anchor = window.anchors[host]
        recording.set_meta("anchor_monotonic_ns", anchor.monotonic_ns)
        recording.set_meta("anchor_wall_ns", anchor.wall_ns)
        recording.set_meta("gpus", json.dumps(list(window.gpus.get(host, ()))))
        if window.job_status is not None:
            recording.set_meta("job_status", window.job_status)
        recording.add_events(event for event in window.events if event.host == host)
        for of in window.ranks.values():
            if of.identity.host == host:
                number, _ = recording.add_rank(
                    f"{of.identity.rank}.ring", RingHeader(of.identity, anchor, slots=1, version=VERSION)
                )
                recording.add_records(number, _records(of), position=0)
                _commit(recording)
        for key, series in window.series.items():
            if key.host == host:
                recording.add_readings(
                    Reading(key.metric, value, time_ns, key.device)
                    for time_ns, value in zip(series.times_ns, series.values, strict=True)
                )
        _commit(recording)
    finally:
        recording.close()


def _commit(recording: Recording) -> None:
    if not recording.commit():
        raise RecordingError(f"cannot be written ({recording.trouble})", where=str(recording.path))


def _records(of: RankWindow) -> Iterator[RingRecord]:
    for row in _rows(of.steps):
        yield StepRecord(**_filled(StepRecord, row))
    for row in _rows(of.device):
        yield DeviceRecord(**_filled(DeviceRecord, row))
    for name, columns in of.groups.items():
        for row in _rows(columns):
            yield GroupRecord(**_filled(GroupRecord, row) | {"group": name, "members": of.members.get(name, "")})


def _rows(columns: Columns) -> Iterator[dict[str, int | None]]:
    names = list(columns.columns)
    for values in zip(*columns.columns.values(), strict=True):
        yield {name: None if math.isnan(value) else round(value) for name, value in zip(names, values, strict=True)}


def _filled(kind: type[Any], row: dict[str, int | None]) -> dict[str, Any]:
    """A row with the fields that a record must have; what the window does not know stays out."""
    return {each.name: row.get(each.name) for each in fields(kind) if each.name not in ("group", "members")}


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory for the recordings, one a host.",
)
@click.option("--seed", type=int, help="Another seed than the scenario's.")
@click.option("--json", "as_json", is_flag=True, help="The files as JSON.")
def generate(scenario: Path, output: Path, seed: int | None, as_json: bool) -> None:
    """Write the recordings that SCENARIO would have left; read them with `rankscope report DIRECTORY`."""
    from dataclasses import replace

    from rankscope.simulator.generate import generate as made
    from rankscope.simulator.scenario_file import load_scenario

    loaded = load_scenario(scenario)
    paths = write_recordings(made(loaded if seed is None else replace(loaded, seed=seed)), output)
    if as_json:
        click.echo(json.dumps({"recordings": [str(path) for path in paths]}, indent=2))
    else:
        for path in paths:
            click.echo(str(path))
