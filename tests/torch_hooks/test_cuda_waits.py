"""Waits of the compute stream and copies to the device, on a fake that raises where the device would be stalled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.torch_hooks.fake_cuda import FakeCuda, FakeTensor, RuleBroken
from tests.torch_hooks.test_cuda_clock import Host
from tests.vocabulary.test_ring import IDENTITY

from rankscope.clock import ClockAnchor
from rankscope.records import DeviceRecord, GroupKind, GroupRecord, Phase, StepRecord
from rankscope.ring import RingReader, RingWriter
from rankscope.torch_hooks.clocks import CudaClock
from rankscope.torch_hooks.collectives import CollectiveWatch
from rankscope.torch_hooks.groups import make_state
from rankscope.torch_hooks.step_clock import StepClock


@pytest.fixture
def tensor_type() -> type[FakeTensor]:
    """A tensor class of this test's own, since watching replaces its methods."""
    return type("Tensor", (FakeTensor,), {})


def seen_around(watch: Callable[[Callable[[], None], Callable[[], None]], Callable[[], None]]) -> tuple[Any, list[str]]:
    """(undo, what was called) of a watch."""
    calls: list[str] = []
    return watch(lambda: calls.append("begin"), lambda: calls.append("end")), calls


@pytest.mark.parametrize("name", ["wait_event", "wait_stream"])
def test_waits_of_the_current_stream_alone_are_seen(tensor_type: type[FakeTensor], name: str) -> None:
    """The compute stream's waits are between the two calls; another stream's are its own business."""
    cuda = FakeCuda()
    undo, calls = seen_around(CudaClock(cuda, tensor_type).watch_waits)
    what = SimpleNamespace(wait_ms=7.0, busy_ms=7.0)
    getattr(cuda.Stream(0), name)(what)
    assert (calls, cuda.enqueued_ms) == (["begin", "end"], 7.0)
    getattr(cuda.Stream(1), name)(what)
    assert (calls, cuda.enqueued_ms) == (["begin", "end"], 7.0)
    cuda.current = cuda.Stream(1)
    getattr(cuda.Stream(1), name)(what)
    assert (calls, cuda.enqueued_ms) == (["begin", "end"] * 2, 14.0)
    undo()
    getattr(cuda.Stream(1), name)(what)
    assert len(calls) == 4
    assert getattr(cuda.Stream, name).__qualname__.startswith("FakeCuda")


