"""What the training thread's process spent beside the phases: CPU, waiting for a core, GC, compilation."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankscope.records import MISSING


class ThreadUsage:
    """CPU time and run-queue wait of the calling thread since the last read."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        path = proc / "self" / "task" / str(threading.get_native_id()) / "schedstat"
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = -1
        self._cpu_ns = 0
        self._waited_ns = 0

    def read(self) -> tuple[int, int | None]:
        """(CPU ns, run-queue wait ns or None where the kernel does not say)."""
        cpu = time.thread_time_ns()
        spent, self._cpu_ns = cpu - self._cpu_ns, cpu
        if self._descriptor < 0:
            return spent, None
        # Second field of schedstat: time runnable but waiting, in ns (Documentation/scheduler/sched-stats).
        waited = int(os.pread(self._descriptor, 96, 0).split()[1])
        delta, self._waited_ns = waited - self._waited_ns, waited
        return spent, delta

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class GcWatch:
    """Time in Python's garbage collector, which stops every thread; accumulated, taken once a step."""

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._began = 0
        self._spent_ns = 0
        self._count = 0

    def install(self) -> None:
        """Begin to listen."""
        gc.callbacks.append(self._collected)

    def remove(self) -> None:
        """Stop listening."""
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)

    def _collected(self, moment: str, _info: dict[str, int]) -> None:
        if moment == "start":
            self._began = self._monotonic_ns()
        elif self._began:
            self._spent_ns += self._monotonic_ns() - self._began
            self._count += 1

    def take(self) -> tuple[int, int]:
        """(ns, collections) since the last call."""
        taken = self._spent_ns, self._count
        self._spent_ns = self._count = 0
        return taken


class CompileWatch:
    """Time in Dynamo's compilations, from its own callbacks; installed once Dynamo is there, never importing it."""

    def __init__(self, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._monotonic_ns = monotonic_ns
        self._handler: Any = None
        self._failed = False
        self._began = 0
        self._spent_ns = 0

    def install(self) -> None:
        """Register with Dynamo, again where `torch._dynamo.reset()` has cleared its callbacks."""
        handler = self._handler
        if self._failed or (handler is not None and self._start in handler.start_callbacks):
            return
        try:
            handler = sys.modules["torch._dynamo.callback"].callback_handler
            handler.register_start_callback(self._start)
            handler.register_end_callback(self._end)
            self._handler = handler
        except (KeyError, AttributeError):
            self._failed = True

    def remove(self) -> None:
        """Unregister."""
        if self._handler is not None and self._start in self._handler.start_callbacks:
            self._handler.remove_start_callback(self._start)
            self._handler.remove_end_callback(self._end)

    def _start(self, *_arguments: Any) -> None:
        self._began = self._monotonic_ns()

    def _end(self, *_arguments: Any) -> None:
        if self._began:
            self._spent_ns += self._monotonic_ns() - self._began
            self._began = 0

    def take(self) -> int:
        """Nanoseconds since the last call; missing where Dynamo offers no callbacks."""
        taken, self._spent_ns = self._spent_ns, 0
        return MISSING if self._failed else taken
