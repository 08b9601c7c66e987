"""`rankscope snapshot`: have running ranks leave the state of their memory allocator in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rankscope.agent.config import load_settings, ring_root
from rankscope.agent.node import DEFAULT_DIRECTORY
from rankscope.agent.processes import process_stat
from rankscope.control import Command, send
from rankscope.errors import ConfigurationError, RingError
from rankscope.ring import SUFFIX, RingHeader, RingReader


@click.command()
@click.option("--job", default="", help="Of this job only.")
@click.option("--rank", type=click.IntRange(0), help="Of this rank only; of every rank unless given.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration (TOML).")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def snapshot(job: str, rank: int | None, config: Path | None, as_json: bool) -> None:
    """Ask the ranks on this host for a memory snapshot: a file that pytorch.org/memory_viz reads.

    It lies beside the recording, and an event of the recording names it. Needs a GPU.
    """
    root = ring_root(load_settings(config))
    asked: list[dict[str, Any]] = []
    refused: list[str] = []
    for path, header in sorted(_rings(root), key=lambda found: found[1].identity.rank):
        identity = header.identity
        if job not in ("", identity.job) or rank not in (None, identity.rank):
            continue
        try:
            send(path, Command.SNAPSHOT)
            asked.append({"job": identity.job, "rank": identity.rank, "pid": identity.pid})
        except RingError as error:
            refused.append(str(error))
    if not asked:
        why = f" ({refused[0]})" if refused else ""
        raise ConfigurationError(
            f"no such rank runs here{why}", where=str(root), todo="name the --job and --rank of one"
        )
    if as_json:
        click.echo(json.dumps({"asked": asked, "refused": refused}, indent=2))
        return
    for each in asked:
        click.echo("asked rank {rank} of {job} (pid {pid})".format(**each))
    for line in refused:
        click.echo(f"rankscope: {line}", err=True)


def _rings(root: Path) -> Iterator[tuple[Path, RingHeader]]:
    """Rings of living processes under `root`, and of ranks that attached by themselves."""
    places = {root, Path(os.environ.get("RANKSCOPE_DIR") or DEFAULT_DIRECTORY)}
    paths = {path for place in places for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}") for path in place.glob(pattern)}
    for path in sorted(paths):
        try:
            reader = RingReader(path, owners=frozenset({os.getuid()}) if os.getuid() else None)
        except RingError:
            continue
        reader.close()
        stat = process_stat(reader.header.identity.pid)
        if stat is not None and stat.start_ticks == reader.header.identity.start_ticks:
            yield path, reader.header
