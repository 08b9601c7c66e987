"""Real process groups under watch: what is counted, what DDP's reducer sets off, and what an error of ours costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.torch_hooks.both_paths import new_ring
from torch.nn.parallel import DistributedDataParallel

from rankscope.records import MarkKind, MarkRecord
from rankscope.ring import RingReader, RingWriter
from rankscope.torch_hooks.clocks import HostClock
from rankscope.torch_hooks.collectives import CollectiveWatch
from rankscope.torch_hooks.step_clock import StepClock


@pytest.fixture
def ring(tmp_path: Path) -> RingWriter:
    """Where the rank writes."""
    return new_ring(tmp_path, 64)


@pytest.fixture
def watch(tmp_path: Path, ring: RingWriter) -> Iterator[CollectiveWatch]:
    """A job of one rank over gloo, watched."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    clock = StepClock(ring, HostClock(), world_size=2)
    watch = CollectiveWatch(clock)
    try:
        yield watch
    finally:
        watch.remove()
        clock.close()
        dist.destroy_process_group()


def test_operations_and_waits_are_the_group_s(watch: CollectiveWatch) -> None:
    """Each is counted once, waited for or not, for its own group; and torch is as it was afterwards."""
    before = [dist.ProcessGroup.allreduce, dist.Work.wait, dist.Reducer.prepare_for_backward]
    assert watch.install() == []
    other = dist.new_group([0], group_desc="mesh_tp")
    for _ in range(3):
        dist.all_reduce(torch.ones(2))
    work = dist.all_reduce(torch.ones(2), group=other, async_op=True)
    assert watch.clock.group_states is not None
    counts = {state.name: state.count for state in watch.clock.group_states}
    assert counts == {b"default": 3, b"mesh_tp": 1}
    assert len(watch.works) == 1
    work.wait()
    assert (len(watch.works), watch.clock.issued) == (0, 4)
    assert all(state.wait_ns > 0 for state in watch.clock.group_states)
    watch.remove()
    assert [dist.ProcessGroup.allreduce, dist.Work.wait, dist.Reducer.prepare_for_backward] == before


def test_a_reducer_is_told_of_once(watch: CollectiveWatch) -> None:
    """Collectives from Python say nothing; DDP's first forward does, and its method is torch's own again at once."""
    told: list[str] = []
    original = dist.Reducer.prepare_for_backward
    watch.on_reducer = lambda: told.append("reducer")
    watch.install()
    dist.all_reduce(torch.ones(2))
    assert (told, dist.Reducer.prepare_for_backward is original) == ([], False)
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
    assert (told, dist.Reducer.prepare_for_backward) == (["reducer"], original)


def test_an_error_of_ours_is_said_and_the_operation_goes_on(watch: CollectiveWatch, ring: RingWriter) -> None:
    """Counting ends for good with a mark; the operation has done its work, and so do those after it."""
    watch.install()
    watch.states.clear()
    watch.meet = lambda group, name: 1 // 0  # type: ignore[assignment, method-assign]
    for _ in range(2):
        value = torch.full((2,), 3.0)
        dist.all_reduce(value)
        assert value.tolist() == [3.0, 3.0]
    assert (watch.default, watch.clock.group_states) == (None, None)
    marks = [record for record in RingReader(ring.path).read().records if isinstance(record, MarkRecord)]
    assert [(mark.mark, mark.text) for mark in marks] == [
        (MarkKind.DEGRADED, "collectives: ZeroDivisionError: integer division or modulo by zero")
    ]


def test_what_raises_about_a_reducer_does_not_reach_training(watch: CollectiveWatch) -> None:
    """DDP goes on, and counting ends."""

    def broken() -> None:
        raise LookupError("no loop")

    watch.on_reducer = broken
    watch.install()
    DistributedDataParallel(torch.nn.Linear(2, 2))(torch.ones(1, 2)).sum().backward()
    assert watch.default is None
