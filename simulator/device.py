"""An asynchronous device: the host enqueues and runs ahead, a thread a stream works the queue in order.

It behaves, and misbehaves, as CUDA does: events complete when the stream reaches them, `query` never waits,
`elapsed_ns` refuses events that are not complete, `synchronize` blocks the host, nothing may be recorded during a
capture, and an error is sticky: it comes up at a later call, far from its cause. Kernels take time by sleeping, so no
core is used; the device keeps a clock of its own, so that a late wake-up of its thread does not lengthen its work.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from rankscope.errors import SimulatorError
from rankscope.simulator.state import NodeState

#: Environment variable with the path of the simulated node's state.
STATE_VARIABLE = "RANKSCOPE_SIM_NVML_STATE"
#: Kernels the host may run ahead of the device before a launch blocks: a little more than a step of the simulated
#: model. CUDA allows about 1,024 launches, and a real step has as many.
LAUNCH_DEPTH = 12


class SimulatedGpu(Protocol):
    """What the device reads from and reports to its simulated GPU (state.NodeState.gpus[i])."""

    uuid: str
    work_factor: float
    busy_ns: int
    collective_ns: int
    spin_ns: int
    waiting_since_monotonic_ns: int
    fatal: bool
    step: int

    def set_process(self, pid: int, used_bytes: int) -> None:
        """Have NVML show a process on this GPU."""
        ...


class DeviceError(RuntimeError):
    """The device failed, as CUDA says it: at some later call, and for good."""


class DeviceEvent:
    """A point on a stream. Complete once the stream has passed it."""

    __slots__ = ("complete", "time_ns")

    def __init__(self) -> None:
        self.complete = threading.Event()
        self.time_ns = 0


class Stream:
    """Work in order, on a thread of its own, with a clock of its own."""

    def __init__(self, name: str, depth: int) -> None:
        self._queue: queue.SimpleQueue[Callable[[Stream], None] | None] = queue.SimpleQueue()
        self._launches = threading.Semaphore(depth)
        self.now_ns = time.monotonic_ns()
        self.error: str | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def launch(self, kernel: Callable[[Stream], None]) -> None:
        """Put a kernel on the stream; blocks the host while too many are ahead of the device."""
        while not self._launches.acquire(timeout=0.2):
            if self.error is not None:
                raise DeviceError(self.error)

        def run(stream: Stream) -> None:
            try:
                kernel(stream)
            finally:
                self._launches.release()

        self.enqueue(run)

    def enqueue(self, item: Callable[[Stream], None]) -> None:
        """Put an item on the stream, without waiting."""
        if self.error is not None:
            raise DeviceError(self.error)
        enqueued = time.monotonic_ns()

        def timed(stream: Stream) -> None:
            # An item cannot begin before it was launched, nor before the one ahead of it ended.
            stream.now_ns = max(stream.now_ns, enqueued)
            item(stream)

        self._queue.put(timed)

    def wait_until(self, time_ns: int) -> None:
        """The stream is busy until then on its own clock."""
        self.now_ns = time_ns
        remaining = time_ns - time.monotonic_ns()
        if remaining > 0:
            time.sleep(remaining / 1e9)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error is None:
                try:
                    item(self)
                except Exception as error:
                    self.error = str(error)

    def stop(self) -> None:
        """End the thread once the queue is worked off, unless it hangs."""
        self._queue.put(None)
        self._thread.join(timeout=1.0)


class AsyncDevice:
    """One GPU of one rank: a compute stream and a communication stream."""

    def __init__(self, gpu: SimulatedGpu, *, depth: int = LAUNCH_DEPTH) -> None:
        self.gpu = gpu
        self.compute = Stream("device-compute", depth)
        self.communication = Stream("device-communication", depth)
        self.capturing = False
        self._listeners: list[Callable[[int], None]] = []
        self._wait_listeners: list[tuple[Callable[[], None], Callable[[], None]]] = []

    def kernel(self, duration_ns: int) -> None:
        """Launch a compute kernel that takes `duration_ns` on a healthy GPU."""

        def run(stream: Stream) -> None:
            self._check()
            began = stream.now_ns
            taken = round(duration_ns * self.gpu.work_factor)
            stream.wait_until(began + taken)
            self.gpu.busy_ns += taken

        self.compute.launch(run)

    def collective(self, operation: Callable[[], None], transfer_ns: int) -> None:
        """Launch a collective: it waits for its peers in `operation`, then moves data for `transfer_ns`."""
        ready = self.record(self.compute)

        def run(stream: Stream) -> None:
            ready.complete.wait()
            self._check()
            began = time.monotonic_ns()
            self.gpu.waiting_since_monotonic_ns = began  # a wait that never ends still shows as spinning
            try:
                operation()
            finally:
                self.gpu.waiting_since_monotonic_ns = 0
            arrived = time.monotonic_ns()
            self.gpu.spin_ns += arrived - began
            stream.wait_until(max(stream.now_ns, ready.time_ns, arrived) + transfer_ns)
            self.gpu.collective_ns += transfer_ns

        self.communication.enqueue(run)

    def join_communication(self) -> None:
        """Make the compute stream wait for all communication launched so far, as DDP's stream wait does."""
        for begins, _ in self._wait_listeners:
            begins()
        launched = self.record(self.communication)

        def wait(stream: Stream) -> None:
            while not launched.complete.wait(0.5):
                if self.communication.error is not None:
                    raise DeviceError(self.communication.error)
            stream.now_ns = max(stream.now_ns, launched.time_ns)

        self.compute.enqueue(wait)
        for _, ends in self._wait_listeners:
            ends()

    def watch_waits(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        """Call both around each time the compute stream is made to wait; returns the undo."""
        listener = (begins, ends)
        self._wait_listeners.append(listener)
        return lambda: self._wait_listeners.remove(listener)

    def record(self, stream: Stream | None = None) -> DeviceEvent:
        """Record an event on a stream (the compute stream by default)."""
        if self.capturing:
            raise DeviceError("operation not permitted when stream is capturing")
        event = DeviceEvent()

        def reach(stream: Stream) -> None:
            event.time_ns = stream.now_ns
            event.complete.set()

        (stream or self.compute).enqueue(reach)
        return event

    def query(self, event: DeviceEvent) -> bool:
        """Whether the event is complete; never waits."""
        if self.capturing:
            raise DeviceError("operation not permitted when stream is capturing")
        return event.complete.is_set()

    def elapsed_ns(self, first: DeviceEvent, second: DeviceEvent) -> int:
        """Device time between two complete events."""
        if not (first.complete.is_set() and second.complete.is_set()):
            raise DeviceError("elapsed time asked of an event that is not complete")
        return second.time_ns - first.time_ns

    def synchronize(self) -> None:
        """Block the host until the compute stream has worked off what was launched."""
        began = time.monotonic_ns()
        event = self.record()
        while not event.complete.wait(0.2):
            for stream in (self.compute, self.communication):
                if stream.error is not None:
                    raise DeviceError(stream.error)
        for report in self._listeners:
            report(time.monotonic_ns() - began)

    def watch_synchronize(self, report: Callable[[int], None]) -> Callable[[], None]:
        """Tell `report` how long each synchronize() blocked; returns the undo."""
        self._listeners.append(report)
        return lambda: self._listeners.remove(report)

    def _check(self) -> None:
        if self.gpu.fatal:
            raise DeviceError("CUDA error: unspecified launch failure")

    def stop(self) -> None:
        """End the threads."""
        self.compute.stop()
        self.communication.stop()


class AsyncDeviceClock:
    """The asynchronous device as the hooks see it."""

    name = "async"

    def __init__(self, device: AsyncDevice) -> None:
        self._device = device

    def gpu_uuid(self) -> str | None:
        return self._device.gpu.uuid

    def ready(self) -> bool:
        return not self._device.capturing

    def record(self) -> DeviceEvent:
        return self._device.record()

    def done(self, event: DeviceEvent) -> bool:
        return self._device.query(event)

    def elapsed_ns(self, first: DeviceEvent, second: DeviceEvent) -> int:
        return self._device.elapsed_ns(first, second)

    def release(self, event: DeviceEvent) -> None:
        """Events are not pooled here."""

    def memory(self) -> tuple[int, int, int, int] | None:
        return None

    def watch_synchronize(self, report: Callable[[int], None]) -> Callable[[], None]:
        return self._device.watch_synchronize(report)

    def watch_waits(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        return self._device.watch_waits(begins, ends)

    def watch_copies(self, *_begins_ends: Callable[[], None]) -> Callable[[], None]:
        """Batches are not copied here."""
        return lambda: None


_current: AsyncDevice | None = None


def current_device() -> AsyncDevice:
    """This process's device, as a process has one current CUDA device: made at the first call, for its local rank."""
    global _current
    if _current is None:
        path = os.environ.get(STATE_VARIABLE)
        if not path:
            raise SimulatorError("no simulated node", where=STATE_VARIABLE, todo="start the rank by `rankscope demo`")
        _current = AsyncDevice(_gpu(NodeState.open(path), int(os.environ.get("LOCAL_RANK", "0"))))
    return _current


def _gpu(state: NodeState, index: int) -> Any:
    return state.gpus[index]


def device_clock() -> AsyncDeviceClock:
    """Factory for RANKSCOPE_DEVICE_CLOCK."""
    return AsyncDeviceClock(current_device())
