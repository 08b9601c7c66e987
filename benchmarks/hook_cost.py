"""What the hooks cost a step: short paired blocks with and without them, and the A/A null between them.

    .venv/bin/python benchmarks/hook_cost.py --write docs/hook-cost.md
    .venv/bin/python benchmarks/hook_cost.py --ranks 4 --step-ms 100

One process trains a small network in steps of about 2 ms of fixed work. Blocks of steps run attached (B) or not (A), in
quartets ABBA or BAAB chosen at random; a quartet gives one difference. Between them run quartets with nothing attached
at all: what those show is the noise of the machine. Intervals are 95 % bootstrap over quartets.

In the "cold" loop a buffer larger than the caches is written between steps, outside the time taken: every step then
finds the hooks' code and data where a long step leaves them, in memory. benchmarks/hook_instructions.py counts
instructions, which do not depend on the machine's load.

"Device events" has the hooks place and read an event at each boundary as on a GPU, with events that cost nothing: what
the driver takes for its own (a few microseconds each, by its documentation) comes on top.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from document import Table, machine
from torch.utils.data import DataLoader, TensorDataset

from rankscope.device import DEVICE_CLOCK_VARIABLE
from rankscope.torch_hooks import Scope
from rankscope.torch_hooks.clocks import HostClock

#: Steps at the begin of a block that are not counted: the ring is made in the first, caches fill in the others.
SETTLING_STEPS = 5
#: Share of a block's steps left out at each end before the mean: interrupts on one side, luck on the other.
TRIMMED = 0.1
#: Collectives a step in the loop that tells what one costs.
COLLECTIVES = 20


class Loop(NamedTuple):
    """A training loop to measure in."""

    name: str
    layers: int = 2
    collectives: int = 0
    cold: bool = False
    device: bool = False


LOOPS = (
    Loop("2 layers"),
    Loop("2 layers, cold", cold=True),
    Loop("2 layers, device events", device=True),
    Loop("64 layers", layers=64),
    Loop(f"2 layers, {COLLECTIVES} collectives", collectives=COLLECTIVES),
)


class FreeEvents(HostClock):
    """A device whose events cost nothing: what is left is what the hooks do with them."""

    name = "free"


class Cost(NamedTuple):
    """Nanoseconds a step: of wall time, and of the training thread's CPU time."""

    wall: float
    cpu: float


class Training:
    """A training loop that can be run on, a block of steps at a time."""

    def __init__(self, loop: Loop, step_ms: float, cold_bytes: int) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._repeat = 1
        self.loop = loop
        self._scratch = torch.zeros(4)
        self._evict = torch.zeros(cold_bytes // 8 if loop.cold else 1, dtype=torch.int64)
        self._model = torch.nn.Sequential(*(torch.nn.Linear(128, 128) for _ in range(loop.layers)))
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-6)
        self._loader = DataLoader(TensorDataset(torch.randn(16 * 4000, 128)), batch_size=16)
        for _ in range(6):
            taken_ms = self.block(10).wall / 1e6
            self._repeat = max(1, round(self._repeat * step_ms / taken_ms))

    def block(self, steps: int) -> Cost:
        """Train; returns what a settled step took."""
        walls: list[int] = []
        cpus: list[int] = []
        batches = iter(self._loader)
        for count in range(steps + SETTLING_STEPS):
            self._evict.add_(1)
            cpu_began, began = time.thread_time_ns(), time.monotonic_ns()
            (batch,) = next(batches)
            value = batch
            for _ in range(self._repeat):
                # The batch is added so that values keep their size: denormal numbers are slow, and come and go.
                value = 0.5 * self._model(value) + batch
            value.square().mean().backward()
            for _ in range(self.loop.collectives):
                torch.distributed.all_reduce(self._scratch)
            self._optimizer.step()
            self._optimizer.zero_grad()
            now, cpu_now = time.monotonic_ns(), time.thread_time_ns()
            if count >= SETTLING_STEPS:
                walls.append(now - began)
                cpus.append(cpu_now - cpu_began)
        return Cost(trimmed_mean(walls), trimmed_mean(cpus))


def trimmed_mean(values: list[int]) -> float:
    """Mean without the smallest and the largest TRIMMED of the values."""
    cut = int(len(values) * TRIMMED)
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


