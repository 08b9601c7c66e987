"""Ranks of a real job over several nodes: a small model under DDP on gloo, some milliseconds of work a step.

Arguments: number of steps; one of them; and a file that is written when rank 0 begins that step, with the process of
each rank, in order."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

STEPS, MARKED, FILE = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

dist.init_process_group("gloo")
torch.set_num_threads(1)
pids: list[int] = [0] * dist.get_world_size()
dist.all_gather_object(pids, os.getpid())
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)))
optimizer = torch.optim.SGD(model.parameters(), 0.01)
data = torch.utils.data.TensorDataset(torch.randn(STEPS * 8, 64), torch.randn(STEPS * 8, 8))
for step, (inputs, targets) in enumerate(torch.utils.data.DataLoader(data, batch_size=8)):
    if step == MARKED and dist.get_rank() == 0:
        FILE.with_suffix(".new").write_text(" ".join(map(str, pids)))
        FILE.with_suffix(".new").rename(FILE)
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    time.sleep(0.02)
    loss.backward()
    optimizer.step()
dist.barrier()
dist.destroy_process_group()
