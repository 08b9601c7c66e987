"""How long a verdict takes, and how much memory, as ranks and steps grow.

`python benchmarks/verdict_growth.py` measures and prints a table; `--write` makes docs/verdict-growth.md and its plot.
Each size is generated and judged in a process of its own, on one core; one hour is 3,600 steps of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from plot import Curve, write

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/verdict-growth.md"
RANKS = (64, 128, 256, 512, 1024)
STEPS = (450, 900, 1800, 3600)
HOUR = 3600


def measure(ranks: int, steps: int) -> dict[str, float]:
    """One size, in this process: seconds to judge, and peak memory before and after, in MB."""
    from rankscope.finding import Overhead
    from rankscope.rules import judge
    from rankscope.simulator.generate import generate
    from rankscope.simulator.scenario import Fault, Node, Scenario, Workload

    fault = Fault(class_slug="gpu-thermal-slowdown", gpu=ranks // 3, severity=1.25, from_step=steps // 2, to_step=steps)
    workload = Workload(ranks=ranks, steps=steps, step_ms=1000.0)
    window = generate(
        Scenario(name="growth", workload=workload, node=Node(gpus=8, hosts=-(-ranks // 8)), faults=(fault,))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began, cpu = time.perf_counter(), time.process_time()
    verdict = judge(window, Overhead())
    taken, used = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = verdict.findings[0] if verdict.findings else None
    right = found is not None and found.class_slug == fault.class_slug and found.where.rank == fault.gpu
    return {
        "ranks": ranks,
        "steps": steps,
        "seconds": taken,
        "cpu_seconds": used,
        "window_mb": before,
        "peak_mb": peak,
        "right": right,
    }


def measured(ranks: int, steps: int) -> dict[str, float]:
    """One size in a fresh process, bound to one core."""
    command = [sys.executable, __file__, "--one", f"{ranks}x{steps}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    row: dict[str, float] = json.loads(done.stdout)
    return row


def table(rows: Sequence[dict[str, float]]) -> str:
    """The sizes as a table."""
    lines = [
        "| ranks | steps | seconds of one core | MB with the window | MB at most | right |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        right = "yes" if row["right"] else "no"
        lines.append(
            f"| {row['ranks']:.0f} | {row['steps']:.0f} | {row['cpu_seconds']:.2f} | {row['window_mb']:.0f} "
            f"| {row['peak_mb']:.0f} | {right} |"
        )
    return "\n".join(lines)


def page(rows: Sequence[dict[str, float]]) -> str:
    """docs/verdict-growth.md."""
    return f"""# What a verdict takes

Measured by `python benchmarks/verdict_growth.py --write`: generated jobs with one slow GPU, judged in a fresh process
each. An hour is 3,600 steps of a second, with readings of every GPU once a second. Memory is that of the whole
process, the window in it. The goal: 1,024 ranks over an hour in 10 s and 1 GB on one core, and growth no faster than
that of ranks times steps.

![Seconds of one core by ranks and by steps](images/verdict-growth.svg)

{table(rows)}
"""


def curves(rows: Sequence[dict[str, float]]) -> list[Curve]:
    """Seconds against rank-steps: a straight line is linear growth."""

    def points(chosen: Iterable[dict[str, float]]) -> list[tuple[float, float]]:
        return [(row["ranks"] * row["steps"] / 1e6, row["cpu_seconds"]) for row in chosen]

    return [
        ("by ranks, an hour", points(row for row in rows if row["steps"] == HOUR)),
        ("by steps, 1,024 ranks", points(row for row in rows if row["ranks"] == RANKS[-1])),
    ]


def main() -> int:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="RANKSxSTEPS, in this process, as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/verdict-growth.md and its plot")
    chosen = parser.parse_args()
    if chosen.one:
        ranks, _, steps = chosen.one.partition("x")
        print(json.dumps(measure(int(ranks), int(steps))))
        return 0
    sizes = [(ranks, HOUR) for ranks in RANKS] + [(RANKS[-1], steps) for steps in STEPS[:-1]]
    rows = [measured(ranks, steps) for ranks, steps in sizes]
    print(table(rows))
    if chosen.write:
        PAGE.write_text(page(rows), encoding="utf-8")
        write("verdict-growth", curves(rows), "ranks x steps, millions", "seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