@contextmanager
def attached(rank: int = 0, world_size: int = 2, *, device: bool = False) -> Iterator[None]:
    """The hooks on. One process counts as one of two ranks: the end of its own backward is stamped as in a job."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        ranks = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        if device:
            ranks[DEVICE_CLOCK_VARIABLE] = "hook_cost:FreeEvents"
        scope = Scope({"RANKSCOPE_DIR": directory, "RANKSCOPE_STACK_SIGNAL": "", **ranks}, write_error=sys.exit)
        scope.install()
        try:
            yield
        finally:
            scope.detach()


def quartet(training: Training, steps: int, *, hooks: bool) -> tuple[Cost, float]:
    """(what B took longer than A, wall of A): four blocks in random order. Without `hooks`, B is A again: the null."""
    found: dict[str, list[Cost]] = {"A": [], "B": []}
    for letter in random.choice(("ABBA", "BAAB")):
        if letter == "B" and hooks:
            with attached(device=training.loop.device):
                found[letter].append(training.block(steps))
        else:
            found[letter].append(training.block(steps))
    a, b = (Cost(*(statistics.fmean(values) for values in zip(*found[letter], strict=True))) for letter in "AB")
    return Cost(b.wall - a.wall, b.cpu - a.cpu), a.wall


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[1949]


def told(values: list[float]) -> str:
    """Microseconds with their interval."""
    middle, low, high = (value / 1e3 for value in interval(values))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def of_a_collective(plain: list[float], with_collectives: list[float]) -> list[float]:
    """Cost of one collective, ns: differences of resampled medians, as many as the bootstrap needs."""
    return sorted(
        (
            statistics.median(random.choices(with_collectives, k=len(with_collectives)))
            - statistics.median(random.choices(plain, k=len(plain)))
        )
        / COLLECTIVES
        for _ in range(2000)
    )


def measure(step_ms: float, quartets: int, steps: int, cold_bytes: int) -> list[str]:
    """The table, a line a loop, and what one collective costs."""
    lines = [
        "| loop | step | hooks, wall | null, wall | hooks, thread CPU | null, thread CPU | below 0.1 % of steps from |",
        "|---|---|---|---|---|---|---|",
    ]
    costs: dict[Loop, list[Cost]] = {}
    for loop in LOOPS:
        training = Training(loop, step_ms, cold_bytes)
        hooks: list[Cost] = []
        null: list[Cost] = []
        walls: list[float] = []
        for _ in range(quartets):
            cost, wall = quartet(training, steps, hooks=True)
            hooks.append(cost)
            walls.append(wall)
            null.append(quartet(training, steps, hooks=False)[0])
        costs[loop] = hooks
        middle, _, high = interval([cost.wall for cost in hooks])
        columns = [told([cost[place] for cost in found]) for place in (0, 1) for found in (hooks, null)]
        lines.append(
            f"| {loop.name} | {statistics.median(walls) / 1e6:.2f} ms | {' | '.join(columns)} "
            f"| {middle / 1e3:.0f} ms (at most {high / 1e3:.0f}) |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    for place, name in enumerate(("wall", "thread CPU")):
        resampled = of_a_collective(*([cost[place] for cost in costs[loop]] for loop in (LOOPS[0], LOOPS[-1])))
        middle, low, high = (resampled[at] / 1e3 for at in (1000, 50, 1949))
        lines += ["", f"A collective, {name}: {middle:+.2f} ({low:+.2f} to {high:+.2f}) microseconds."]
    return lines


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quartets", type=int, help="of each kind, for each loop")
    parser.add_argument("--step-ms", type=float, help="length of a step (2, or 100 for a job)")
    parser.add_argument("--steps", type=int, help="steps a block")
    parser.add_argument("--cold-mb", type=int, default=64, help="size of the buffer that is written between steps")
    parser.add_argument("--ranks", type=int, default=1, help="measure in a job of so many ranks")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "table" if arguments.ranks == 1 else "ranks") if arguments.write else None
    random.seed(1)
    unit = "microseconds a step, median over quartets (95 % bootstrap interval)"
    lines = [f"{machine()}, torch {torch.__version__}; {unit}:", ""]
    if arguments.ranks > 1:
        import _hook_cost_ranks

        lines[0] = lines[0].removesuffix(f"; {unit}:") + ":"
        lines += _hook_cost_ranks.measure(
            arguments.ranks, arguments.step_ms or 100.0, arguments.quartets or 25, arguments.steps or 6
        )
    else:
        with tempfile.TemporaryDirectory() as store:
            torch.distributed.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
            lines += measure(
                arguments.step_ms or 2.0, arguments.quartets or 40, arguments.steps or 25, arguments.cold_mb << 20
            )
            torch.distributed.destroy_process_group()
    text = "\n".join(lines)
    print(text)
    if document is not None:
        document.write(text)


if __name__ == "__main__":
    main()
