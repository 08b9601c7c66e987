"""`rankscope compare GOOD BAD`: the phases that changed beside what differs between what the two runs were made of."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from rankscope.agent.fingerprint import Fingerprints, described_gpus, load_fingerprints
from rankscope.agent.load import load_window
from rankscope.agent.tables import table
from rankscope.errors import RecordingError
from rankscope.rules.compare import Drift, PhaseChange, compare_facts, compare_phases, spelled
from rankscope.rules.frame import Frame
from rankscope.window import Columns, Window

SCHEMA = "rankscope.compare/1"
#: Gauges that stand still while a job runs: what they read is a setting of the device.
_SETTINGS = (
    "gpu.power_limit_watts",
    "gpu.sm_clock_max_mhz",
    "gpu.memory_clock_max_mhz",
    "gpu.memory_total_bytes",
    "gpu.mig_mode",
    "gpu.pcie_link_generation_max",
    "gpu.pcie_link_width_max",
)
#: Phases in the last column of the text; --json has them all.
_PHASES = 3
#: Share of steps in which a field must be the same to be a setting of the run.
_CONSTANT = 0.8
#: What facts of a rank, and of a host, are about.
_RANK_TOPICS = {
    "commit": "code",
    "script": "code",
    "script_sha256": "code",
    "arguments": "code",
    "python": "image",
    "executable": "image",
    "os": "image",
    "torch": "packages",
    "cuda": "driver",
    "hip": "driver",
    "nccl": "nccl",
    "cores": "placement",
}
_HOST_TOPICS = {"gpu_driver": "driver", "rdma_driver": "driver", "bios": "firmware", "microcode": "firmware"}
_GPU_TOPICS = {
    "driver": "driver",
    "vbios": "firmware",
    "gsp_firmware": "firmware",
    "name": "topology",
    "multiprocessors": "topology",
    "nvlink_version": "topology",
}
_GPU_RELATIONS = {
    "nvlink_remote": "topology",
    "topology": "topology",
    "p2p": "topology",
    "cpu_affinity": "placement",
    "numa_node": "placement",
}
_PLACES = {"host": "placement", "local_rank": "placement", "gpu_uuid": "placement"}
#: Variables that name the data or the image, not the machinery.
_NAMED = {"RANKSCOPE_DATA": "data", "RANKSCOPE_IMAGE": "image", "SLURM_CONTAINER_IMAGE": "image"}


@dataclass(slots=True)
class Comparison:
    """Two runs side by side."""

    good: dict[str, Any]
    bad: dict[str, Any]
    phases: list[PhaseChange]
    drift: list[Drift]
    notes: list[str]

    @property
    def slower(self) -> bool:
        """Whether the bad run's step is longer by more than noise."""
        return any(change.phase == "step" and change.changed and change.delta_ms > 0 for change in self.phases)


