"""The training script of a simulated rank, started by torchrun: real loader, DDP, gloo and optimizer hooks, work that
takes its time on the asynchronous device, and the faults that live inside a process.

The scenario comes by environment variable and nothing here says what was injected.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from rankscope.simulator.device import AsyncDevice, current_device
from rankscope.simulator.fully_shard import shard
from rankscope.simulator.pauses import Garbage, burn_cpu, slow_save
from rankscope.simulator.scenario import Scenario
from rankscope.simulator.scenario_file import scenario_from_environment

#: How the device time of a step divides over its parts; the rest is the optimizer.
_FORWARD, _BACKWARD, _TRANSFER = 0.30, 0.58, 0.04
_WIDTH = 256
#: Relative spread of a kernel's duration from step to step, as real kernels of a fixed shape show.
_JITTER = 0.01
#: Bytes that torch would hold on the device; NVML shows them per process.
_DEVICE_BYTES = 40 << 30


class Batches(Dataset[torch.Tensor]):
    """One prepared batch an index; preparing it takes the loader's worker its time."""

    def __init__(self, scenario: Scenario, rank: int) -> None:
        self._scenario = scenario
        self._rank = rank

    def __len__(self) -> int:
        return self._scenario.workload.steps

    def __getitem__(self, step: int) -> torch.Tensor:
        workload = self._scenario.workload
        preparing_ms = workload.data_ms
        for slug in ("input-bound", "slow-storage"):
            fault = self._scenario.fault_on(slug, self._rank, step)
            preparing_ms *= fault.severity if fault else 1.0
        time.sleep(preparing_ms / 1e3)
        rows = max(1, round(workload.batch * self._scenario.work_share(self._rank, step)))
        return torch.ones(rows, _WIDTH)


class _Layer(torch.autograd.Function):
    """One layer: real gradients of a small weight, and device work of the layer's size."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, model: Model) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.model = model
        model.launch(_FORWARD)
        return inputs * weight

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        inputs, weight = ctx.saved_tensors
        ctx.model.launch(_BACKWARD)
        return gradient * weight, (gradient * inputs).sum(0), None


class _Stage(torch.nn.Module):
    """One layer as a module: what FSDP shards and gathers as a whole."""

    def __init__(self, launcher: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(_WIDTH))
        # In a tuple, so that it is no submodule.
        self._launcher = (launcher,)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        output: torch.Tensor = _Layer.apply(value, self.weight, self._launcher[0])  # type: ignore[no-untyped-call]
        return output


class Model(torch.nn.Module):
    """A stack of layers on the asynchronous device."""

    def __init__(self, scenario: Scenario, device: AsyncDevice, rank: int) -> None:
        super().__init__()
        workload = scenario.workload
        self.layers = torch.nn.ModuleList(_Stage(self) for _ in range(workload.layers))
        self._workload = workload
        self._device = device
        self._random = random.Random(scenario.seed * 1000 + rank)
        self._scale = 1.0
        self.synchronizations = 0

    def launch(self, share: float) -> None:
        """Launch one layer's part of the step: the host spends its time, then the device."""
        workload = self._workload
        burn_cpu(workload.host_ms / (2 * workload.layers) * 1e6)
        duration_ms = workload.step_ms * share * self._scale / workload.layers
        self._device.kernel(round(duration_ms * 1e6 * self._random.gauss(1.0, _JITTER)))
        if self.synchronizations:
            self.synchronizations -= 1
            self._device.synchronize()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Mean of the batch through all layers; work grows with the rows of the batch."""
        self._scale = batch.shape[0] / self._workload.batch
        value = batch
        for layer in self.layers:
            value = layer(value)
        return value.mean()


class _DeviceSgd(torch.optim.SGD):
    """SGD whose update takes its time on the device."""

    def __init__(self, model: torch.nn.Module, device: AsyncDevice, update_ns: int) -> None:
        super().__init__(model.parameters(), lr=1e-4)
        self._device, self._update_ns = device, update_ns

    def step(self, closure: Any = None) -> Any:
        """Launch the update."""
        self._device.kernel(self._update_ns)
        return super().step(closure)


def communicate(device: AsyncDevice, group: Any, transfer_ns: int) -> Any:
    """A DDP communication hook that reduces buckets on the device's communication stream."""

    def reduce(_state: object, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        copy = bucket.buffer().clone()
        device.collective(lambda: dist.all_reduce(copy, group=group), transfer_ns)
        if bucket.is_last():
            Variable._execution_engine.queue_callback(device.join_communication)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    # DDP compares annotations with its classes, and finds strings here.
    reduce.__annotations__.clear()
    return reduce


def stuck_in_user_code() -> None:
    """A rank that never comes back."""
    while True:
        time.sleep(0.05)


def before_step(scenario: Scenario, model: Model, garbage: Garbage, rank: int, step: int) -> None:
    """Faults that strike inside the training loop, in this step."""
    if scenario.fault_on("rank-killed", rank, step):
        os.kill(os.getpid(), signal.SIGKILL)
    if scenario.fault_on("rank-exception", rank, step):
        raise ValueError(f"expected a batch of {_WIDTH} columns, got {_WIDTH // 2}")
    if scenario.fault_on("rank-hang", rank, step):
        stuck_in_user_code()
    sync = scenario.fault_on("host-sync", rank, step)
    model.synchronizations = round(sync.severity) if sync else 0
    pause = scenario.fault_on("gc-pause", rank, step)
    if pause:
        garbage.collect(pause.severity)


def train(scenario: Scenario, device: AsyncDevice, rank: int) -> None:
    """The training loop, as a user would write it."""
    workload = scenario.workload
    group = dist.new_group(backend="gloo") if dist.is_initialized() else None
    model = Model(scenario, device, rank)
    trained: torch.nn.Module = model
    if group is not None and workload.kind == "fsdp":
        shard(model, device, group, round(workload.step_ms * _TRANSFER * 5e5))
    elif group is not None:
        wrapped = DistributedDataParallel(model, bucket_cap_mb=_WIDTH * 4 * 2 / 2**20)
        wrapped.register_comm_hook(None, communicate(device, group, round(workload.step_ms * _TRANSFER * 5e5)))
        trained = wrapped
    update_ns = round(workload.step_ms * (1 - _FORWARD - _BACKWARD - _TRANSFER) * 1e6)
    optimizer = _DeviceSgd(model, device, update_ns)
    loader = DataLoader(Batches(scenario, rank), batch_size=None, num_workers=workload.workers)
    garbage = Garbage()
    for step, batch in enumerate(loader):
        device.gpu.step = step
        before_step(scenario, model, garbage, rank, step)
        loss = trained(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        saving = scenario.fault_on("checkpoint-stall", rank, step)
        if saving:
            slow_save(model.state_dict(), saving.severity)
    device.synchronize()


def ranks(environment: os._Environ[str] = os.environ) -> Iterator[int]:
    """This process's rank, with the process group around it where there is more than one rank."""
    rank, world = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    yield rank
    if world > 1:
        # Destroying the group right after the last step aborts now and then; a barrier before it does not.
        dist.barrier()
        dist.destroy_process_group()


def main() -> None:
    """Train as the scenario says."""
    torch.set_num_threads(1)
    # Device threads must not wait 5 ms for the interpreter's lock while the host thread computes.
    sys.setswitchinterval(0.0005)
    device = current_device()
    device.gpu.set_process(os.getpid(), _DEVICE_BYTES)
    scenario = scenario_from_environment(os.environ)
    for rank in ranks():
        train(scenario, device, rank)


if __name__ == "__main__":
    main()
