"""What the hooks cost a step: paired blocks with and without them in random order, and the A/A null beside.

    .venv/bin/python benchmarks/hook_cost.py --write docs/hook-cost.md

One process trains a network whose step takes about 5 or 100 ms. Blocks of steps run attached (B) or not (A), in
quartets ABBA or BAAB chosen at random; a quartet gives one difference. The null runs the same with nothing attached:
what it shows is noise. Intervals are 95 % bootstrap over quartets. benchmarks/hook_instructions.py
counts instructions.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from rankscope.torch_hooks import Scope

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
#: Name, step in ms, steps a block, layers, collectives issued from Python in each step.
LOOPS = (
    ("2 layers", 5.0, 60, 2, 0),
    ("64 layers", 5.0, 60, 64, 0),
    ("2 layers, 20 collectives", 5.0, 60, 2, 20),
    ("2 layers", 100.0, 6, 2, 0),
)
#: Steps at the begin of a block that are not counted: the ring is made in the first.
SETTLING_STEPS = 3


class Training:
    """A training loop that can be run on, a block of steps at a time; with so many layers and explicit collectives."""

    def __init__(self, step_ms: float, *, layers: int = 2, collectives: int = 0) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._repeat = 1
        self._collectives = collectives
        self._scratch = torch.zeros(4)
        self._model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(layers)))
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-6)
        self._loader = DataLoader(TensorDataset(torch.randn(64 * 4000, 256)), batch_size=64)
        for _ in range(8):
            taken_ms = statistics.median(self.block(6)[0]) / 1e6
            self._repeat = max(1, round(self._repeat * step_ms / taken_ms))

    def block(self, steps: int) -> tuple[list[int], int]:
        """Train; returns each step's wall time and the thread's CPU time a step, in ns, settled steps only."""
        walls: list[int] = []
        cpu = 0
        began, cpu_began = time.monotonic_ns(), time.thread_time_ns()
        for count, (batch,) in enumerate(self._loader, 1):
            value = batch
            for _ in range(self._repeat):
                # The batch is added so that values keep their size: denormal numbers are slow, and come and go.
                value = 0.5 * self._model(value) + batch
            value.square().mean().backward()
            for _ in range(self._collectives):
                torch.distributed.all_reduce(self._scratch)
            self._optimizer.step()
            self._optimizer.zero_grad()
            now, cpu_now = time.monotonic_ns(), time.thread_time_ns()
            if count > SETTLING_STEPS:
                walls.append(now - began)
                cpu += cpu_now - cpu_began
            began, cpu_began = now, cpu_now
            if count == steps + SETTLING_STEPS:
                break
        return walls, cpu // max(1, len(walls))


def attached_block(training: Training, steps: int) -> tuple[float, float]:
    """(median wall, mean CPU) ns a step with the hooks on."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        # As one of two ranks, so that the end of a rank's own backward is stamped as in a job.
        environ = {"RANKSCOPE_DIR": directory, "RANKSCOPE_STACK_SIGNAL": "", "RANK": "0", "WORLD_SIZE": "2"}
        scope = Scope(environ, write_error=sys.exit)
        scope.install()
        try:
            walls, cpu = training.block(steps)
        finally:
            scope.detach()
    return statistics.median(walls), cpu


def plain_block(training: Training, steps: int) -> tuple[float, float]:
    """(median wall, mean CPU) ns a step without the hooks."""
    walls, cpu = training.block(steps)
    return statistics.median(walls), cpu


def differences(
    training: Training, quartets: int, steps: int, treated: Callable[[Training, int], tuple[float, float]]
) -> list[tuple[float, float]]:
    """(wall, CPU) ns a step that `treated` blocks take longer than plain ones, one pair a quartet."""
    found = []
    for _ in range(quartets):
        order = random.choice(("ABBA", "BAAB"))
        results: dict[str, list[tuple[float, float]]] = {"A": [], "B": []}
        for letter in order:
            results[letter].append((treated if letter == "B" else plain_block)(training, steps))
        means = {
            letter: [statistics.fmean(values) for values in zip(*pairs, strict=True)]
            for letter, pairs in results.items()
        }
        found.append((means["B"][0] - means["A"][0], means["B"][1] - means["A"][1]))
    return found


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[1949]


def told(values: list[float]) -> str:
    """Microseconds with their interval."""
    middle, low, high = (value / 1e3 for value in interval(values))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quartets", type=int, default=24)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    random.seed(1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    unit = "microseconds a step, median over quartets (95 % bootstrap interval)"
    lines = [
        f"{machine}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; {unit}:",
        "",
        "| loop | step | hooks, wall | null, wall | hooks, thread CPU | null, thread CPU | below 0.1 % from |",
        "|---|---|---|---|---|---|---|",
    ]
    store = tempfile.mkdtemp()
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
    for name, step_ms, steps, layers, collectives in LOOPS:
        training = Training(step_ms, layers=layers, collectives=collectives)
        measured_ms = statistics.median(training.block(steps)[0]) / 1e6
        hooks = differences(training, arguments.quartets, steps, attached_block)
        null = differences(training, arguments.quartets, steps, plain_block)
        walls, cpus = ([pair[place] for pair in hooks] for place in (0, 1))
        null_walls, null_cpus = ([pair[place] for pair in null] for place in (0, 1))
        from_ms = 1000 * statistics.median(cpus) / 1e6
        lines.append(
            f"| {name} | {measured_ms:.1f} ms | {told(walls)} | {told(null_walls)} | {told(cpus)} | {told(null_cpus)} "
            f"| {from_ms:.0f} ms |"
        )
        print(lines[-1], flush=True)
    text = "\n".join(lines)
    print(text)
    if arguments.write is not None:
        head, _, rest = arguments.write.read_text().partition(BEGIN)
        arguments.write.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
