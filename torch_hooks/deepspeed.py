"""A DeepSpeed engine's own calls as phases and steps: `watch_engine(engine)` after `deepspeed.initialize`.

ZeRO's optimizers are no torch optimizers, and their step is a step only at the boundary of gradient accumulation: the
engine knows both. Not yet run on a GPU. Methods: deepspeed/runtime/engine.py (DeepSpeedEngine).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from rankscope.torch_hooks.attachment import attach

_Engine = TypeVar("_Engine")
_PHASES = {"step": "optimizer", "save_checkpoint": "checkpoint", "eval_batch": "evaluation"}


def watch_engine(engine: _Engine) -> _Engine:
    """See the engine's steps, checkpoints and evaluations from now on; returns the same engine."""
    scope = attach()
    whole_batch = hasattr(engine, "train_batch")

    def seen(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **keywords: Any) -> Any:
            # Asked before: the step moves the engine on to the next microbatch.
            boundary = phase == "optimizer" and bool(engine.is_gradient_accumulation_boundary())  # type: ignore[attr-defined]
            with scope.phase(phase):
                result = method(*arguments, **keywords)
            if boundary and not whole_batch:
                scope.step()
            return result

        return call

    def train_batch(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **keywords: Any) -> Any:
            result = method(*arguments, **keywords)
            scope.step()
            return result

        return call

    for name, phase in _PHASES.items():
        if callable(getattr(engine, name, None)):
            setattr(engine, name, seen(getattr(engine, name), phase))
    if whole_batch:
        # A pipeline engine: one call is one step.
        engine.train_batch = train_batch(engine.train_batch)  # type: ignore[attr-defined]
    return engine
