"""What the hooks cost a step, by turns of a few steps, and what they cost a collective; the A/A null beside each.

    .venv/bin/python benchmarks/hook_cost.py --write docs/hook-cost.md
    .venv/bin/python benchmarks/hook_cost.py --ranks 4 --step-ms 100

One process trains a small network in steps of about 2 ms of fixed work. The hooks are attached, and every few steps
run with them or with torch's own functions back in their places, drawn at random (_hook_cost_turns.py); a third of the
turns are plain under another name: the null. "By blocks" attaches and detaches altogether, for blocks of steps in the
order ABBA or BAAB: whether anything is lost to the first way of counting. Intervals are 95 % bootstrap.

With DDP the hooks also say where this rank's own backward ends, which takes two calls by the engine. In the "cold" loop
a buffer larger than the caches is written between steps, outside the time taken: every step then finds the hooks' code
and data where a long step leaves them, in memory. In the "long" one the hooks also read in every step what they read at
most every 25 ms. benchmarks/hook_instructions.py counts instructions, which do not depend on the machine's load.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _hook_cost_turns import Cost, Turns, measure, trimmed_mean
from document import Table, machine
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from rankscope.device import DEVICE_CLOCK_VARIABLE
from rankscope.torch_hooks import Scope
from rankscope.torch_hooks.clocks import HostClock

#: Steps at the begin of a block that are not counted: the ring is made in the first, caches fill in the others.
SETTLING_STEPS = 5
#: Collectives a step in the loop that tells what one costs.
COLLECTIVES = 20


class Loop(NamedTuple):
    """A training loop to measure in."""

    name: str
    layers: int = 2
    cold: bool = False
    device: bool = False
    long: bool = False
    ddp: bool = False


LOOPS = (
    Loop("2 layers"),
    Loop("2 layers, cold", cold=True),
    Loop("2 layers, cold and long", cold=True, long=True),
    Loop("2 layers, DDP", ddp=True),
    Loop("2 layers, device events", device=True),
    Loop("64 layers", layers=64),
)


class FreeEvents(HostClock):
    """A device whose events cost nothing: what is left is what the hooks do with them."""

    name = "free"


class Training:
    """A training loop that can be run on, a step at a time."""

    def __init__(self, loop: Loop, step_ms: float, cold_bytes: int) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._repeat = 1
        self.loop = loop
        self._scratch = torch.zeros(4)
        self._evict = torch.zeros(cold_bytes // 8 if loop.cold else 1, dtype=torch.int64)
        self._model: torch.nn.Module = torch.nn.Sequential(*(torch.nn.Linear(128, 128) for _ in range(loop.layers)))
        if loop.ddp:
            self._model = DistributedDataParallel(self._model)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-6)
        self._loader = DataLoader(TensorDataset(torch.randn(16 * 4000, 128)), batch_size=16)
        self.turns = Turns(self._loader)
        self._batches = iter(self._loader)
        self._left = len(self._loader)
        for _ in range(6):
            taken_ms = trimmed_mean([self.step().wall for _ in range(10)]) / 1e6
            self._repeat = max(1, round(self._repeat * step_ms / taken_ms))

    def step(self) -> Cost:
        """Train; returns what the step took."""
        self._left -= 1
        if not self._left:
            self._batches, self._left = iter(self._loader), len(self._loader) - 1
        return self._timed(self._batches)

    def turn(self) -> Cost:
        """A step of the state whose turn it is."""
        return self._timed(self.turns.batches())

    def _timed(self, batches: Iterator[Any]) -> Cost:
        self._evict.add_(1)
        if self.loop.long:
            time.sleep(0.03)
        cpu_began, began = time.thread_time_ns(), time.monotonic_ns()
        (batch,) = next(batches)
        value = batch
        for _ in range(self._repeat):
            # The batch is added so that values keep their size: denormal numbers are slow, and come and go.
            value = 0.5 * self._model(value) + batch
        value.square().mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        now, cpu_now = time.monotonic_ns(), time.thread_time_ns()
        return Cost(now - began, cpu_now - cpu_began)

    def collectives(self) -> Cost:
        """A step, and some collectives after it: returns what one of these took."""
        self.step()
        cpu_began, began = time.thread_time_ns(), time.monotonic_ns()
        for _ in range(COLLECTIVES):
            torch.distributed.all_reduce(self._scratch)
        now, cpu_now = time.monotonic_ns(), time.thread_time_ns()
        return Cost((now - began) / COLLECTIVES, (cpu_now - cpu_began) / COLLECTIVES)


@contextmanager
def attached(rank: int = 0, world_size: int = 2, *, device: bool = False) -> Iterator[None]:
    """The hooks on. One process counts as one of two ranks: with DDP the end of its own backward is stamped."""
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


def block(step: Callable[[], Cost], steps: int) -> Cost:
    """What a settled step of a block took."""
    costs = [step() for _ in range(SETTLING_STEPS + steps)][SETTLING_STEPS:]
    return Cost(*(trimmed_mean(list(values)) for values in zip(*costs, strict=True)))


def quartet(step: Callable[[], Cost], steps: int, *, hooks: bool) -> Cost:
    """What B took longer than A: four blocks in random order. Without `hooks`, B is A again: the null."""
    found: dict[str, list[Cost]] = {"A": [], "B": []}
    for letter in random.choice(("ABBA", "BAAB")):
        with attached() if letter == "B" and hooks else nullcontext():
            found[letter].append(block(step, steps))
    a, b = (Cost(*(statistics.fmean(values) for values in zip(*found[letter], strict=True))) for letter in "AB")
    return Cost(b.wall - a.wall, b.cpu - a.cpu)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    medians = sorted(statistics.median(random.choices(values, k=len(values))) for _ in range(2000))
    return statistics.median(values), medians[50], medians[1949]


def told(values: tuple[float, float, float]) -> str:
    """Microseconds with their interval."""
    middle, low, high = (value / 1e3 for value in values)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def by_turns(loop: Loop, step_ms: float, chunks: int, cold_bytes: int) -> str:
    """A loop's line of the table."""
    training = Training(loop, step_ms, cold_bytes)
    turns = training.turns
    with turns.attached(attached(device=loop.device)):
        turns.put("hooks")
        for _ in range(10 * SETTLING_STEPS):
            training.turn()
        # A step that is cold takes ten times as long, most of it outside the time taken.
        found = measure(training.turn, turns.put, chunks // 6 if loop.cold else chunks)
    hooks, null = found["hooks"], found["null"]
    ends = f"{hooks.wall[0] / 1e3:.0f} ms (at most {hooks.wall[2] / 1e3:.0f})"
    columns = [told(each) for each in (hooks.wall, null.wall, hooks.cpu, null.cpu)]
    return f"| {loop.name} | {found['plain'] / 1e6:.2f} ms | {' | '.join(columns)} | {ends} |"


def by_blocks(step: Callable[[], Cost], quartets: int, steps: int) -> str:
    """Four columns of a line: the hooks and the null, wall and CPU."""
    hooks: list[Cost] = []
    null: list[Cost] = []
    for _ in range(quartets):
        hooks.append(quartet(step, steps, hooks=True))
        null.append(quartet(step, steps, hooks=False))
    return " | ".join(told(interval([cost[at] for cost in found])) for at in (0, 1) for found in (hooks, null))


def table(step_ms: float, chunks: int, quartets: int, steps: int, cold_bytes: int) -> list[str]:
    """A line for each loop, and what one collective costs."""
    lines = [
        "| loop | step | hooks, wall | null, wall | hooks, thread CPU | null, thread CPU | below 0.1 % of steps from |",
        "|---|---|---|---|---|---|---|",
    ]
    for loop in LOOPS:
        lines.append(by_turns(loop, step_ms, chunks, cold_bytes))
        print(lines[-1], file=sys.stderr, flush=True)
    training = Training(LOOPS[0], step_ms, cold_bytes)
    lines.append(f"| {LOOPS[0].name}, by blocks | | {by_blocks(training.step, quartets, steps)} | |")
    lines.append(f"| one collective, by blocks | | {by_blocks(training.collectives, quartets, steps)} | |")
    return lines


def main() -> None:
    """Measure and print, or write into the document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, help="of 90 steps: 300 for each loop by turns, or 50 of a job")
    parser.add_argument("--quartets", type=int, help="of blocks, of each kind")
    parser.add_argument("--step-ms", type=float, help="length of a step (2, or 100 for a job)")
    parser.add_argument("--steps", type=int, help="steps a block")
    parser.add_argument("--cold-mb", type=int, default=64, help="size of the buffer that is written between steps")
    parser.add_argument("--ranks", type=int, default=1, help="measure in a job of so many ranks")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    document = Table(arguments.write, "table" if arguments.ranks == 1 else "ranks") if arguments.write else None
    random.seed(1)
    unit = "microseconds a step, or a collective (95 % bootstrap interval)"
    lines = [f"{machine()}, torch {torch.__version__}; {unit}:", ""]
    if arguments.ranks > 1:
        import _hook_cost_ranks

        lines[0] = lines[0].removesuffix(f"; {unit}:") + ":"
        lines += _hook_cost_ranks.measure(arguments.ranks, arguments.step_ms or 100.0, arguments.chunks or 50)
    else:
        with tempfile.TemporaryDirectory() as store:
            torch.distributed.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
            lines += table(
                arguments.step_ms or 2.0,
                arguments.chunks or 300,
                arguments.quartets or 60,
                arguments.steps or 25,
                arguments.cold_mb << 20,
            )
            torch.distributed.destroy_process_group()
    text = "\n".join(lines)
    print(text)
    if document is not None:
        document.write(text)


if __name__ == "__main__":
    main()
