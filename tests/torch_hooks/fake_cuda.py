"""A stand-in for torch.cuda that enforces CUDA's rules: it raises where the device would be stalled or would refuse.

Device time is a number that a test moves; events complete when it has passed them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class RuleBroken(AssertionError):
    """Something the hooks must never do to a device."""


class FakeCuda:
    """torch.cuda with one stream. `work(ms)` enqueues device time; `run(ms)` lets the device get on."""

    def __init__(self) -> None:
        self.enqueued_ms = 0.0
        self.passed_ms = 0.0
        self.capturing = False
        self.initialized = True
        self.events_made = 0
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.timing = enable_timing
                self.at_ms: float | None = None
                cuda.events_made += 1

            def record(self, stream: Any = None) -> None:
                if cuda.capturing:
                    raise RuleBroken("recorded during capture")
                self.at_ms = cuda.enqueued_ms

            def query(self) -> bool:
                if cuda.capturing:
                    raise RuleBroken("queried during capture")
                return self.at_ms is not None and self.at_ms <= cuda.passed_ms

            def elapsed_time(self, other: Any) -> float:
                if not (self.timing and self.query() and other.query()):
                    raise RuleBroken("elapsed_time before completion")
                return float(other.at_ms - self.at_ms)  # type: ignore[operator]

            def synchronize(self) -> None:
                raise RuleBroken("waited for an event")

        class Stream:
            """One of the device's queues; only the current one's work is counted."""

            def __init__(self, number: int = 0) -> None:
                self.number = number

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Stream) and other.number == self.number

            def __hash__(self) -> int:
                return self.number

            def wait_event(self, event: Any) -> None:
                if self == cuda.current:
                    cuda.work(event.wait_ms)

            def wait_stream(self, other: Any) -> None:
                if self == cuda.current:
                    cuda.work(other.busy_ms)

            def synchronize(self) -> None:
                raise RuleBroken("synchronised a stream")

            def query(self) -> bool:
                raise RuleBroken("asked a stream")

        self.Event, self.Stream = Event, Stream
        self.current = Stream(0)

    def work(self, ms: float) -> None:
        """Launch `ms` of device work."""
        self.enqueued_ms += ms

    def run(self, ms: float) -> None:
        """Let the device work off `ms`."""
        self.passed_ms = min(self.enqueued_ms, self.passed_ms + ms)

    def is_initialized(self) -> bool:
        return self.initialized

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_stream(self, _device: Any = None) -> Any:
        return self.current

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, _device: int) -> Any:
        return SimpleNamespace(uuid="11111111-2222-3333-4444-555555555555")

    def memory_stats_as_nested_dict(self) -> dict[str, Any]:
        amount = {"current": 100, "peak": 150}
        return {"allocated_bytes": {"all": amount}, "reserved_bytes": {"all": {"current": 200}}, "num_alloc_retries": 1}

    def synchronize(self, _device: Any = None) -> None:
        raise RuleBroken("synchronised the device")


class FakeTensor:
    """A tensor on the device, or on the host: reading the value of one on the device would wait."""

    def __init__(
        self, *, is_cuda: bool = True, pinned: bool = False, cuda: FakeCuda | None = None, copy_ms: float = 0.0
    ) -> None:
        self.is_cuda, self._pinned = is_cuda, pinned
        self._cuda, self._copy_ms = cuda, copy_ms

    def to(self, target: Any = None, *, device: Any = None, non_blocking: bool = False) -> FakeTensor:
        target = device if target is None else target
        if self._pinned and not non_blocking:
            raise RuleBroken("a copy from pinned memory was made to wait")
        if target == "fail":
            raise ValueError("no such device")
        if str(target).startswith("cuda") and self._cuda is not None:
            self._cuda.work(self._copy_ms)
        return FakeTensor(is_cuda=self.is_cuda or str(target).startswith("cuda"))

    def cuda(self, device: Any = None, non_blocking: bool = False) -> FakeTensor:
        return self.to("cuda", non_blocking=non_blocking)

    def item(self) -> float:
        return 1.0

    tolist = cpu = __bool__ = __float__ = __int__ = item
