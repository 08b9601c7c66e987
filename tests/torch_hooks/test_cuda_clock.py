"""The CUDA clock against a fake that enforces CUDA's rules, and the proof that the fake catches each violation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.torch_hooks.fake_cuda import FakeCuda, FakeTensor, RuleBroken
from tests.vocabulary.test_ring import IDENTITY

from rankscope.clock import ClockAnchor
from rankscope.records import DeviceRecord, GroupKind, GroupRecord, Phase, StepRecord
from rankscope.ring import RingReader, RingWriter
from rankscope.torch_hooks.clocks import CudaClock
from rankscope.torch_hooks.groups import make_state
from rankscope.torch_hooks.step_clock import StepClock


class Host:
    """A host clock that a test moves."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def run_loop(
    tmp_path: Path, cuda: FakeCuda, clock: CudaClock, *, steps: int = 6, host_ms: float = 1.0, slow: float = 1.0
) -> tuple[list[DeviceRecord], list[StepRecord], list[GroupRecord]]:
    """A loop whose host launches a phase in `host_ms` and whose device needs 10, 20 and 5 ms for the phases."""
    host = Host()
    ring = RingWriter(tmp_path / "a.ring", IDENTITY, ClockAnchor(0, 0))
    watch = StepClock(ring, clock, world_size=4, monotonic_ns=host)
    watch.group_states = [make_state("default", GroupKind.DATA, range(4))]
    plan = (
        (Phase.FORWARD, 10.0),
        (Phase.BACKWARD, 20.0 * slow),
        (Phase.COLLECTIVE_WAIT, 3.0),
        (Phase.OPTIMIZER, 5.0),
        (Phase.OTHER, 0.0),
    )
    watch.switch(Phase.DATA_WAIT)
    for step in range(steps):
        cuda.capturing = step == 2
        for phase, device_ms in plan:
            watch.switch(phase)
            cuda.work(device_ms)
            host.now_ns += round(host_ms * 1e6)
            cuda.run(host_ms)
        watch.backward_count = 1
        cuda.capturing = False
        watch.end_step(Phase.DATA_WAIT)
        cuda.run(30.0)
        host.now_ns += 30_000_000
    cuda.run(1e9)
    watch.end_step(Phase.DATA_WAIT)
    records = RingReader(ring.path).read().records
    return (
        [record for record in records if isinstance(record, DeviceRecord)],
        [record for record in records if isinstance(record, StepRecord)],
        [record for record in records if isinstance(record, GroupRecord)],
    )


def test_device_phases_are_read_when_done(tmp_path: Path) -> None:
    """Phases come out on the device's clock, whole, without a rule broken, and events are pooled."""
    cuda = FakeCuda()
    device, steps, groups = run_loop(tmp_path, cuda, CudaClock(cuda, FakeTensor), steps=20)
    assert len(steps) == 21
    whole = [record for record in device if record.step != 20]
    assert [record.step for record in device[:3]] == [1, 3, 4]  # 2 was captured
    assert len(whole) >= 15
    for record in whole:
        assert record.forward_ns == 10_000_000
        assert record.backward_own_ns == 20_000_000
        assert record.backward_wait_ns == 3_000_000
        assert record.optimizer_ns == 5_000_000
        assert record.step_ns == 38_000_000
    assert {group.wait_ns for group in groups if group.step in {r.step for r in whole}} == {3_000_000}
    assert steps[0].allocated_bytes == 100
    assert cuda.events_made < 20 * 6


def test_lead_tells_a_starved_device(tmp_path: Path) -> None:
    """Far behind the host the device leads by tens of ms; where the host is slower than the device, by none."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fast, slow = FakeCuda(), FakeCuda()
    ahead, _, _ = run_loop(tmp_path / "a", fast, CudaClock(fast, FakeTensor), steps=30, host_ms=1.0)
    starved, _, _ = run_loop(tmp_path / "b", slow, CudaClock(slow, FakeTensor), steps=30, host_ms=60.0)
    assert (ahead[-2].lead_end_ns or 0) > 20_000_000
    assert (starved[-2].lead_end_ns or 0) < 1_000_000


def test_synchronisation_by_the_user_is_timed(tmp_path: Path) -> None:
    """`.item()` and its like report the time they blocked; the undo restores every method."""
    cuda = FakeCuda()
    waits: list[int] = []
    cuda.synchronize = lambda device=None: None  # type: ignore[method-assign, assignment]

    class Tensor(FakeTensor):
        pass

    before = dict(vars(Tensor))
    undo = CudaClock(cuda, Tensor).watch_synchronize(waits.append)
    Tensor().item()
    float(Tensor())  # type: ignore[arg-type]
    cuda.synchronize()
    assert len(waits) == 3
    on_host = Tensor()
    on_host.is_cuda = False  # type: ignore[misc]
    on_host.item()
    assert len(waits) == 3
    undo()
    assert dict(vars(Tensor)) == before


class _Waits(CudaClock):
    def record(self) -> Any:
        event = super().record()
        event.synchronize()
        return event


class _ReadsEarly(CudaClock):
    def done(self, event: Any) -> bool:
        return True


class _RecordsInCapture(CudaClock):
    def ready(self) -> bool:
        return True


class _SynchronizesDevice(CudaClock):
    def done(self, event: Any) -> bool:
        self._cuda.synchronize()
        return super().done(event)


@pytest.mark.parametrize("mutation", [_Waits, _ReadsEarly, _RecordsInCapture, _SynchronizesDevice])
def test_each_violation_is_caught(tmp_path: Path, mutation: Callable[[Any, Any], CudaClock]) -> None:
    """A clock that waits, reads early, records during capture or synchronises does not pass the tests above."""
    cuda = FakeCuda()
    with pytest.raises(RuleBroken):
        run_loop(tmp_path, cuda, mutation(cuda, FakeTensor))
