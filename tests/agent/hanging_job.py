"""A data-parallel job on gloo in which a rank stops the job in step 30, in the way that its argument names."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def fetch_vocabulary() -> None:
    """Sleep where a lock or a slow file would."""
    time.sleep(300)


def tokenize_in_native_code() -> None:
    """Hold the interpreter's lock for minutes, in a loop of the interpreter's own C code that minds no signal."""
    collections.deque(itertools.repeat(1, 10**11), maxlen=0)


def other_collective() -> None:
    """What only one rank calls."""
    dist.broadcast(torch.ones(8), 0)


def main() -> None:
    """Train; never returns by itself."""
    how = sys.argv[1]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(torch.nn.Linear(32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.utils.data.TensorDataset(torch.randn(40_000, 32))
    for step, (batch,) in enumerate(torch.utils.data.DataLoader(data, batch_size=32)):
        if step == 30 and rank == 2:
            match how:
                case "sleep":
                    fetch_vocabulary()
                case "lock":
                    tokenize_in_native_code()
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
        if step == 30 and how == "type":
            if rank == 2:
                other_collective()
            else:
                dist.all_reduce(torch.ones(8))
        optimizer.zero_grad()
        model(batch).pow(2).mean().backward()
        optimizer.step()


if __name__ == "__main__":
    main()
