"""Training signals: loss, gradient norm, samples, tokens and flops of a step, taken without waiting for the device.

A number is written at once. A tensor on the device is copied into page-locked memory behind an event on the compute
stream and written when the event is done, at a later call: one to two steps late, never waited for. Nothing of the
caller's is kept: the copy is made of the detached value, and the graph behind it is free to go.
"""

from __future__ import annotations

import importlib
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rankscope.device import DeviceClock
from rankscope.records import NonFinite, SignalRecord
from rankscope.ring import RingWriter

#: Values whose copies may be under way; a device further behind loses the oldest, counted.
MAX_PENDING = 32


class Signals:
    """Writes what the training loop says of its progress. Only the training thread may call."""

    def __init__(
        self, ring: RingWriter, device: DeviceClock, *, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._ring = ring
        self._device = device
        self._monotonic_ns = monotonic_ns
        self._pending: deque[tuple[int, int, Any, Any, dict[str, int | None]]] = deque()
        #: Signals given up: the device was too far behind, its stream under capture, or a count lay on it.
        self.dropped = 0

    def note(self, step: int, loss: Any, gradient_norm: Any, given: dict[str, Any]) -> None:
        """What `step` came to. `loss` and `gradient_norm` are numbers, tensors of one element, or None.

        Counts are whole numbers of the host; one that lies on the device is given up, since reading it would wait.
        """
        now = self._monotonic_ns()
        self.flush()
        counts = {name: self._count(value) for name, value in given.items()}
        if on_device(loss) or on_device(gradient_norm):
            if not self._device.ready() or len(self._pending) >= MAX_PENDING:
                self.dropped += 1
                return
            buffer = stage((loss, gradient_norm))
            self._pending.append((step, now, buffer, self._device.record(), counts))
        else:
            self._write(step, now, _number(loss), _number(gradient_norm), counts)

    def close(self, say: Callable[[str], None]) -> None:
        """Write what is there, and say what was given up."""
        self.flush()
        self.dropped += len(self._pending)
        if self.dropped:
            say(f"{self.dropped} training signals were given up: the device was behind, or a count lay on it")

    def _count(self, value: Any) -> int | None:
        if value is None:
            return None
        if on_device(value):
            self.dropped += 1
            return None
        return int(value)

    def flush(self) -> None:
        """Write what the device has come to by now."""
        while self._pending and self._device.done(self._pending[0][3]):
            step, now, buffer, event, counts = self._pending.popleft()
            self._device.release(event)
            loss, norm = (None if value == _ABSENT else value for value in buffer.tolist())
            self._write(step, now, loss, norm, counts)

    def _write(
        self, step: int, now: int, loss: float | None, norm: float | None, counts: dict[str, int | None]
    ) -> None:
        nonfinite = 0
        if loss is not None and not math.isfinite(loss):
            loss, nonfinite = None, nonfinite | NonFinite.LOSS
        if norm is not None and not math.isfinite(norm):
            norm, nonfinite = None, nonfinite | NonFinite.GRADIENT_NORM
        self._ring.append_record(SignalRecord(step, now, loss, norm, int(nonfinite), **counts))


#: Stands for "not said" in a staged buffer: no loss or norm is the smallest double.
_ABSENT = -1.7976931348623157e308


def on_device(value: Any) -> bool:
    """Whether reading this value would wait for a device."""
    return bool(getattr(value, "is_cuda", False)) or getattr(getattr(value, "device", None), "type", "cpu") not in (
        "cpu",
        None,
    )


def stage(values: tuple[Any, ...]) -> Any:
    """A host tensor of doubles into which the values are on their way, in the order of the current stream."""
    torch = importlib.import_module("torch")
    buffer = torch.full((len(values),), _ABSENT, dtype=torch.float64, pin_memory=torch.cuda.is_initialized())
    for place, value in enumerate(values):
        if value is not None:
            one = value.detach().reshape(1) if hasattr(value, "detach") else torch.tensor([float(value)])
            buffer[place : place + 1].copy_(one, non_blocking=True)
    return buffer


def _number(value: Any) -> float | None:
    return None if value is None else float(value.detach() if hasattr(value, "detach") else value)
