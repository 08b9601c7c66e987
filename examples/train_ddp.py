"""A small DDP job on the CPU, with nothing of Rankscope in it.

rankscope run -- torchrun --nproc-per-node 4 examples/train_ddp.py
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    """Train a small network for a number of steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--step-ms", type=float, default=0.0, help="sleep in each forward, to stand for a device's work"
    )
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed:
        dist.init_process_group("gloo")
    width = arguments.width
    layers = [torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 1)]
    model: torch.nn.Module = torch.nn.Sequential(*layers)
    if distributed:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randn(4096, width)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] | None = DistributedSampler(data) if distributed else None
    loader = DataLoader(data, batch_size=16, sampler=sampler, num_workers=0)
    step, loss = 0, torch.zeros(())
    while step < arguments.steps:
        for batch, target in loader:
            time.sleep(arguments.step_ms / 1e3)
            loss = (model(batch) - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step >= arguments.steps:
                break
    print(f"loss after {step} steps: {loss.item():.9f}", flush=True)
    if distributed:
        # Destroying the group right after the last step aborts now and then; a barrier before it does not.
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
