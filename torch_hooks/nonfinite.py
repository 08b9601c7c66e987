"""The first module whose output was NaN or infinite. On request only: it adds a reduction to every module's output.

The flags stay on the device and are read a step later, when they are done, so nothing waits; the watch ends with the
first finding. In compiled code it sees nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from rankscope.device import DeviceClock
from rankscope.torch_hooks.signals import stage

_NONE = 2**30


class NonFiniteWatch:
    """Watches the outputs of a model's modules, in the order in which they are called.

    `step()` says which step is under way; `report(step, name)` hears in which step it first was, and of which module.
    """

    def __init__(
        self, model: Any, device: DeviceClock, *, step: Callable[[], int], report: Callable[[int, str], None]
    ) -> None:
        self._torch = importlib.import_module("torch")
        self._device = device
        self._now = step
        self._report = report
        self._step = 0
        self._names: list[str] = []
        self._first: Any = None
        #: (step, names of its calls, host buffer, event) of passes not yet looked at.
        self._pending: list[tuple[int, list[str], Any, Any]] = []
        self._handles = [model.register_forward_pre_hook(self._begin)]
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                self._handles.append(module.register_forward_hook(self._hook(name or type(module).__name__)))

    def close(self) -> None:
        """Stop watching."""
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, _module: Any, _arguments: Any) -> None:
        if self._first is not None and self._device.ready():
            self._pending.append((self._step, self._names, stage((self._first,)), self._device.record()))
        self._first, self._names, self._step = None, [], self._now()
        while self._pending and self._device.done(self._pending[0][3]):
            step, names, buffer, event = self._pending.pop(0)
            self._device.release(event)
            place = int(buffer[0])
            if place < len(names):
                self.close()
                self._pending.clear()
                self._report(step, names[place])
                return

    def _hook(self, name: str) -> Callable[[Any, Any, Any], None]:
        def look(_module: Any, _arguments: Any, output: Any) -> None:
            torch = self._torch
            if torch.compiler.is_compiling():
                return
            place = len(self._names)
            self._names.append(name)
            for tensor in _tensors(output):
                if tensor.is_floating_point():
                    with torch.no_grad():
                        bad = torch.where(torch.isfinite(tensor).all(), _NONE, place)
                        first = bad if self._first is None else torch.minimum(self._first, bad.to(self._first.device))
                    self._first = first

        return look


def _tensors(output: Any) -> Iterator[Any]:
    if hasattr(output, "is_floating_point"):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
