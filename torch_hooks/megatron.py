"""Megatron-Core's own timers as phases: `timers = watch_timers(timers)`, and `config.timers = timers`.

Megatron calls the autograd engine directly and pipelines microbatches, so the choke points in torch see little of its
loop. Its code starts and stops named timers at every phase, whatever their log level; those calls are passed on, and
mark the phases. Nothing here starts a timer or waits for one. Not yet run on a GPU. Names: megatron/core/timers.py,
megatron/core/pipeline_parallel and megatron/training.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from rankscope.torch_hooks.attachment import attach
from rankscope.torch_hooks.scope import Scope

#: Timer -> phase of the step. Timers that hold others ("forward-backward", "interval-time") are left out.
PHASES = {
    "batch-generator": "data",
    "forward-compute": "forward",
    "backward-compute": "backward",
    "forward-recv": "bubble",
    "forward-send": "bubble",
    "backward-recv": "bubble",
    "backward-send": "bubble",
    "forward-send-backward-recv": "bubble",
    "backward-send-forward-recv": "bubble",
    "forward-send-forward-recv": "bubble",
    "backward-send-backward-recv": "bubble",
    "forward-backward-send-forward-backward-recv": "bubble",
    "all-grads-sync": "collective",
    "params-all-gather": "collective",
    "embedding-grads-all-reduce": "collective",
    "non-tensor-parallel-grads-all-reduce": "collective",
    "optimizer": "optimizer",
    "save-checkpoint": "checkpoint",
    "evaluate": "evaluation",
}
#: The timer around one training iteration's optimizer: where it stops, a step ends.
_LAST = "optimizer"


class WatchedTimers:
    """Stands for Megatron's `Timers`: everything is passed on, and starts and stops are seen."""

    def __init__(self, timers: Any, scope: Scope) -> None:
        self._timers = timers
        self._scope = scope
        self._watched: dict[str, _WatchedTimer] = {}

    def __call__(self, name: str, log_level: int | None = None) -> Any:
        timer = self._timers(name, log_level)
        if name not in PHASES:
            return timer
        watched = self._watched.get(name)
        if watched is None:
            watched = self._watched[name] = _WatchedTimer(name, self._scope)
        # Megatron may hand out a real timer after it has handed out dummies.
        watched.timer = timer
        return watched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timers, name)


class _WatchedTimer:
    """Stands for one of Megatron's timers."""

    def __init__(self, name: str, scope: Scope) -> None:
        self.timer: Any = None
        self._name = name
        self._scope = scope
        self._phase: AbstractContextManager[None] | None = None

    def start(self, *arguments: Any, **keywords: Any) -> None:
        self.timer.start(*arguments, **keywords)
        if self._phase is None:
            self._phase = self._scope.phase(PHASES[self._name])
            self._phase.__enter__()

    def stop(self, *arguments: Any, **keywords: Any) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None
            if self._name == _LAST:
                self._scope.step()
        self.timer.stop(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.timer, name)


def watch_timers(timers: Any) -> Any:
    """Megatron's timers, seen; what is not callable is given back as it is."""
    return WatchedTimers(timers, attach()) if callable(timers) else timers
