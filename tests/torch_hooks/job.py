"""A rank of a small gloo job for the tests: runs loops one after another, each watched into a directory of its own.

Arguments: directory, names of loops. RANK and WORLD_SIZE come by environment, the store is a file in the directory.
A loop that begins with "async" runs on the asynchronous device; a number at its end is its seed.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from tests.torch_hooks.loops import Delay, Delayed, Rows
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from rankscope.simulator.device import AsyncDevice, AsyncDeviceClock
from rankscope.simulator.rank import communicate
from rankscope.torch_hooks import Scope

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
DELAY_S = 0.02
#: The device of the loop under way.
DEVICE: list[AsyncDevice] = []


def device_clock() -> AsyncDeviceClock:
    """What RANKSCOPE_DEVICE_CLOCK names."""
    return AsyncDeviceClock(DEVICE[-1])


def ddp_accumulating(delay: Delay) -> None:
    """Three backwards a step, of which the last reduces; rank 1 is late in it."""
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for index, batch in enumerate(DataLoader(Rows(18), batch_size=1)):
        model.require_backward_grad_sync = index % 3 == 2
        output = model(batch)
        (Delayed.apply(output, delay) if RANK == 1 and index % 3 == 2 else output).sum().backward()
        if index % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


def explicit_collective(delay: Delay) -> None:
    """A collective of the script's own behind backward, to which rank 1 comes late."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Rows(8), batch_size=1):
        loss = model(batch).sum()
        loss.backward()
        if RANK == 1:
            delay()
        dist.all_reduce(loss.detach().clone())
        optimizer.step()


def fsdp(delay: Delay) -> None:
    """FSDP2 on the CPU: the gather before a layer's forward waits for rank 1."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Rows(8), batch_size=1):
        if RANK == 1:
            delay()
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def pipeline(delay: Delay) -> None:
    """Two stages, four microbatches; the second stage is slow."""
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    class Stage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            if RANK == 1:
                delay()
            return self.layer(value)  # type: ignore[no-any-return]

    module = Stage()
    stage = PipelineStage(module, RANK, WORLD, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, 4, loss_fn=lambda output, target: (output - target).square().mean())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    inputs = torch.ones(8, 4)
    for _ in range(7):
        if RANK == 0:
            schedule.step(inputs)
        else:
            schedule.step(target=inputs)
        optimizer.step()
        optimizer.zero_grad()


class _Kernel(torch.autograd.Function):
    """Passes through; forward and backward launch work of some ms each."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, launch: Callable[[str], None]) -> torch.Tensor:
        ctx.launch = launch
        launch("forward")
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.launch("backward")
        return gradient, None


def late_in_backward(seed: int, device: AsyncDevice | None) -> int:
    """DDP of 20 steps after warm-up in which one rank, drawn by the seed, is 5 ms late inside backward. Who it was."""
    culprit = random.Random(seed).randrange(WORLD)
    noise = random.Random(seed * 100 + RANK)

    def launch(part: str) -> None:
        took_ms = noise.gauss(3 if part == "forward" else 7, 0.2) + 5 * (part == "backward" and culprit == RANK)
        if device is not None:
            device.kernel(round(took_ms * 1e6))
        else:
            time.sleep(took_ms / 1e3)

    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    group = dist.new_group(backend="gloo")
    if device is not None:
        model.register_comm_hook(None, communicate(device, group, 500_000))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Rows(25), batch_size=1):
        _Kernel.apply(model(batch), launch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    if device is not None:
        device.synchronize()
    return culprit


def watched(directory: Path, name: str) -> None:
    """Run one loop under a scope of its own and leave what it knows of itself beside the ring."""
    device = None
    environ = {**os.environ, "RANKSCOPE_DIR": str(directory / name), "RANKSCOPE_STACK_SIGNAL": ""}
    if name.startswith("async"):
        gpu = SimpleNamespace(
            uuid=f"GPU-{RANK}", work_factor=1.0, busy_ns=0, collective_ns=0, spin_ns=0, fatal=False, step=0
        )
        gpu.waiting_since_monotonic_ns = 0
        device = AsyncDevice(gpu)  # type: ignore[arg-type]
        DEVICE.append(device)
        environ["RANKSCOPE_DEVICE_CLOCK"] = "tests.torch_hooks.job:device_clock"
    delay = Delay(DELAY_S)
    dist.barrier()
    scope = Scope(environ, write_error=sys.exit)
    scope.install()
    try:
        if name[-1].isdigit():
            known: Any = late_in_backward(int(name[-1]), device)
        else:
            LOOPS[name](delay)
            known = delay.taken_ns
    finally:
        scope.detach()
    if device is not None:
        device.stop()
    (directory / f"{name}.{RANK}.json").write_text(json.dumps(known))
    gc.collect()


LOOPS = {
    "ddp_accumulating": ddp_accumulating,
    "explicit_collective": explicit_collective,
    "fsdp": fsdp,
    "pipeline": pipeline,
}


def main() -> None:
    """Join the job and run the loops."""
    directory = Path(sys.argv[1])
    torch.set_num_threads(1)
    sys.setswitchinterval(0.0005)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=RANK, world_size=WORLD)
    sys.modules["tests.torch_hooks.job"] = sys.modules["__main__"]
    for name in sys.argv[2:]:
        watched(directory, name)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
