"""Training signals, looks into the allocator, and the watch for values that are not finite."""

from __future__ import annotations

import math
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.torch_hooks.fake_cuda import FakeCuda
from tests.vocabulary.test_ring import IDENTITY

from rankscope.clock import ClockAnchor
from rankscope.records import MarkKind, MarkRecord, MemoryRecord, NonFinite, RingRecord, SignalRecord
from rankscope.ring import RingReader, RingWriter
from rankscope.torch_hooks import Scope
from rankscope.torch_hooks.allocator import LOOK_PERIOD_NS, AllocatorWatch, size_class
from rankscope.torch_hooks.clocks import CudaClock, HostClock
from rankscope.torch_hooks.nonfinite import NonFiniteWatch
from rankscope.torch_hooks.peak import peak_flops
from rankscope.torch_hooks.signals import MAX_PENDING, Signals

NOTHING = {"samples": None, "tokens": None, "flops": None, "peak_flops": None}


class OnDevice:
    """A tensor of one element on the device: it can be copied behind an event, and not be read."""

    is_cuda = True

    def __init__(self, value: float) -> None:
        self._value = value

    def detach(self) -> OnDevice:
        return self

    def reshape(self, _count: int) -> torch.Tensor:
        return torch.tensor([self._value], dtype=torch.float64)

    def item(self) -> float:
        raise AssertionError("waited for the device")

    __float__ = item


@pytest.fixture
def ring(tmp_path: Path) -> RingWriter:
    """A ring to write into."""
    return RingWriter(tmp_path / "a.ring", IDENTITY, ClockAnchor(1, 2))


def written(ring: RingWriter) -> list[Any]:
    """Everything in the ring."""
    return RingReader(ring.path).read().records


def test_numbers_are_written_at_once(ring: RingWriter) -> None:
    """Numbers and tensors on the host are there when the call returns; what is not finite is told as such."""
    signals = Signals(ring, HostClock(), monotonic_ns=lambda: 7)
    signals.note(3, torch.tensor(0.5, requires_grad=True), 2.0, NOTHING | {"tokens": 4096})
    signals.note(4, math.nan, None, NOTHING)
    signals.note(5, 1.0, math.inf, NOTHING)
    assert written(ring) == [
        SignalRecord(3, 7, 0.5, 2.0, tokens=4096),
        SignalRecord(4, 7, nonfinite=NonFinite.LOSS),
        SignalRecord(5, 7, 1.0, nonfinite=NonFinite.GRADIENT_NORM),
    ]


def test_a_loss_on_the_device_is_never_waited_for(ring: RingWriter) -> None:
    """It is written, with its own step and time, when the device has come to it; a device far behind loses some."""
    cuda = FakeCuda()
    moments = iter(range(100))
    signals = Signals(ring, CudaClock(cuda, OnDevice), monotonic_ns=lambda: next(moments))
    cuda.work(5)
    signals.note(0, OnDevice(0.25), None, NOTHING)
    signals.flush()
    assert written(ring) == []
    cuda.work(5)
    signals.note(1, OnDevice(math.inf), OnDevice(3.0), NOTHING)
    cuda.run(5)
    signals.flush()
    assert written(ring) == [SignalRecord(0, 0, 0.25)]
    for step in range(2, MAX_PENDING + 3):
        cuda.work(1)
        signals.note(step, OnDevice(1.0), None, NOTHING)
    assert signals.dropped == 2
    cuda.run(1000)
    cuda.capturing = True
    signals.note(99, OnDevice(1.0), None, NOTHING)
    assert signals.dropped == 3
    cuda.capturing = False
    signals.flush()
    records = written(ring)
    assert records[1] == SignalRecord(1, 1, None, 3.0, NonFinite.LOSS)
    assert len(records) == 1 + MAX_PENDING
    assert cuda.events_made <= MAX_PENDING


def test_counts_are_taken_from_the_host_only(ring: RingWriter) -> None:
    """A tensor or a float of the host is a count; one on the device is never read, and that is counted and said."""
    signals, said = Signals(ring, HostClock(), monotonic_ns=lambda: 7), []
    signals.note(0, None, None, NOTHING | {"tokens": torch.tensor(64), "samples": 4.0})
    signals.note(1, None, None, NOTHING | {"tokens": OnDevice(64.0), "samples": 4})
    assert written(ring) == [SignalRecord(0, 7, samples=4, tokens=64), SignalRecord(1, 7, samples=4)]
    signals.close(said.append)
    assert len(said) == 1
    assert said[0].startswith("1 training signals were given up")


def test_no_tensor_is_kept(ring: RingWriter) -> None:
    """The loss and the graph behind it are free to go when the call returns."""
    signals = Signals(ring, HostClock())
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * 2).sum()
    kept = weakref.ref(loss)
    signals.note(0, loss, None, NOTHING)
    del loss
    assert kept() is None


