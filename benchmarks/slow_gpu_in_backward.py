"""Can a slow GPU be named from always-on signals alone? Real jobs on the asynchronous device, counters withheld.

    .venv/bin/python benchmarks/slow_gpu_in_backward.py --seeds 3 --write docs/decisions/0001-slow-gpu-in-backward.md
    .venv/bin/python benchmarks/slow_gpu_in_backward.py --kind fsdp --seeds 3 --write docs/decisions/...

One rank's device is slower by a factor from a third of the run on; its host is as fast as the others. The rules see the
rings only: no NVML, no kernel log. Controls: a healthy job, and one with more work on one rank. The table in the
document between the marks is replaced.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from document import Table

from rankscope.clock import ClockAnchor
from rankscope.finding import Finding, Side
from rankscope.records import DeviceRecord, GroupRecord, RingRecord, StepRecord
from rankscope.ring import RingReader
from rankscope.rules import diagnose
from rankscope.simulator.node import SimulatedNode
from rankscope.simulator.scenario_file import load_scenario
from rankscope.window import Columns, RankWindow, Window

RANKS, STEPS, STEP_MS, FROM_STEP, CULPRIT = 4, 120, 100, 40, 2
TABLES = {
    "ddp": "table",
    "fsdp": "fsdp",
}


@dataclass(frozen=True)
class Condition:
    """One line of the table."""

    name: str
    text: str
    slow: bool


def slow(severity: float) -> Condition:
    """The culprit's GPU slower by a factor, its counters clean."""
    fault = (
        f'[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = {CULPRIT}\nseverity = {severity}\n'
        f"from_step = {FROM_STEP}\ncounters = false\n"
    )
    return Condition(f"device {100 * (severity - 1):.0f} % slow", fault, True)


def more_work(severity: float) -> Condition:
    """The culprit's batches larger by a factor."""
    text = f'[[confounder]]\nkind = "more-work"\nrank = {CULPRIT}\nseverity = {severity}\nfrom_step = {FROM_STEP}\n'
    return Condition(f"control: {100 * (severity - 1):.0f} % more work", text, False)


CONDITIONS = (
    slow(1.05),
    slow(1.10),
    slow(1.25),
    Condition("control: healthy", "", False),
    more_work(1.10),
    more_work(1.25),
)


def columns(records: Iterable[RingRecord], kind: type[StepRecord | DeviceRecord | GroupRecord]) -> Columns:
    """Records of one kind as columns."""
    names = [field.name for field in fields(kind) if field.name not in ("group", "members")]
    made = Columns({name: array("d") for name in names})
    for record in records:
        if isinstance(record, kind):
            for name in names:
                value = getattr(record, name)
                made.columns[name].append(float("nan") if value is None else value)
    return made


def window_of(rings: Path) -> Window:
    """What the rings hold, and nothing else."""
    ranks, anchors = {}, {}
    for path in rings.glob("*.ring"):
        reader = RingReader(path)
        records = reader.read().records
        identity = reader.header.identity
        anchors[identity.host] = ClockAnchor(reader.header.anchor.monotonic_ns, reader.header.anchor.wall_ns)
        groups = {"default": columns(records, GroupRecord)}
        ranks[identity.rank] = RankWindow(
            identity, columns(records, StepRecord), columns(records, DeviceRecord), groups
        )
    begin = min(int(rank.steps.columns["start_ns"][0]) for rank in ranks.values())
    end = max(int(rank.steps.columns["end_ns"][-1]) for rank in ranks.values())
    return Window("experiment", ranks, {}, (), anchors, begin, end, len(ranks))


def run(kind: str, condition: Condition, seed: int, directory: Path) -> tuple[Finding, ...]:
    """One job; what the rules say of its rings."""
    scenario_path = directory / "scenario.toml"
    scenario_path.write_text(
        f'name = "experiment"\nseed = {seed}\n[workload]\nkind = "{kind}"\n'
        f"ranks = {RANKS}\nsteps = {STEPS}\nstep_ms = {STEP_MS}\n"
        f"{condition.text}"
    )
    rings = directory / "rings"
    with SimulatedNode(load_scenario(scenario_path), directory) as node:
        environ = {**os.environ, **node.job_environment(), "RANKSCOPE_ATTACH": "1", "RANKSCOPE_DIR": str(rings)}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        subprocess.run(
            [*command, "-m", "rankscope.simulator.rank"],
            env={**environ, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
    return diagnose(window_of(rings))


def verdict_on(findings: tuple[Finding, ...]) -> str:
    """The first finding in a word: what, where, and its price."""
    if not findings:
        return "nothing"
    first = findings[0]
    price = first.impact.ms_per_step
    cost = "" if price is None else f" {price:.1f} ms"
    return f"{first.class_slug}@{first.where.rank}{cost} ({first.confidence:.2f})"


def table(kind: str, seeds: int) -> str:
    """The experiment; one line a condition."""
    lines = [
        "| condition | right rank named | no rank named | GPU or rank falsely accused | first finding of a run |",
        "|---|---|---|---|---|",
    ]
    for condition in CONDITIONS:
        named = unknown = accused = 0
        said = []
        for seed in range(1, seeds + 1):
            with tempfile.TemporaryDirectory() as directory:
                findings = run(kind, condition, seed, Path(directory))
            said.append(verdict_on(findings))
            print(condition.name, seed, said[-1], flush=True)
            places = {finding.where.rank for finding in findings if finding.class_slug != "work-imbalance"} - {None}
            named += condition.slow and CULPRIT in places and findings[0].where.rank == CULPRIT
            unknown += condition.slow and not places
            hardware = any(finding.side is Side.HARDWARE for finding in findings)
            accused += hardware or bool(places - ({CULPRIT} if condition.slow else set()))
        right = f"{named}/{seeds}" if condition.slow else "-"
        silent = f"{unknown}/{seeds}" if condition.slow else "-"
        lines.append(f"| {condition.name} | {right} | {silent} | {accused}/{seeds} | {', '.join(said)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the experiment and print or write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, TABLES[arguments.kind]) if arguments.write else None
    text = table(arguments.kind, arguments.seeds)
    print(text)
    if document is not None:
        document.write(text)


if __name__ == "__main__":
    main()