@click.command()
@click.argument("good", type=click.Path(path_type=Path))
@click.argument("bad", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON (docs/schemas/compare.schema.json).")
@click.option("--fail-on-slower", is_flag=True, help="End with 1 where BAD's step is longer by more than noise.")
@click.pass_context
def compare(ctx: click.Context, good: Path, bad: Path, as_json: bool, fail_on_slower: bool) -> None:
    """Two runs side by side: phases that changed, and what differs in code, packages, driver, environment, placement.

    GOOD and BAD are recordings, or directories with the recordings of one run's hosts.
    """
    found = compare_runs(good, bad)
    if as_json:
        body = {"schema": SCHEMA, "slower": found.slower, **asdict(found)}
        click.echo(json.dumps(body, indent=2))
    else:
        click.echo(comparison_text(found))
    ctx.exit(int(fail_on_slower and found.slower))


def compare_runs(good: Path, bad: Path) -> Comparison:
    """Set two recorded runs side by side. Raises RecordingError."""
    windows = [load_window([path]) for path in (good, bad)]
    prints = [load_fingerprints([path]) for path in (good, bad)]
    for path, window in zip((good, bad), windows, strict=True):
        if not any(len(rank.steps) for rank in window.ranks.values()):
            raise RecordingError("no rank recorded a step, so there is nothing to compare", where=str(path))
    phases = compare_phases(*windows)
    topics: dict[str, str] = {}
    both = windows[0].ranks.keys() & windows[1].ranks.keys()
    facts = [_facts(window, of, topics, both) for window, of in zip(windows, prints, strict=True)]
    changed = [change.phase for change in phases if change.changed]
    notes = [
        f"{path} has no fingerprint (recorded by an earlier release): only placement and device settings are compared"
        for path, of in zip((good, bad), prints, strict=True)
        if not of.hosts and not any("python" in rank for rank in of.ranks.values())
    ]
    if any(change.low_ms is None for change in phases):
        notes.append("too few judged steps in one of the runs: differences have no interval")
    sizes = [len(window.ranks) for window in windows]
    if sizes[0] != sizes[1]:
        notes.append(f"{sizes[0]} ranks against {sizes[1]}: times of a step are of different jobs")
    return Comparison(
        _told(good, windows[0]),
        _told(bad, windows[1]),
        phases,
        compare_facts(facts[0], facts[1], changed, topics),
        notes,
    )


def _told(path: Path, window: Window) -> dict[str, Any]:
    frame = Frame(window)
    return {
        "recording": str(path),
        "job": window.job,
        "ranks": len(window.ranks),
        "steps_judged": int(frame.usable.sum()),
        "ms_per_step": None if math.isnan(frame.typical_ms) else frame.typical_ms,
    }


def _facts(
    window: Window, of: Fingerprints, topics: dict[str, str], both: Collection[int]
) -> dict[str, dict[str, str]]:
    """Fact -> rank or host -> value; what each is about goes into `topics`, `both` are the ranks of both runs."""
    facts: dict[str, dict[str, str]] = defaultdict(dict)

    def say(topic: str, name: str, place: str, value: Any) -> None:
        if value is not None:
            topics[name] = topic
            facts[name][place] = spelled(value)

    for rank, known in of.ranks.items():
        if rank not in window.ranks:
            continue
        place = f"rank {rank}"
        for name, topic in _RANK_TOPICS.items():
            say(topic, name, place, known.get(name))
        for name, version in _mapping(known, "packages").items():
            say("packages", f"package {name}", place, version)
        for name, value in _mapping(known, "environment").items():
            topic = _NAMED.get(name) or ("nccl" if "NCCL" in name else "environment")
            say(topic, name, place, value)
        if rank not in both:
            # Its place is no other place than before: there was no such rank.
            continue
        for name, value in _mapping(known, "placed").items():
            # Each rank has its own: a fact a rank, which differs where that rank moved.
            say(_PLACES[name], f"rank {rank} {name}", place, value)
    for host, known in of.hosts.items():
        for name, value in known.items():
            if name == "network" and isinstance(value, dict):
                for card, of_card in value.items():
                    say("firmware", f"{card} firmware", f"host {host}", _mapping(value, card).get("firmware", of_card))
            elif name == "nccl_conf" and isinstance(value, dict):
                for variable, setting in value.items():
                    say("nccl", f"nccl.conf {variable}", f"host {host}", setting)
            else:
                say(_HOST_TOPICS.get(name, "host"), name, f"host {host}", value)
    for host, gpu in described_gpus(window):
        index = gpu.get("index")
        for name, topic in _GPU_TOPICS.items():
            say(topic, f"GPU {name}", f"GPU {index} of {host}", gpu.get(name))
        for name, topic in _GPU_RELATIONS.items():
            # How a GPU stands to others differs from one to the next: compared place by place.
            say(topic, f"GPU {index} {name}", f"host {host}", gpu.get(name))
    say("topology", "ranks", "job", window.world_size)
    say("topology", "hosts", "job", len({rank.identity.host for rank in window.ranks.values()}))
    for number, rank_window in window.ranks.items():
        say("topology", "process groups", f"rank {number}", ", ".join(sorted(rank_window.groups)) or None)
        for name, field in (("batch, in the loader's units", "work"), ("loader workers", "loader_workers")):
            say("data", name, f"rank {number}", _usual(rank_window.steps, field))
    for key, series in window.series.items():
        if key.metric in _SETTINGS and len(series.values):
            name = key.metric.removeprefix("gpu.")
            say("device settings", name, f"GPU {key.device}", f"{float(np.median(series.values)):g}")
    return dict(facts)


def _usual(steps: Columns, field: str) -> str | None:
    """What a field of the steps nearly always is; None where it is not there or varies, as lengths of sequences do."""
    values = np.array(steps.columns.get(field, ()), dtype=np.float64)
    there = values[np.isfinite(values)]
    if not there.size:
        return None
    usual = float(np.median(there))
    return f"{usual:g}" if float((there == usual).mean()) >= _CONSTANT else None


def _mapping(known: Any, name: str) -> dict[str, Any]:
    value = known.get(name)
    return value if isinstance(value, dict) else {}


def comparison_text(found: Comparison) -> str:
    """The comparison for a person."""
    step = next((change for change in found.phases if change.phase == "step"), None)
    lines = []
    if step is not None:
        word = ("slower" if step.delta_ms > 0 else "faster") if step.changed else "unchanged within noise"
        lines.append(f"{word}: {step.good_ms:.1f} ms a step in GOOD, {step.bad_ms:.1f} ms in BAD{_interval(step)}")
    lines.append(f"GOOD {_run(found.good)}; BAD {_run(found.bad)}")
    rows = [
        (
            change.phase,
            f"{change.good_ms:.2f}",
            f"{change.bad_ms:.2f}",
            f"{change.delta_ms:+.2f}",
            "" if change.low_ms is None or change.high_ms is None else f"{change.low_ms:+.2f} .. {change.high_ms:+.2f}",
            ("changed" if change.changed else "") + ("" if change.rank is None else f" on rank {change.rank}"),
        )
        for change in found.phases
        if change.good_ms or change.bad_ms
    ]
    lines += ["", *table(("phase", "GOOD ms", "BAD ms", "difference", "99 % interval", ""), rows)]
    if found.drift:
        drifts = [
            (
                drift.topic,
                drift.name,
                _shortened(drift.good),
                _shortened(drift.bad) + (f" ({_places(drift.where)})" if drift.where else ""),
                ", ".join(drift.may_explain[:_PHASES]) + (", ..." if len(drift.may_explain) > _PHASES else ""),
            )
            for drift in found.drift
        ]
        lines += ["", *table(("differs", "what", "GOOD", "BAD", "can move"), drifts)]
    else:
        lines += ["", "nothing that was recorded of code, packages, driver, environment, topology or placement differs"]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _interval(change: PhaseChange) -> str:
    if change.low_ms is None or change.high_ms is None:
        return ""
    return f" ({change.delta_ms:+.1f} ms, 99 % interval {change.low_ms:+.1f} .. {change.high_ms:+.1f})"


def _run(told: dict[str, Any]) -> str:
    return f"{told['job']}, {told['ranks']} ranks, {told['steps_judged']} steps judged ({told['recording']})"


def _shortened(value: str | None) -> str:
    if value is None:
        return "(absent)"
    return value if len(value) <= 40 else f"{value[:37]}..."


def _places(where: Sequence[str]) -> str:
    return ", ".join(where[:4]) + (f" and {len(where) - 4} more" if len(where) > 4 else "")
