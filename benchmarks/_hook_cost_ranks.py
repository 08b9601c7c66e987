"""What the hooks do to the step of a job of several ranks: the part of hook_cost.py that starts one.

Each rank trains with DDP over gloo. A step computes for a few ms and sleeps the rest, as a host does that waits for its
device, so that ranks do not fight for cores. The hooks take turns with torch's own functions from step to step, in all
ranks alike.
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

from _hook_cost_turns import STATES, Cost, Turns, chunk_of_steps, differences

#: Wall time of a step on each rank, by state, of each chunk.
Chunks = list[dict[str, list[list[float]]]]


def measure(ranks: int, step_ms: float, chunks: int) -> list[str]:
    """The table: what the hooks, and nothing, add to the mean step and to its 99th percentile over ranks."""
    with tempfile.TemporaryDirectory() as directory:
        plan = [str(ranks), str(step_ms), str(chunks), directory]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "RANKSCOPE_ATTACH": ""}
        processes = [
            subprocess.Popen([sys.executable, str(Path(__file__).resolve()), str(rank), *plan], env=environ)
            for rank in range(ranks)
        ]
        if max(process.wait() for process in processes):
            raise SystemExit("a rank failed")
        of_ranks = [json.loads(Path(directory, f"{rank}.json").read_text()) for rank in range(ranks)]
    found: Chunks = [
        {state: list(zip(*(rank[at][state] for rank in of_ranks), strict=True)) for state in STATES}
        for at in range(chunks)
    ]
    # The ranks of a synchronous job take as long as each other: the mean over them is one step's time.
    means = [{state: [statistics.fmean(step) for step in steps] for state, steps in chunk.items()} for chunk in found]
    plain = statistics.fmean(wall for chunk in means for wall in chunk["plain"])
    lines = ["| | step, plain | mean step | 99th percentile over ranks |", "|---|---|---|---|"]
    for name in ("hooks", "null"):
        mean = [difference / plain for difference in differences(means, name)]
        lines.append(f"| {name} | {plain / 1e6:.1f} ms | {_told(mean)} | {_told(_tails(found, name))} |")
    return lines


def _tails(found: Chunks, state: str) -> list[float]:
    """By how much the 99th percentile of all ranks' steps is longer, and then as resampled over chunks."""
    samples = [found] + [random.choices(found, k=len(found)) for _ in range(500)]
    return [_tail(sample, state) / _tail(sample, "plain") - 1 for sample in samples]


def _tail(sample: Chunks, state: str) -> float:
    return statistics.quantiles([wall for chunk in sample for step in chunk[state] for wall in step], n=100)[98]


def _told(shares: list[float]) -> str:
    """A share as a percentage, with its 95 % interval."""
    first, rest = shares[0], sorted(shares[1:])
    low, high = rest[round(0.025 * len(rest))], rest[round(0.975 * len(rest)) - 1]
    return f"{100 * first:+.3f} % ({100 * low:+.3f} to {100 * high:+.3f})"


def train(rank: int, ranks: int, step_ms: float, chunks: int, directory: Path) -> None:
    """One rank: every step of every chunk, in the order that the common seed gives."""
    import torch
    from hook_cost import SETTLING_STEPS, attached
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=ranks)
    model = DistributedDataParallel(torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4))))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loader = DataLoader(TensorDataset(torch.randn(16 * 100_000, 4)), batch_size=16)
    widen = torch.randn(4, 256)
    turns = Turns(loader)

    def step() -> Cost:
        began = time.monotonic_ns()
        (batch,) = next(turns.batches())
        output = model(batch @ widen)
        time.sleep(step_ms / 1e3)
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return Cost(time.monotonic_ns() - began, 0)

    chance = random.Random(1)
    found = []
    with turns.attached(attached(rank, ranks)):
        turns.put("hooks")
        for _ in range(SETTLING_STEPS):
            step()
        for _ in range(chunks):
            chunk = chunk_of_steps(step, turns.put, chance)
            found.append({state: [cost.wall for cost in costs] for state, costs in chunk.items()})
    Path(directory, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train(*map(int, sys.argv[1:3]), float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