@pytest.mark.parametrize(
    ("copies", "arguments", "keywords"),
    [
        (True, ("cuda",), {}),
        (True, ("cuda:1",), {"non_blocking": True}),
        (True, (SimpleNamespace(type="cuda"),), {}),
        (True, (0,), {}),
        (True, (), {"device": "cuda"}),
        (False, ("cpu",), {}),
        (False, (SimpleNamespace(type="cpu"),), {}),
        (False, (), {"device": "cpu"}),
        (False, (float,), {}),
    ],
)
def test_copies_from_host_to_device_alone_are_seen(
    tensor_type: Any, copies: bool, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    """By the device that is named; what is on the device already, or goes elsewhere, is nobody's copy."""
    cuda = FakeCuda()
    undo, calls = seen_around(CudaClock(cuda, tensor_type).watch_copies)
    tensor_type(is_cuda=False, cuda=cuda).to(*arguments, **keywords)
    assert calls == ["begin", "end"] * copies
    calls.clear()
    tensor_type(is_cuda=True).to(*arguments, **keywords)
    assert calls == []
    undo()


def test_cuda_copies_keep_their_words_and_nothing_is_held(tensor_type: Any) -> None:
    """`.cuda(non_blocking=True)` stays so - the fake raises where it does not - and no tensor outlives its user."""
    undo, calls = seen_around(CudaClock(FakeCuda(), tensor_type).watch_copies)
    tensor = tensor_type(is_cuda=False, pinned=True)
    moved = tensor.cuda(non_blocking=True)
    assert moved.is_cuda
    # Both `.cuda` and the `.to` inside it: nested begins are one copy to the step clock.
    assert calls[0] == "begin"
    assert calls[-1] == "end"
    gone = weakref.ref(tensor)
    del tensor
    gc.collect()
    assert gone() is None
    with pytest.raises(RuleBroken):
        tensor_type(is_cuda=False, pinned=True).cuda()
    undo()


def test_the_call_s_own_error_passes_and_ends_the_watch(tensor_type: Any) -> None:
    """What the watched call raises reaches the user, and the phase is closed all the same."""
    undo, calls = seen_around(CudaClock(FakeCuda(), tensor_type).watch_copies)
    with pytest.raises(ValueError, match="no such device"):
        tensor_type(is_cuda=False, cuda=FakeCuda()).to("fail")
    assert calls == []
    original = tensor_type.to

    def fails(*_arguments: Any, **_keywords: Any) -> Any:
        raise RuntimeError("out of memory")

    undo()
    tensor_type.to = fails
    undo, calls = seen_around(CudaClock(FakeCuda(), tensor_type).watch_copies)
    with pytest.raises(RuntimeError, match="out of memory"):
        tensor_type(is_cuda=False).to("cuda")
    assert calls == ["begin", "end"]
    undo()
    assert tensor_type.to is fails
    tensor_type.to = original


def test_what_fails_in_the_hooks_never_reaches_training(tensor_type: Any) -> None:
    """Callbacks that raise, and tensors that are none: the copy is made, once."""
    cuda = FakeCuda()

    def broken() -> None:
        raise ZeroDivisionError

    clock = CudaClock(cuda, tensor_type)
    undos = [clock.watch_copies(broken, broken), clock.watch_waits(lambda: None, broken)]
    assert tensor_type(is_cuda=False, cuda=cuda, copy_ms=2.0).to("cuda").is_cuda
    cuda.Stream(0).wait_event(SimpleNamespace(wait_ms=3.0))
    assert cuda.enqueued_ms == 5.0
    odd = SimpleNamespace()
    odd.to = tensor_type.to.__get__(odd)
    with pytest.raises(AttributeError):
        odd.to("cuda")
    for undo in undos:
        undo()


def test_a_later_wrapper_of_somebody_else_stays(tensor_type: Any) -> None:
    """Whoever wrapped ours since keeps his; ours passes through afterwards."""
    cuda = FakeCuda()
    undo, calls = seen_around(CudaClock(cuda, tensor_type).watch_waits)
    ours = cuda.Stream.wait_event
    theirs = lambda stream, event: ours(stream, event)  # noqa: E731 - somebody else's
    cuda.Stream.wait_event = theirs
    undo()
    assert cuda.Stream.wait_event is theirs
    cuda.Stream(0).wait_event(SimpleNamespace(wait_ms=1.0))
    assert cuda.enqueued_ms == 1.0
    del calls[:]


def test_waits_and_copies_come_back_as_parts_of_the_step(tmp_path: Path, tensor_type: Any) -> None:
    """Through step clock and timeline: waits in forward are the group's and no own time, copies are H2D."""
    cuda, host = FakeCuda(), Host()
    clock = CudaClock(cuda, tensor_type)
    ring = RingWriter(tmp_path / "a.ring", IDENTITY, ClockAnchor(0, 0))
    step_clock = StepClock(ring, clock, world_size=4, monotonic_ns=host)
    group = make_state("mesh_fsdp", GroupKind.SHARD, range(4))
    collectives = CollectiveWatch(step_clock)
    collectives.watch(group)
    undo = clock.watch_waits(collectives.stream_waits, collectives.stream_waited)
    step_clock.switch(Phase.DATA_WAIT)
    for _ in range(40):
        step_clock.switch(Phase.FORWARD)
        step_clock.watch_copies()
        tensor_type(is_cuda=False, cuda=cuda, copy_ms=2.0).to("cuda")
        cuda.work(10.0)
        group.count += 1
        cuda.current.wait_event(SimpleNamespace(wait_ms=6.0))
        cuda.work(10.0)
        step_clock.unwatch_copies()
        step_clock.switch(Phase.BACKWARD)
        cuda.work(20.0)
        cuda.current.wait_stream(SimpleNamespace(busy_ms=4.0))
        step_clock.switch(Phase.OPTIMIZER)
        cuda.work(5.0)
        host.now_ns += 10_000_000
        step_clock.end_step(Phase.DATA_WAIT)
        cuda.run(57.0)
        host.now_ns += 57_000_000
    undo()
    step_clock.close()
    records = RingReader(ring.path).read().records
    device = [record for record in records if isinstance(record, DeviceRecord)]
    assert len(device) > 30
    for record in device:
        assert record.inner_wait_ns == 10_000_000
        assert (record.backward_own_ns, record.optimizer_ns) == (20_000_000, 5_000_000)
        # Copies are looked at in one step of 16; in the others they are a part of forward.
        assert record.forward_ns == 22_000_000
        assert record.h2d_ns in (0, 2_000_000)
        assert record.contaminated == 0
    assert sum(record.h2d_ns == 2_000_000 for record in device) in (2, 3)
    waits = {record.wait_ns for record in records if isinstance(record, GroupRecord)}
    assert waits == {10_000_000}
    assert any(isinstance(record, StepRecord) for record in records)
    assert tensor_type.to is FakeTensor.to
