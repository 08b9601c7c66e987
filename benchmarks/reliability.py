"""Faults survived, hundreds of times: kills and failures at random moments, rings corrupted as they are read, restarts.

    .venv/bin/python benchmarks/reliability.py --write docs/reliability.md

The same campaigns as `tests/survival` runs in small (two real torch ranks, the shipped agent, the NVML helper over the
simulated library, a collector: processes all), with many seeds. Each line printed says seed, moment and balance.
Ends with 1 where anything did not hold. Full file systems need the right to mount; without it they are left out, and
that is said.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from document import Table, machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from survival.arena import CLOCKS  # noqa: E402
from survival.corruption import corrupt  # noqa: E402
from survival.kills import COLLECTORS, FULL, KILLS, campaign  # noqa: E402
from survival.restarts import restarts  # noqa: E402

MOMENTS = 40


def strikes(campaigns: int) -> tuple[list[str], list[str]]:
    """(rows, what did not hold) of so many campaigns."""
    struck: Counter[str] = Counter()
    broken: list[str] = []
    steps = received = 0
    for seed in range(1, campaigns + 1):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            told = campaign(Path(place), seed, MOMENTS, (*KILLS, *FULL, *COLLECTORS, *CLOCKS))
        struck += told.struck
        broken += told.broken
        steps += told.steps
        received += told.received
    rows = [f"| {fault} | {count} |" for fault, count in sorted(struck.items())]
    if not any(fault in FULL for fault in struck):
        rows.append("| full file systems: not run, nothing may be mounted here | 0 |")
    rows.append(f"| together, over {campaigns} campaigns | {struck.total()} |")
    rows += ["", f"{steps:,} steps of training equal to the last bit, {received:,} batches received."]
    return rows, broken


def main() -> int:
    """Run, print, and write into the document; 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=8, help=f"of {MOMENTS} moments each")
    parser.add_argument("--corruptions", type=int, default=300)
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "faults") if arguments.write else None
    rows, broken = strikes(arguments.campaigns)
    with tempfile.TemporaryDirectory() as place:
        corrupted = [corrupt(Path(place), seed) for seed in range(arguments.corruptions)]
    broken += [str(each.broken) for each in corrupted if each.broken]
    with tempfile.TemporaryDirectory() as place:
        restarted = restarts(Path(place), arguments.restarts)
    broken += restarted.broken
    met, lapped = (sum(getattr(each, what) > 0 for each in corrupted) for what in ("damaged", "overwritten"))
    false = sum(bool(each.broken) for each in corrupted)
    rings = f"{len(corrupted)} seeds, damage met in {met}, a writer faster than the reader in {lapped}"
    sizes = [
        f"after {size.restarts:,} {size.agent.descriptors} descriptors, {size.agent.maps} maps,"
        f" {size.agent.threads} threads, {size.agent.pss_bytes / 1e6:.0f} MB"
        for size in (restarted.sizes[0], restarted.sizes[-1])
    ]
    lines = [
        f"{machine()}.",
        "",
        "| fault | struck |",
        "|---|---|",
        *rows,
        "",
        f"Rings corrupted at random bytes while they are read: {rings}; false records: {false}.",
        "",
        f"{arguments.restarts:,} restarts of ranks under one agent: {'; '.join(sizes)}.",
        "",
        f"What did not hold: {'; '.join(broken) or 'nothing'}.",
    ]
    text = "\n".join(lines)
    print(text)
    if document is not None:
        document.write(text)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