def test_the_scope_takes_signals(scope: Scope, records: Callable[[], list[RingRecord]]) -> None:
    """`scope.signal` inside a loop belongs to the step under way, and nonsense ends the watching, not the training."""
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scope.signal(loss=1.0)  # before training begins there is no step
    for number, batch in enumerate(scope.steps(torch.randn(3, 2, 4))):
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        scope.signal(loss=loss, samples=2, flops=100, peak_flops=1000)
        assert loss.requires_grad
        assert number < 3
    found = [record for record in records() if isinstance(record, SignalRecord)]
    assert [(record.step, record.samples, record.peak_flops) for record in found] == [(n, 2, 1000) for n in range(3)]
    assert all(record.loss is not None and record.loss > 0 for record in found)
    scope.signal(loss="nonsense")
    marks = [record for record in records() if isinstance(record, MarkRecord) and record.mark == MarkKind.DEGRADED]
    assert len(marks) == 1


def test_the_first_module_that_breaks_is_named(scope: Scope, records: Callable[[], list[RingRecord]]) -> None:
    """Of modules whose output is not finite the first one called is named once, and the hooks are gone after it."""

    class Broken(torch.nn.Module):
        broken = False

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return value / 0 if self.broken else value

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Broken(), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scope.watch_nonfinite(model)
    for number, batch in enumerate(scope.steps(torch.ones(6, 2, 4))):
        Broken.broken = number >= 3
        model(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    marks = [record for record in records() if isinstance(record, MarkRecord) and record.mark == MarkKind.NONFINITE]
    assert [(mark.step, mark.text) for mark in marks] == [(4, "step 3: the output of 1 is not finite")]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_flags_on_a_device_are_read_when_they_are_done() -> None:
    """While the device is behind, nothing is read; the finding comes with the step in which it was."""
    cuda = FakeCuda()
    found: list[tuple[int, str]] = []
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Identity())
    steps = iter(range(10))
    watch = NonFiniteWatch(
        model,
        CudaClock(cuda, OnDevice),
        step=lambda: next(steps),
        report=lambda step, name: found.append((step, name)),
    )
    for value in (1.0, math.inf, 1.0, 1.0):
        model(torch.tensor([value]))
        cuda.work(1)
    assert found == []
    cuda.run(10)
    model(torch.tensor([1.0]))
    assert found == [(1, "0")]
    watch.close()


SEGMENTS = [
    {
        "total_size": 4 << 20,
        "blocks": [
            {"size": 1 << 20, "state": "active_allocated"},
            {"size": 3 << 20, "state": "inactive"},
        ],
    },
    {"total_size": 2 << 20, "blocks": [{"size": 2 << 20, "state": "inactive"}]},
]


class Allocator(FakeCuda):
    """A CUDA that can be looked into, and that tells its observers where memory runs out."""

    def __init__(self) -> None:
        super().__init__()
        self.observers: list[Callable[..., None]] = []
        self.looks = 0
        self.memory = SimpleNamespace(_snapshot=lambda: {"segments": SEGMENTS})

    def memory_snapshot(self) -> list[dict[str, Any]]:
        if self.capturing:
            raise AssertionError("looked during capture")
        self.looks += 1
        return SEGMENTS


def test_looks_are_rare_and_an_oom_leaves_a_snapshot(tmp_path: Path) -> None:
    """A look a minute however many steps; where memory runs out, a look and a file, told by the training thread."""
    cuda, now = Allocator(), [0]
    looks: list[MemoryRecord] = []
    kept: list[str] = []
    watch = AllocatorWatch(
        cuda,
        cuda.observers.append,
        snapshot_path=tmp_path / "oom.pickle",
        report=looks.append,
        kept=kept.append,
        monotonic_ns=lambda: now[0],
    )
    for step in range(100):
        watch.end_step(step)
    assert (cuda.looks, len(looks)) == (1, 1)
    record = looks[0]
    assert (record.allocated_bytes, record.reserved_bytes) == (1 << 20, 6 << 20)
    assert (record.split_bytes, record.largest_free_bytes) == (3 << 20, 3 << 20)
    assert (record.blocks[size_class(1 << 20)], sum(record.blocks)) == (1, 1)
    assert (record.free_blocks[size_class(2 << 20)], sum(record.free_blocks)) == (1, 2)
    now[0] = LOOK_PERIOD_NS
    watch.end_step(100)
    assert len(looks) == 2
    cuda.observers[0](0, 1 << 30, 0, 0)
    assert (len(looks), kept) == (2, [])
    watch.end_step(101)
    assert (len(looks), kept) == (3, [str(tmp_path / "oom.pickle")])
    assert pickle.loads((tmp_path / "oom.pickle").read_bytes()) == {"segments": SEGMENTS}
    watch.close()
    cuda.observers[0](0, 1 << 30, 0, 0)
    assert cuda.looks == 3


def test_an_oom_with_no_room_for_a_snapshot_raises_nothing(tmp_path: Path) -> None:
    """Nothing of ours comes out of the allocator's observer, whatever fails."""
    cuda = Allocator()
    AllocatorWatch(cuda, cuda.observers.append, snapshot_path=tmp_path / "no" / "where", report=print, kept=print)
    cuda.observers[0](0, 1, 0, 0)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (1, 0), (512, 0), (513, 1), (1024, 1), (1 << 20, 11), (1 << 36, 27), (1 << 50, 27)]
)
def test_sizes_fall_into_classes(size: int, expected: int) -> None:
    """Class i ends at 512 << i; the last one has no end."""
    assert size_class(size) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA L40S", 366e12),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_peaks_are_known_by_name(name: str, expected: float | None) -> None:
    """The longest entry of whole words counts; a GPU that is not in the table has no peak."""
    assert peak_flops(name) == expected
