"""Profiler traces of a job that never ran: the files `torch.profiler` would write on each rank, with a known culprit.

All ranks run one program in lockstep. A host launches and runs ahead, a device runs what was launched in order, and a
collective starts on each rank when that rank is ready and ends on all at once: at the last start plus the transfer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

#: From a launch to the first instruction of its kernel on an idle device.
_LATENCY_US = 4.0
_COMPUTE_STREAM = 7
_HOST_PROCESS = 4000


@dataclass(frozen=True, slots=True)
class TracePlan:
    """What the traces are of. Times are microseconds."""

    ranks: int = 4
    steps: int = 5
    #: Kernels of the forward pass; backward has twice as many.
    layers: int = 12
    kernel_us: float = 120.0
    #: What the host needs from one launch to the next.
    launch_us: float = 25.0
    buckets: int = 4
    transfer_us: float = 250.0
    seed: int = 1
    #: None, "device" (its kernels take longer), "host" (it launches later) or "link" (its transfers take longer).
    slow: str | None = None
    culprit: int = 2
    #: Kernels or transfers of the culprit take this many times as long.
    factor: float = 1.3
    #: A slow host loses this in each step, in the middle of backward.
    host_delay_us: float = 5_000.0
    #: "ddp": one group of all; "grid": pairs that exchange in forward and other pairs that average gradients.
    layout: str = "ddp"
    #: Whether the host waits for the device at the end of each step, as reading a loss does.
    synchronise: bool = True
    #: Whether the clocks of the ranks agree.
    one_clock: bool = False
    python_frames: bool = False


@dataclass(slots=True)
class _Rank:
    number: int
    host: float
    compute: float = 0.0
    exchange: dict[str, float] = field(default_factory=dict)
    correlation: int = 100
    operator: int = 1


class TraceJob:
    """Plays a plan; events come out step by step, so that traces larger than memory can be written."""

    def __init__(self, plan: TracePlan) -> None:
        self.plan = plan
        self._random = random.Random(plan.seed)
        self._ranks = [_Rank(number, 0.0) for number in range(plan.ranks)]
        self._skew = [0.0 if plan.one_clock else self._random.uniform(0, 5e5) for _ in range(plan.ranks)]
        self._out: list[list[dict[str, Any]]] = []

    def metadata(self, rank: int) -> dict[str, Any]:
        """What stands beside the events in a rank's file."""
        return {
            "schemaVersion": 1,
            "deviceProperties": [{"id": 0, "name": "NVIDIA A100-SXM4-80GB"}],
            "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": self.plan.ranks, "pg_count": 1},
            "baseTimeNanoseconds": 1_700_000_000_000_000_000,
            "displayTimeUnit": "ms",
        }

    def steps(self) -> Iterator[list[list[dict[str, Any]]]]:
        """The events of each step, by rank."""
        for number in range(self.plan.steps):
            self._out = [[] for _ in self._ranks]
            begin = [rank.host for rank in self._ranks]
            self._step()
            for rank, start in zip(self._ranks, begin, strict=True):
                self._host(rank, "user_annotation", f"ProfilerStep#{number + 10}", start, rank.host - start)
                if self.plan.python_frames:
                    self._host(rank, "python_function", "train.py(40): train_step", start, rank.host - start)
            yield self._out

    def traces(self) -> list[dict[str, Any]]:
        """Each rank's file as one document."""
        every: list[list[dict[str, Any]]] = [[] for _ in self._ranks]
        for step in self.steps():
            for events, more in zip(every, step, strict=True):
                events.extend(more)
        return [{**self.metadata(rank), "traceEvents": events} for rank, events in enumerate(every)]

    def _step(self) -> None:
        plan = self.plan
        for rank in self._ranks:
            self._host(rank, "cpu_op", "enumerate(DataLoader)#__next__", rank.host, 300.0)
            rank.host += 300.0
        for layer in range(plan.layers):
            self._kernels("aten::addmm", "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn")
            if plan.layout == "grid" and layer % 4 == 3:
                self._collective("tp", plan.transfer_us / 2, wait=True)
        backward = 2 * plan.layers
        for layer in range(backward):
            if layer == backward // 2 and plan.slow == "host":
                slow = self._ranks[plan.culprit]
                self._host(slow, "cpu_op", "aten::item", slow.host, plan.host_delay_us)
                slow.host += plan.host_delay_us
            self._kernels("aten::mm", "void cutlass::Kernel<cutlass_80_tensorop_bf16_s16816gemm_relu>(Params)")
            if layer % max(1, backward // plan.buckets) == backward // plan.buckets - 1:
                self._collective("dp", plan.transfer_us, wait=False)
        for rank in self._ranks:
            rank.compute = max(rank.compute, *rank.exchange.values())
        self._kernels("aten::_foreach_add_", "void at::native::multi_tensor_apply_kernel<Functor>(Functor)")
        if plan.synchronise:
            for rank in self._ranks:
                if rank.compute > rank.host:
                    rank.correlation += 1
                    self._call(rank, "cudaStreamSynchronize", rank.host, rank.compute - rank.host)
                rank.host = max(rank.host, rank.compute) + 10.0

    def _kernels(self, operator: str, kernel: str) -> None:
        for rank in self._ranks:
            slow = self.plan.slow == "device" and rank.number == self.plan.culprit
            took = self.plan.kernel_us * self._random.lognormvariate(0, 0.03) * (self.plan.factor if slow else 1.0)
            launched = self._launch(rank, operator)
            start = max(rank.compute, launched + _LATENCY_US)
            self._device(rank, kernel, start, took, _COMPUTE_STREAM, {})
            rank.compute = start + took

    def _collective(self, name: str, transfer_us: float, *, wait: bool) -> None:
        for members in _groups(self.plan, name):
            link = self.plan.slow == "link" and self.plan.culprit in members
            took = transfer_us * self._random.lognormvariate(0, 0.02) * (self.plan.factor if link else 1.0)
            starts = []
            for member in members:
                rank = self._ranks[member]
                launched = self._launch(rank, "record_param_comms", _message(name, members))
                starts.append(max(rank.compute, launched + _LATENCY_US, rank.exchange.get(name, 0.0)))
            end = max(starts) + took
            for member, start in zip(members, starts, strict=True):
                rank = self._ranks[member]
                stream = 20 if name == "dp" else 24
                kernel = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevComm*)"
                self._device(rank, kernel, start, end - start, stream, _message(name, members))
                rank.exchange[name] = end
                if wait:
                    rank.compute = end

    def _launch(self, rank: _Rank, operator: str, args: dict[str, Any] | None = None) -> float:
        """Host time of a launch; the operator around it is written too."""
        took = self.plan.launch_us * self._random.lognormvariate(0, 0.1)
        launched = rank.host + took * 0.6
        rank.operator += 1
        rank.correlation += 1
        self._host(rank, "cpu_op", operator, rank.host, took * 0.95, {"External id": rank.operator, **(args or {})})
        self._call(rank, "cudaLaunchKernel", launched, took * 0.2)
        rank.host += took
        return launched

    def _device(self, rank: _Rank, name: str, start: float, took: float, stream: int, args: dict[str, Any]) -> None:
        where = {"device": 0, "stream": stream, "correlation": rank.correlation, "External id": rank.operator}
        self._event(rank, "kernel", name, 0, stream, start, took, {**where, **args})

    def _call(self, rank: _Rank, name: str, start: float, took: float) -> None:
        thread = _HOST_PROCESS + rank.number
        self._event(rank, "cuda_runtime", name, thread, thread, start, took, {"correlation": rank.correlation})

    def _host(
        self, rank: _Rank, category: str, name: str, start: float, took: float, args: dict[str, Any] | None = None
    ) -> None:
        thread = _HOST_PROCESS + rank.number
        self._event(rank, category, name, thread, thread, start, took, args or {})

    def _event(
        self,
        rank: _Rank,
        category: str,
        name: str,
        process: int,
        thread: int,
        start: float,
        took: float,
        args: dict[str, Any],
    ) -> None:
        self._out[rank.number].append(
            {
                "ph": "X",
                "cat": category,
                "name": name,
                "pid": process,
                "tid": thread,
                "ts": round(1_000_000 + self._skew[rank.number] + start, 3),
                "dur": round(took, 3),
                "args": args,
            }
        )


def _groups(plan: TracePlan, name: str) -> list[Sequence[int]]:
    if plan.layout == "ddp":
        return [range(plan.ranks)]
    half = plan.ranks // 2
    if name == "tp":
        return [(2 * pair, 2 * pair + 1) for pair in range(half)]
    return [(lane + 4 * block, lane + 4 * block + 2) for block in range(half // 2) for lane in range(2)]


def _message(name: str, members: Sequence[int]) -> dict[str, Any]:
    return {
        "Collective name": "allreduce",
        "In msg nelems": 4_000_000,
        "Out msg nelems": 4_000_000,
        "Group size": len(members),
        "dtype": "BFloat16",
        "Process Group Name": name,
        "Process Group Description": f"{name}_group",
        "Process Group Ranks": str(list(members)),
    }
