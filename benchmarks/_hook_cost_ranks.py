"""What the hooks do to the step of a job of several ranks: the part of hook_cost.py that starts one.

Each rank trains with DDP over gloo. A step computes for a few ms and sleeps the rest, as a host does that waits for its
device, so that ranks do not fight for cores. All ranks attach and detach together; a quartet gives one ratio.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

Blocks = list[tuple[str, list[int]]]


def measure(ranks: int, step_ms: float, quartets: int, steps: int) -> list[str]:
    """The table: what the hooks, and nothing, add to the mean step and to its 99th percentile over ranks."""
    with tempfile.TemporaryDirectory() as directory:
        plan = [str(ranks), str(step_ms), str(quartets), str(steps), directory]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "RANKSCOPE_ATTACH": ""}
        processes = [
            subprocess.Popen([sys.executable, str(Path(__file__).resolve()), str(rank), *plan], env=environ)
            for rank in range(ranks)
        ]
        if max(process.wait() for process in processes):
            raise SystemExit("a rank failed")
        found: list[dict[str, list[Blocks]]] = [
            json.loads(Path(directory, f"{rank}.json").read_text()) for rank in range(ranks)
        ]
    lines = ["| | step, plain | mean step | 99th percentile over ranks |", "|---|---|---|---|"]
    for name in ("hooks", "null"):
        pooled = [_pool(blocks) for blocks in zip(*(rank[name] for rank in found), strict=True)]
        plain_ms = statistics.fmean(wall for quartet in pooled for wall in quartet["A"]) / 1e6
        means = [statistics.fmean(quartet["B"]) / statistics.fmean(quartet["A"]) for quartet in pooled]
        lines.append(f"| {name} | {plain_ms:.1f} ms | {_told(_means(means))} | {_told(_tails(pooled))} |")
    return lines


def _pool(ranks: tuple[Blocks, ...]) -> dict[str, list[int]]:
    """Steps of one quartet over all ranks, by condition."""
    pooled: dict[str, list[int]] = {"A": [], "B": []}
    for blocks in ranks:
        for letter, walls in blocks:
            pooled[letter] += walls
    return pooled


def _means(ratios: list[float]) -> list[float]:
    """The median ratio, and then as resampled over quartets."""
    return [statistics.median(ratios)] + [statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000)]


def _tails(pooled: list[dict[str, list[int]]]) -> list[float]:
    """The ratio of 99th percentiles of all steps, and then as resampled over quartets."""
    samples = [pooled] + [random.choices(pooled, k=len(pooled)) for _ in range(500)]
    return [_tail(sample, "B") / _tail(sample, "A") for sample in samples]


def _tail(sample: list[dict[str, list[int]]], letter: str) -> float:
    return statistics.quantiles([wall for quartet in sample for wall in quartet[letter]], n=100)[98]


def _told(ratios: list[float]) -> str:
    """A ratio as a percentage above one, with its 95 % interval."""
    first, rest = ratios[0], sorted(ratios[1:])
    low, high = rest[round(0.025 * len(rest))], rest[round(0.975 * len(rest)) - 1]
    return f"{100 * (first - 1):+.3f} % ({100 * (low - 1):+.3f} to {100 * (high - 1):+.3f})"


def train(rank: int, ranks: int, step_ms: float, quartets: int, steps: int, directory: Path) -> None:
    """One rank: every block of every quartet, in the order that the common seed gives."""
    import torch
    from hook_cost import SETTLING_STEPS, attached
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=ranks)
    model = DistributedDataParallel(torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4))))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loader = DataLoader(TensorDataset(torch.randn(16 * 1000, 256)), batch_size=16)

    def block() -> list[int]:
        walls = []
        batches = iter(loader)
        torch.distributed.barrier()
        ends = time.monotonic_ns()
        for _ in range(steps + SETTLING_STEPS):
            began, ends = ends, 0
            (batch,) = next(batches)
            output = model(batch)
            time.sleep(step_ms / 1e3)
            output.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            ends = time.monotonic_ns()
            walls.append(ends - began)
        return walls[SETTLING_STEPS:]

    def quartet(order: str, *, hooks: bool) -> Blocks:
        blocks: Blocks = []
        for letter in order:
            if letter == "B" and hooks:
                with attached(rank, ranks):
                    blocks.append((letter, block()))
            else:
                blocks.append((letter, block()))
        return blocks

    chance = random.Random(1)
    found: dict[str, list[Blocks]] = {"hooks": [], "null": []}
    block()
    for _ in range(quartets):
        for name in ("hooks", "null"):
            found[name].append(quartet(chance.choice(("ABBA", "BAAB")), hooks=name == "hooks"))
    Path(directory, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train(*map(int, sys.argv[1:3]), float(sys.argv[3]), *map(int, sys.argv[4:6]), Path(sys.argv[6]))
