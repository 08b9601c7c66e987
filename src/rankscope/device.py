"""The narrow interface between the hooks and whatever runs the kernels.

Three implementations exist: CUDA events (torch_hooks), the simulator's asynchronous device, and the CPU, where host
time is device time. Another accelerator is added by naming a factory `module:function` in RANKSCOPE_DEVICE_CLOCK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

#: Environment variable that names a factory `module:function` returning a `DeviceClock` for this process.
DEVICE_CLOCK_VARIABLE = "RANKSCOPE_DEVICE_CLOCK"


class DeviceClock(Protocol):
    """Timestamps on the device's compute stream. Nothing here may block or synchronise."""

    #: "cuda", "async" (simulated) or "host".
    name: str

    def gpu_uuid(self) -> str | None:
        """UUID of this rank's GPU as NVML spells it ("GPU-..."), or None."""
        ...

    def ready(self) -> bool:
        """Whether recording is allowed now: the device is initialised and no graph capture is under way."""
        ...

    def record(self) -> Any:
        """Place an event on the current compute stream and return it."""
        ...

    def done(self, event: Any) -> bool:
        """Whether the device has passed the event. Never waits."""
        ...

    def elapsed_ns(self, first: Any, second: Any) -> int:
        """Device nanoseconds between two events that are done; raises where one is not."""
        ...

    def release(self, event: Any) -> None:
        """Give a finished event back to the pool."""
        ...

    def memory(self) -> tuple[int, int, int, int] | None:
        """(allocated, reserved, peak allocated bytes, allocation retries so far) of the caching allocator, or None."""
        ...

    def watch_waits(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        """Call `begins` before and `ends` after the compute stream is made to wait for another; returns the undo."""
        ...

    def watch_copies(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        """Call `begins` before and `ends` after a copy from the host to the device is issued; returns the undo."""
        ...

    def watch_synchronize(self, report: Callable[[int], None]) -> Callable[[], None]:
        """Call `report(nanoseconds the host was blocked)` after each host synchronisation; returns the undo."""
        ...
