"""The choke points in torch through which every step passes, and their undoing.

Private names: checked when installed. A missing one costs its signal, which is said; it never breaks training.
Supported: torch 2.6 to 2.13, tested with 2.13.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Protocol

#: Attribute our replacements carry, so that a second installation (a reloaded module) recognises them.
_OURS = "_rankscope_original"


class Listener(Protocol):
    """What is told. Implementations never raise."""

    def data_begin(self, iterator: Any) -> None: ...
    def data_end(self, batch: Any) -> None: ...
    def backward_begin(self) -> None: ...
    def backward_own_end(self) -> None: ...
    def backward_end(self) -> None: ...
    def optimizer_begin(self, optimizer: Any) -> None: ...
    def optimizer_end(self, optimizer: Any) -> None: ...
    def checkpoint_begin(self) -> None: ...
    def checkpoint_end(self) -> None: ...
    def process_group_ready(self) -> None: ...


class Patches:
    """Everything replaced or registered in torch, to be taken back in reverse order."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._undo: list[Callable[[], None]] = []
        #: Signals that this torch does not offer, one line each.
        self.unavailable: list[str] = []

    def install(self) -> None:
        """Install every choke point this torch has."""
        for name, patch in (
            ("data wait", self._data),
            ("backward", self._backward),
            ("optimizer", self._optimizer),
            ("checkpoint", self._checkpoint),
            ("process group", self._process_group),
        ):
            try:
                patch()
            except (AttributeError, ImportError, TypeError, RuntimeError) as error:
                self.unavailable.append(f"{name}: {type(error).__name__}: {error}")

    def remove(self) -> None:
        """Give torch back as it was."""
        while self._undo:
            self._undo.pop()()

    def _replace(self, name: str, owners: tuple[Any, ...], make: Callable[[Any], Any]) -> None:
        """Put one replacement into every module or class that binds the original (so that it pickles by name)."""
        original = getattr(owners[0], name)
        if hasattr(original, _OURS):
            raise RuntimeError("already hooked")
        replacement = functools.wraps(original)(make(original))
        setattr(replacement, _OURS, original)
        keep_out_of_dynamo(replacement)
        for owner in owners:
            if getattr(owner, name, None) is original:
                setattr(owner, name, replacement)

        def restore() -> None:
            # Where somebody wrapped ours since, theirs stays, and ours passes through.
            for owner in owners:
                if getattr(owner, name, None) is replacement:
                    setattr(owner, name, original)

        self._undo.append(restore)

    def _data(self) -> None:
        iterator_type = importlib.import_module("torch.utils.data.dataloader")._BaseDataLoaderIter
        listener = self._listener

        def make(original: Any) -> Any:
            def __next__(iterator: Any) -> Any:
                listener.data_begin(iterator)
                batch = None
                try:
                    batch = original(iterator)
                    return batch
                finally:
                    listener.data_end(batch)

            return __next__

        self._replace("__next__", (iterator_type,), make)

    def _backward(self) -> None:
        autograd = importlib.import_module("torch.autograd")
        engine = autograd.Variable._execution_engine
        engine.queue_callback  # noqa: B018 - checked here, used in backward
        listener = self._listener

        own_end = listener.backward_own_end
        keep_out_of_dynamo(_Stamp.__call__)

        def make(original: Any) -> Any:
            def _engine_run_backward(outputs: Any, *arguments: Any, **keywords: Any) -> Any:
                listener.backward_begin()
                handles = _Stamp(engine, own_end).hook(outputs)
                try:
                    return original(outputs, *arguments, **keywords)
                finally:
                    for handle in handles:
                        handle.remove()
                    listener.backward_end()

            return _engine_run_backward

        self._replace("_engine_run_backward", (autograd, importlib.import_module("torch.autograd.graph")), make)

    def _optimizer(self) -> None:
        module = importlib.import_module("torch.optim.optimizer")
        compiling = importlib.import_module("torch.compiler").is_compiling
        listener = self._listener

        def before(optimizer: Any, _arguments: Any, _keywords: Any) -> None:
            if not compiling():
                listener.optimizer_begin(optimizer)

        def after(optimizer: Any, _arguments: Any, _keywords: Any) -> None:
            if not compiling():
                listener.optimizer_end(optimizer)

        self._undo.append(module.register_optimizer_step_pre_hook(before).remove)
        self._undo.append(module.register_optimizer_step_post_hook(after).remove)

    def _checkpoint(self) -> None:
        listener = self._listener

        def make(original: Any) -> Any:
            def save(*arguments: Any, **keywords: Any) -> Any:
                listener.checkpoint_begin()
                try:
                    return original(*arguments, **keywords)
                finally:
                    listener.checkpoint_end()

            return save

        owners = (importlib.import_module("torch"), importlib.import_module("torch.serialization"))
        self._replace("save", owners, make)

    def _process_group(self) -> None:
        distributed = importlib.import_module("torch.distributed")
        if not distributed.is_available():
            return
        listener = self._listener

        def make(original: Any) -> Any:
            def init_process_group(*arguments: Any, **keywords: Any) -> Any:
                result = original(*arguments, **keywords)
                listener.process_group_ready()
                return result

            return init_process_group

        owners = (distributed, importlib.import_module("torch.distributed.distributed_c10d"))
        self._replace("init_process_group", owners, make)


class _Stamp:
    """A hook on the roots of one backward that has `own_end` run at its end, before any wait for other ranks.

    DDP waits in an engine callback that it queues when its first gradient is ready; callbacks run in the order they
    were queued, and a hook on a root runs before any gradient is ready.
    """

    __slots__ = ("_engine", "_own_end", "_queued")

    def __init__(self, engine: Any, own_end: Callable[[], None]) -> None:
        self._engine = engine
        self._own_end = own_end
        self._queued = False

    def __call__(self, _gradient: Any) -> None:
        if not self._queued:
            self._queued = True
            self._engine.queue_callback(self._own_end)

    def hook(self, outputs: Any) -> list[Any]:
        """Register on every root; returns the handles to remove afterwards."""
        roots = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        return [root.register_hook(self) for root in roots if getattr(root, "requires_grad", False)]


def keep_out_of_dynamo(function: Any) -> None:
    """Tell Dynamo never to trace this function's own frame, at no cost a call. Does nothing before torch 2.7."""
    try:
        frames = importlib.import_module("torch._C._dynamo.eval_frame")
        strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
        frames.set_code_exec_strategy(function.__code__, strategy)
    except (AttributeError, ImportError, TypeError):
        return
