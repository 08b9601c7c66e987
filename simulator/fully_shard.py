"""FSDP2 on the asynchronous device: parameters are gathered before each layer, gradients are scattered behind it.

FSDP itself is torch's own; only its communication is put on the device's communication stream, where it waits for the
peers through a real gloo operation. The compute stream waits for each gather in the middle of forward and backward, as
it does on a GPU where nothing was gathered ahead: whoever is slow makes the others wait inside their own phases.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Variable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rankscope.simulator.device import AsyncDevice


class _Communication:
    """What FSDP's two operations share: the place for their result, and the peers they wait for."""

    def __init__(self, device: AsyncDevice, group: Any, transfer_ns: int) -> None:
        self._device, self._group, self._transfer_ns = device, group, transfer_ns

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for an operation's input or output."""
        return torch.empty(*size, dtype=dtype, device=device)

    def _launch(self) -> None:
        meeting = torch.zeros(1)
        self._device.collective(lambda: dist.all_reduce(meeting, group=self._group), self._transfer_ns)


class _Gather(_Communication):
    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> None:
        # Every rank has the same parameters: its own shard stands for the others'.
        output_tensor.copy_(input_tensor.repeat(group.size()))
        self._launch()
        self._device.join_communication()


class _Scatter(_Communication):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._joins = [False]

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        output_tensor.copy_(input_tensor[: output_tensor.numel()])
        self._launch()
        if not self._joins[0]:
            self._joins[0] = True
            Variable._execution_engine.queue_callback(self._join)

    def _join(self) -> None:
        self._joins[0] = False
        self._device.join_communication()


def shard(model: Any, device: AsyncDevice, group: Any, transfer_ns: int) -> None:
    """Shard each layer of `model.layers`, and the model, over all ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    gather, scatter = _Gather(device, group, transfer_ns), _Scatter(device, group, transfer_ns)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
        layer.set_custom_all_gather(gather)
        layer.set_custom_reduce_scatter(scatter)
    fully_shard(model, mesh=mesh)
