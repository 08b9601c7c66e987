"""`rankscope gpus`: who uses which GPU of this host."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankscope.agent.attribution import RankProcess, Use, attribute
from rankscope.agent.config import Settings, load_settings, ring_root

if TYPE_CHECKING:
    from rich.console import Console


@click.command("gpus")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="Configuration (TOML); also $RANKSCOPE_CONFIG."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def gpus(config: Path | None, as_json: bool) -> None:
    """Who uses which GPU or MIG instance of this host: process, rank, container, pod, Slurm job, memory."""
    uses, reasons = gpu_uses(load_settings(config))
    if as_json:
        document = {
            "schema": "rankscope.gpus/1",
            "uses": [use.document() for use in uses],
            "not_seen": list(reasons),
        }
        click.echo(json.dumps(document, indent=2))
        return
    from rich.console import Console

    _print(uses, reasons, Console())


def gpu_uses(settings: Settings) -> tuple[list[Use], list[str]]:
    """(every process on every GPU, why GPUs could not be read). Raises ConfigurationError."""
    from rankscope.agent.doctor import ask
    from rankscope.agent.sources import build_sources
    from rankscope.probes.nvml import NvmlProbe

    sources = build_sources(settings, dict)
    probes = sources.probes
    asked = ask([probe for probe in probes if isinstance(probe, NvmlProbe)], sources.groups)
    for probe in probes:
        if not isinstance(probe, NvmlProbe):
            probe.close()
    if not asked:
        return [], ["nvml: switched off by probes.disabled"]
    [heard] = asked
    parents = {
        event.device: str(event.attributes["parent"])
        for event in heard.events
        if event.kind == "gpu-described" and event.attributes.get("parent")
    }
    reasons = [] if heard.metrics else [f"nvml: {reason}" for _, reason in heard.troubles]
    return attribute(heard.readings, _ranks(settings), parents), reasons


def _ranks(settings: Settings) -> Iterator[RankProcess]:
    """Ranks whose rings can be read here, also those in containers."""
    from rankscope.agent.containers import ContainerDirectories
    from rankscope.agent.node import DEFAULT_DIRECTORY
    from rankscope.agent.places import find_process
    from rankscope.clock import SystemClock
    from rankscope.errors import RingError
    from rankscope.ring import SUFFIX, RingReader

    node = Path(settings.rings.directory or os.environ.get("RANKSCOPE_DIR", "") or DEFAULT_DIRECTORY)
    containers = ContainerDirectories(node, SystemClock())
    places = [node, *containers.paths(), *sorted(ring_root(settings).glob("run-*"))]
    try:
        for path in (path for place in dict.fromkeys(places) for path in sorted(place.glob(f"*{SUFFIX}"))):
            try:
                reader = RingReader(path, owners=frozenset({os.getuid()}) if os.getuid() else None)
            except RingError:
                continue
            identity = reader.header.identity
            reader.close()
            pid = find_process(identity.pid, identity.start_ticks)
            if pid is not None:
                yield RankProcess(identity.job, identity.rank, pid, identity.gpu_uuid)
    finally:
        containers.close()


def _print(uses: Sequence[Use], reasons: Sequence[str], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("device", "process", "rank", "memory", "SM time", "runs in"):
        table.add_column(heading, overflow="fold")
    for use in uses:
        share = use.sm_utilization_ratio
        shared = use.device_utilization_ratio
        busy = f"{share:.0%}" if share is not None else ""
        if share is None and shared is not None:
            busy = f"{shared:.0%}" if use.sharers == 1 else f"{shared:.0%} shared by {use.sharers}"
        rank = f"{use.job} rank {use.rank}" if use.rank is not None else ""
        known = use.place.known()
        # 64 digits of a container are more than anybody reads.
        where = ", ".join(f"{name} {value[:12] if name == 'container' else value}" for name, value in known.items())
        memory = "" if use.memory_used_bytes is None else f"{use.memory_used_bytes / 2**20:.0f} MiB"
        below = " (below it)" if use.relation == "below" else ""
        row = (use.device, f"{use.process or 'not seen'} ({use.pid})", rank + below, memory, busy, where)
        table.add_row(*(escape(text) for text in row))
    if uses:
        console.print(table)
    elif not reasons:
        console.print("no process uses a GPU here")
    for reason in reasons:
        console.print(escape(reason))
