"""Real ways for a training process to lose time: computing, collecting garbage, writing slowly."""

from __future__ import annotations

import gc
import hashlib
import io
import time
from typing import Any

import torch

_BLOCK = bytes(1 << 15)


def burn_cpu(duration_ns: float) -> None:
    """Use this thread's CPU for that long, without holding the interpreter's lock (hashing releases it)."""
    end = time.thread_time_ns() + duration_ns
    while time.thread_time_ns() < end:
        hashlib.sha256(_BLOCK)


class Garbage:
    """A heap of live objects, so large that a full collection takes the time asked for."""

    def __init__(self) -> None:
        self._objects: list[list[object]] = []

    def collect(self, pause_ms: float) -> None:
        """One full collection of about `pause_ms`; the heap is built at the first call."""
        if not self._objects:
            self._grow(20_000)
            began = time.monotonic_ns()
            gc.collect()
            taken_ms = (time.monotonic_ns() - began) / 1e6
            self._grow(round(20_000 * max(0.0, pause_ms / max(taken_ms, 0.1) - 1)))
        gc.collect()

    def _grow(self, count: int) -> None:
        for _ in range(count):
            self._objects.append([self._objects, None])


class _SlowFile(io.BytesIO):
    """A file on a slow store: the first write takes its time."""

    def __init__(self, duration_ms: float) -> None:
        super().__init__()
        self._duration_ms = duration_ms

    def write(self, data: Any) -> int:
        time.sleep(self._duration_ms / 1e3)
        self._duration_ms = 0.0
        return super().write(data)


def slow_save(state: dict[str, Any], duration_ms: float) -> None:
    """Save a checkpoint to a store that takes `duration_ms`."""
    torch.save(state, _SlowFile(duration_ms))
