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

from rankscope.records import MISSING, MarkKind
from rankscope.torch_hooks.hot import Boundaries


def open_schedstat(proc: Path = Path("/proc")) -> int:
    """A descriptor of the calling thread's schedstat; -1 where the kernel has none."""
    path = proc / "self" / "task" / str(threading.get_native_id()) / "schedstat"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


class GcWatch:
    """Time in Python's garbage collector, which stops every thread: into `gc_ns` and `gc_count` of the step."""

    __slots__ = ("_began", "_clock", "_monotonic_ns")

    def __init__(self, clock: Boundaries, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._monotonic_ns = monotonic_ns
        self._began = 0

    def install(self) -> None:
        """Begin to listen."""
        gc.callbacks.append(self._collected)

    def remove(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)

    def _collected(self, moment: str, _info: dict[str, int]) -> None:
        if moment == "start":
            self._began = self._monotonic_ns()
        elif self._began:
            self._clock.gc_ns += self._monotonic_ns() - self._began
            self._clock.gc_count += 1


class CompileWatch:
    """Time in Dynamo's compilations, from its own callbacks, and why it compiled again.

    Into `compile_ns` and `recompiles` of the step: missing where Dynamo offers no callbacks. Installed once Dynamo is
    there, never importing it. `say` is told of each recompilation.
    """

    __slots__ = ("_began", "_clock", "_failed", "_handler", "_known", "_monotonic_ns", "_say")

    def __init__(
        self,
        clock: Boundaries,
        say: Callable[[MarkKind, str], None],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._clock = clock
        self._say = say
        self._monotonic_ns = monotonic_ns
        self._handler: Any = None
        self._failed = False
        self._began = 0
        self._known = 0

    def look(self) -> None:
        """Register with Dynamo once it is imported, again where `torch._dynamo.reset()` has cleared its callbacks."""
        handler = self._handler
        if self._failed or "torch._dynamo" not in sys.modules:
            return
        if handler is not None and self._start in handler.start_callbacks:
            return
        try:
            handler = sys.modules["torch._dynamo.callback"].callback_handler
            handler.register_start_callback(self._start)
            handler.register_end_callback(self._end)
            self._handler = handler
        except (KeyError, AttributeError):
            self._failed = True
            self._clock.compile_ns = self._clock.recompiles = MISSING

    def remove(self) -> None:
        """Unregister."""
        if self._handler is not None and self._start in self._handler.start_callbacks:
            self._handler.remove_start_callback(self._start)
            self._handler.remove_end_callback(self._end)

    def _start(self, *_arguments: Any) -> None:
        self._began = self._monotonic_ns()

    def _end(self, *_arguments: Any) -> None:
        if self._began:
            self._clock.compile_ns += self._monotonic_ns() - self._began
            self._began = 0

    def explain(self) -> None:
        """Count the compilations of this step that replaced another, and say which guard failed."""
        try:
            metrics = list(sys.modules["torch._dynamo.utils"]._compilation_metrics)
        except (KeyError, AttributeError):
            self._clock.recompiles = MISSING
            return
        for metric in metrics:
            number = getattr(metric, "start_time_us", None) or 0
            if number > self._known:
                self._known = number
                reason = getattr(metric, "recompile_reason", None)
                if reason:
                    self._clock.recompiles += 1
                    name = getattr(metric, "co_name", None) or "?"
                    self._say(MarkKind.RECOMPILE, f"{name}: {' '.join(str(reason).split())}")
