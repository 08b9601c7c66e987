"""The choke points in torch through which every step passes, and their undoing.

Private names: checked when installed. A missing one costs its signal, which is said; it never breaks training.
Supported: torch 2.6 to 2.13, tested with 2.13.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol

from rankscope.torch_hooks.hot import Listener, backward_gate, next_gate

#: Attribute our replacements carry, so that a second installation (a reloaded module) recognises them.
_OURS = "_rankscope_original"


class SeldomListener(Protocol):
    """What is told off the hot path. Implementations never raise."""

    def scaler_end(self, optimizer: Any) -> None: ...
    def checkpoint_begin(self) -> None: ...
    def checkpoint_end(self) -> None: ...
    def process_group_ready(self) -> None: ...


class Undo:
    """What was replaced or registered in torch, to be taken back in reverse order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        #: Signals that this torch does not offer, one line each.
        self.unavailable: list[str] = []

    def add(self, undo: Callable[[], None]) -> None:
        """Remember how one thing is taken back."""
        self._undo.append(undo)

    def try_all(self, patches: tuple[tuple[str, Callable[[], None]], ...]) -> None:
        """Make each patch; one that this torch does not allow is noted under its name."""
        for name, patch in patches:
            try:
                patch()
            except (AttributeError, ImportError, TypeError, RuntimeError) as error:
                self.unavailable.append(f"{name}: {type(error).__name__}: {error}")

    def remove(self) -> None:
        """Give torch back as it was."""
        while self._undo:
            self._undo.pop()()

    def replace(self, name: str, owners: tuple[Any, ...], make: Callable[[Any], Any]) -> None:
        """Put one replacement into every module or class that binds the original (so that it pickles by name)."""
        original = getattr(owners[0], name)
        if hasattr(original, _OURS):
            raise RuntimeError("already hooked")
        replacement = functools.wraps(original)(make(original))
        setattr(replacement, _OURS, original)
        keep_out_of_dynamo(replacement)
        # As they lie there: a class may hold a descriptor that hands out another object.
        own = [(owner, vars(owner).get(name)) for owner in owners if getattr(owner, name, None) is original]
        for owner, _ in own:
            setattr(owner, name, replacement)

        def restore() -> None:
            # Where somebody wrapped ours since, theirs stays, and ours passes through.
            for owner, found in own:
                if getattr(owner, name, None) is replacement:
                    if found is None:
                        delattr(owner, name)
                    else:
                        setattr(owner, name, found)

        self._undo.append(restore)


class Patches(Undo):
    """The choke points that `import torch` brings, and those of its parts once they are imported."""

    def __init__(self, hot: Listener, listener: SeldomListener) -> None:
        """`hot` is told in every step, `listener` of what happens seldom."""
        super().__init__()
        self._hot = hot
        self._listener = listener
        self._later: dict[str, tuple[str, Callable[[], None]]] = {}

    def install(self) -> None:
        """Install every choke point this torch has."""
        self.try_all(
            (
                ("data wait", self._data),
                ("backward", self._backward),
                ("optimizer", self._optimizer),
                ("gradient scaler", self._scaler),
                ("checkpoint", self._checkpoint),
                ("process group", self._process_group),
            )
        )
        self.install_after("torch.distributed.checkpoint.state_dict_saver", "checkpoint", self._distributed_checkpoint)

    def install_after(self, module: str, name: str, patch: Callable[[], None]) -> None:
        """Make a patch once `module` is imported: nothing is imported for us."""
        self._later[module] = (name, patch)

    def look(self) -> list[str]:
        """Patch what has been imported since; returns what could not be, one line each."""
        before = len(self.unavailable)
        for module in [module for module in self._later if module in sys.modules]:
            self.try_all((self._later.pop(module),))
        return self.unavailable[before:]

    def _data(self) -> None:
        iterator_type = importlib.import_module("torch.utils.data.dataloader")._BaseDataLoaderIter
        self.replace("__next__", (iterator_type,), lambda original: next_gate(original, self._hot))

    def _backward(self) -> None:
        autograd = importlib.import_module("torch.autograd")
        queue_callback = autograd.Variable._execution_engine.queue_callback
        anchor = importlib.import_module("torch").zeros((), device="cpu")
        self.replace(
            "_engine_run_backward",
            (autograd, importlib.import_module("torch.autograd.graph")),
            lambda original: backward_gate(original, self._hot, queue_callback, anchor),
        )

    def _optimizer(self) -> None:
        module = importlib.import_module("torch.optim.optimizer")
        # Dynamo, tracing an optimizer's step, takes this for true, and leaves our part out.
        compiling = importlib.import_module("torch.compiler").is_dynamo_compiling
        listener = self._hot

        def before(_optimizer: Any, arguments: Any, keywords: Any) -> None:
            if not compiling():
                listener.optimizer_begin(arguments, keywords)

        def after(optimizer: Any, _arguments: Any, _keywords: Any) -> None:
            if not compiling():
                listener.optimizer_end(optimizer)

        self.add(module.register_optimizer_step_pre_hook(before).remove)
        self.add(module.register_optimizer_step_post_hook(after).remove)

    def _scaler(self) -> None:
        scaler_type = importlib.import_module("torch.amp.grad_scaler").GradScaler
        listener = self._listener

        def make(original: Any) -> Any:
            def step(scaler: Any, optimizer: Any, *arguments: Any, **keywords: Any) -> Any:
                result = original(scaler, optimizer, *arguments, **keywords)
                listener.scaler_end(optimizer)
                return result

            return step

        self.replace("step", (scaler_type,), make)

    def _checkpoint(self) -> None:
        owners = (importlib.import_module("torch"), importlib.import_module("torch.serialization"))
        self.replace("save", owners, self._timed_checkpoint)

    def _distributed_checkpoint(self) -> None:
        """`save` and what blocks in `async_save`; the first goes through a function of its module, however imported."""
        module = importlib.import_module("torch.distributed.checkpoint.state_dict_saver")
        self.replace("_save_state_dict", (module,), self._timed_checkpoint)
        self.replace(
            "async_save", (module, importlib.import_module("torch.distributed.checkpoint")), self._timed_checkpoint
        )

    def _timed_checkpoint(self, original: Any) -> Any:
        listener = self._listener

        def save(*arguments: Any, **keywords: Any) -> Any:
            listener.checkpoint_begin()
            try:
                return original(*arguments, **keywords)
            finally:
                listener.checkpoint_end()

        return save

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
        self.replace("init_process_group", owners, make)


def keep_out_of_dynamo(function: Any) -> None:
    """Tell Dynamo never to trace this function's own frame, at no cost a call. Does nothing before torch 2.7."""
    try:
        frames = importlib.import_module("torch._C._dynamo.eval_frame")
        strategy = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
        frames.set_code_exec_strategy(function.__code__, strategy)
    except (AttributeError, ImportError, TypeError):
        return
