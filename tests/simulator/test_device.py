"""The asynchronous device behaves, and misbehaves, as CUDA does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from rankscope.simulator.device import LAUNCH_DEPTH, AsyncDevice, DeviceError

MS = 1_000_000


@dataclass
class Gpu:
    """A simulated GPU without a node."""

    uuid: str = "GPU-1"
    work_factor: float = 1.0
    busy_ns: int = 0
    collective_ns: int = 0
    spin_ns: int = 0
    waiting_since_monotonic_ns: int = 0
    fatal: bool = False
    step: int = 0
    processes: dict[int, int] = field(default_factory=dict)

    def set_process(self, pid: int, used_bytes: int) -> None:
        self.processes[pid] = used_bytes


@pytest.fixture
def device() -> AsyncDevice:
    """A device of its own."""
    return AsyncDevice(Gpu())


@contextmanager
def busy(device: AsyncDevice) -> Iterator[None]:
    """The stream is busy for as long as the context lasts, however long the host takes to launch the rest."""
    launched = threading.Event()
    device.compute.enqueue(lambda stream: stream.wait_until(time.monotonic_ns()) if launched.wait() else None)
    yield
    launched.set()


def test_work_takes_exactly_its_time_on_the_devices_clock(device: AsyncDevice) -> None:
    """Neighbouring events are apart by the kernels between them, to the nanosecond, however late the thread woke."""
    with busy(device):
        events = [device.record()]
        for _ in range(5):
            device.kernel(3 * MS)
            events.append(device.record())
    device.synchronize()
    assert [device.elapsed_ns(a, b) for a, b in pairwise(events)] == [3 * MS] * 5


def test_a_slow_gpu_stretches_kernels_only(device: AsyncDevice) -> None:
    """work_factor multiplies kernels, and the GPU's busy time says so."""
    device.gpu.work_factor = 1.25
    with busy(device):
        first = device.record()
        device.kernel(4 * MS)
        last = device.record()
    device.synchronize()
    assert device.elapsed_ns(first, last) == 5 * MS
    assert device.gpu.busy_ns == 5 * MS


def test_host_runs_ahead_until_launches_block(device: AsyncDevice) -> None:
    """Launches return at once up to the depth; recording and querying never wait; the next launch does."""
    gate = threading.Event()
    device.compute.enqueue(lambda _stream: gate.wait() and None)
    for _ in range(LAUNCH_DEPTH):
        device.kernel(MS)
    events = [device.record() for _ in range(10 * LAUNCH_DEPTH)]
    assert not any(device.query(event) for event in events)
    blocked = threading.Thread(target=device.kernel, args=(MS,), daemon=True)
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    gate.set()
    blocked.join(30)
    assert not blocked.is_alive()


def test_elapsed_before_completion_is_refused(device: AsyncDevice) -> None:
    """Asking for time between events that are not complete raises, as cudaEventElapsedTime does."""
    gate = threading.Event()
    device.compute.enqueue(lambda _stream: gate.wait() and None)
    first, second = device.record(), device.record()
    with pytest.raises(DeviceError, match="not complete"):
        device.elapsed_ns(first, second)
    gate.set()
    device.synchronize()
    assert device.elapsed_ns(first, second) >= 0


def test_capture_forbids_events(device: AsyncDevice) -> None:
    """Recording and querying during capture raise."""
    event = device.record()
    device.capturing = True
    with pytest.raises(DeviceError, match="capturing"):
        device.record()
    with pytest.raises(DeviceError, match="capturing"):
        device.query(event)


def test_communication_overlaps_and_is_joined(device: AsyncDevice) -> None:
    """A collective begins when the work before it is done, beside later kernels; the join waits for its end."""
    with busy(device):
        device.kernel(2 * MS)
        begin = device.record()
        device.collective(lambda: None, 50 * MS)
        device.kernel(10 * MS)
        own = device.record()
        device.join_communication()
        end = device.record()
    device.synchronize()
    assert device.elapsed_ns(begin, own) == 10 * MS
    assert device.elapsed_ns(own, end) >= 40 * MS
    assert device.gpu.collective_ns == 50 * MS


@pytest.mark.parametrize("how", ["fatal", "peer"])
def test_errors_are_sticky_and_late(device: AsyncDevice, how: str) -> None:
    """A failed GPU, or a peer gone from a collective, is met at a later call, and at every call after it."""

    def fail() -> None:
        raise RuntimeError("Connection closed by peer")

    if how == "peer":
        device.collective(fail, MS)
        device.join_communication()
    else:
        device.gpu.fatal = True
        device.kernel(MS)  # launching still works: the error is the device's
    with pytest.raises(DeviceError):
        device.synchronize()
    for _ in range(2):
        with pytest.raises(DeviceError):
            launch_many(device)


def launch_many(device: AsyncDevice) -> None:
    """More launches than may be ahead of the device."""
    for _ in range(2 * LAUNCH_DEPTH):
        device.kernel(MS)


def test_synchronisation_is_reported(device: AsyncDevice) -> None:
    """Listeners hear how long the host was blocked, until they are taken back."""
    waits: list[int] = []
    undo = device.watch_synchronize(waits.append)
    device.kernel(5 * MS)
    device.synchronize()
    undo()
    device.synchronize()
    assert len(waits) == 1
    assert waits[0] > 0
