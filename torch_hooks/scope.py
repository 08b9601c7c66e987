"""The scope on one rank: attached once a process, it watches the training thread and writes its ring.

Training comes first: everything the hooks call goes through `Scope._quietly`, where an error of ours ends the watching
and is said in the ring, and nothing reaches the training loop.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, TypeVar

from rankscope.errors import RankscopeError
from rankscope.records import MarkKind, Phase
from rankscope.torch_hooks.clocks import choose_clock, device_undecided
from rankscope.torch_hooks.hot import Listener
from rankscope.torch_hooks.loop import TrainingLoop
from rankscope.torch_hooks.nonfinite import NonFiniteWatch
from rankscope.torch_hooks.patches import Patches
from rankscope.torch_hooks.step_clock import StepClock
from rankscope.torch_hooks.watching import Watching

Batch = TypeVar("Batch")

#: Where rings lie unless RANKSCOPE_DIR says otherwise: memory, so that a store never waits for a disk.
DEFAULT_DIRECTORY = "/dev/shm/rankscope"

_NAMED_PHASES = {
    "data": Phase.DATA_WAIT,
    "forward": Phase.FORWARD,
    "backward": Phase.BACKWARD,
    "optimizer": Phase.OPTIMIZER,
    "checkpoint": Phase.CHECKPOINT,
    "evaluation": Phase.EVALUATION,
    "h2d": Phase.H2D,
    "bubble": Phase.BUBBLE,
    "collective": Phase.COLLECTIVE_WAIT,
}


def _guarded(function: Callable[..., None], *, begins: bool = False) -> Callable[..., None]:
    """A method of Scope that calls `function(loop, ...)` in the training thread and lets no error of ours out.

    `begins`: training has begun at the latest now, so the ring is made where there is none.
    """

    def call(scope: Scope, *arguments: Any) -> None:
        if scope._watching is None and begins and not scope._ended:
            scope._quietly(scope._begin)
        watching = scope._watching
        if watching is not None and get_ident() == watching.clock.thread:
            try:
                function(watching.loop, *arguments)
            except Exception as error:
                scope._give_up(error)

    return call


def _ignored(*_arguments: Any) -> None:
    """What is called where nothing is watched: not yet, or no more."""


def _no() -> bool:
    return False


class Scope:
    """Watches this process's training loop. Made by `attach()`; every method is safe to call at any time."""

    def __init__(self, environ: Mapping[str, str], *, write_error: Callable[[str], object]) -> None:
        self._environ = environ
        self._write_error = write_error
        self._directory = Path(environ.get("RANKSCOPE_DIR") or DEFAULT_DIRECTORY)
        self._process = os.getpid()
        #: What the choke points on the hot path call: the loop's own methods while it is watched, else nothing.
        self._hot = Listener()
        self._patches = Patches(self._hot, self)
        self._watching: Watching | None = None
        self._of_parent: Watching | None = None
        self._ended = False
        self._nonfinite: list[NonFiniteWatch] = []
        self._excepthook = sys.excepthook
        #: Batches asked of each dataset before the watching began, the latest one last.
        self._asked_early: dict[int, int] = {}
        self._await_training()

    def install(self) -> None:
        """Hook into torch; the ring is made when training begins."""
        self._patches.install()
        self._excepthook = sys.excepthook
        sys.excepthook = self._on_exception
        atexit.register(self.detach)

    def detach(self) -> None:
        """Stop watching and give everything back as it was found."""
        atexit.unregister(self.detach)
        self._patches.remove()
        if sys.excepthook == self._on_exception:
            sys.excepthook = self._excepthook
        if self._watching is not None and os.getpid() == self._process:
            self._quietly(self._watching.say_goodbye)
        self._stop()

    def forked(self) -> None:
        """This is a child process: the ring is the parent's alone."""
        self._ended = True
        # Kept: what it holds has threads in the parent only, and must not be taken apart here.
        self._of_parent = self._watching
        self._unhook()

    def _await_training(self) -> None:
        """Until training begins nothing is watched but its begin."""
        self._unhook()
        self._hot.data_begin = self._early_batch
        self._hot.backward_begin = self._first_backward
        self._hot.optimizer_begin = self._first_optimizer

    def _hook(self, loop: TrainingLoop) -> None:
        """From now on the choke points talk to the loop itself: no layer in between."""
        hot = self._hot
        hot.data_begin, hot.data_end = loop.data_begin, loop.data_end
        hot.backward_begin, hot.backward_end = loop.backward_begin, loop.backward_end
        hot.backward_own_end = loop.backward_own_end
        hot.optimizer_begin, hot.optimizer_end = loop.optimizer_begin, loop.optimizer_end

    def _unhook(self) -> None:
        hot, self._watching = self._hot, None
        hot.data_begin = hot.data_end = hot.optimizer_end = _ignored
        hot.backward_own_end = hot.backward_end = hot.optimizer_begin = _ignored
        hot.backward_begin = _no

    def _early_batch(self, iterator: Any) -> None:
        source = id(getattr(iterator, "_dataset", iterator))
        self._asked_early[source] = self._asked_early.pop(source, 0) + 1

    def _first_backward(self) -> bool:
        self._quietly(self._begin)
        return self._hot.backward_begin() if self._watching is not None else False

    def _first_optimizer(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._quietly(self._begin)
        if self._watching is not None:
            self._hot.optimizer_begin(arguments, keywords)

    def _stop(self) -> None:
        self._ended = True
        watching = self._watching
        self._unhook()
        if watching is not None:
            watching.close()
        while self._nonfinite:
            self._nonfinite.pop().close()

    def _begin(self) -> None:
        """Make the ring, in the training thread, now that training begins."""
        if self._ended or device_undecided():
            return
        watching = Watching(self._environ, self._directory, self._patches, self._give_up, self._leave)
        if self._asked_early:
            watching.loop.loaders_were_asked(self._asked_early)
        self._watching = watching
        self._hook(watching.loop)
        watching.look()

    def _leave(self) -> None:
        """The agent asks for it."""
        self._patches.remove()
        if self._watching is not None:
            self._watching.clock.mark(MarkKind.DETACHED, "the agent asked for it")
        self._stop()

    def steps(self, loader: Iterable[Batch]) -> Generator[Batch, None, None]:
        """Iterate over `loader`; each batch is one step, from asking for it to asking for the next."""
        iterator = iter(loader)
        try:
            while True:
                self._step_begin()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                self._step_batch(batch)
                yield batch
        finally:
            self._steps_end()

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        """Name what runs inside; also a decorator. "data", "forward", "backward", "optimizer", "checkpoint",
        "evaluation", "h2d", "collective" and "bubble" are phases of the step; any other name is recorded beside them.
        """
        known = _NAMED_PHASES.get(name)
        began = time.monotonic_ns()
        before = self._watching.clock.phase if self._watching is not None else int(Phase.OTHER)
        if known is not None:
            self._phase_begin(known)
        try:
            yield
        finally:
            if known is not None:
                self._phase_end(before)
            else:
                self._phase_named(began, name)

    def signal(
        self,
        *,
        loss: Any = None,
        gradient_norm: Any = None,
        samples: int | None = None,
        tokens: int | None = None,
        flops: int | None = None,
        peak_flops: int | None = None,
    ) -> None:
        """Say what this step came to, on this rank alone: call it in the step, once.

        `loss` and `gradient_norm` may be tensors on the device: they are read when they are done, never waited for.
        `flops` are the model's operations in this step, forward and backward; `peak_flops` this device's dense rate in
        the precision used, operations a second (known for common GPUs in bfloat16).
        """
        watching = self._watching
        if watching is not None and get_ident() == watching.clock.thread:
            peak = peak_flops or watching.peak_flops
            counts = {"samples": samples, "tokens": tokens, "flops": flops, "peak_flops": peak}
            self._quietly(watching.signals.note, watching.clock.step, loss, gradient_norm, counts)

    def watch_nonfinite(self, model: Any) -> None:
        """Name the first of the model's modules whose output is NaN or infinite, for the price of a reduction each."""
        self._quietly(self._watch_nonfinite, model)

    def _watch_nonfinite(self, model: Any) -> None:
        device = choose_clock(self._environ) if self._watching is None else self._watching.device

        def step() -> int:
            return 0 if self._watching is None else self._watching.clock.step

        def report(step: int, name: str) -> None:
            if self._watching is not None:
                text = f"step {step}: the output of {name} is not finite"
                self._quietly(self._watching.clock.mark, MarkKind.NONFINITE, text)

        self._nonfinite.append(NonFiniteWatch(model, device, step=step, report=report))

    # What choke points off the hot path, and the user's own loop, call.
    scaler_end = _guarded(TrainingLoop.scaler_end)
    checkpoint_begin = _guarded(TrainingLoop.checkpoint_begin)
    checkpoint_end = _guarded(TrainingLoop.checkpoint_end)
    _step_begin = _guarded(TrainingLoop.begin_explicit_step, begins=True)
    _step_batch = _guarded(TrainingLoop.explicit_batch)
    _steps_end = _guarded(TrainingLoop.end_explicit_loop)
    _step_here = _guarded(TrainingLoop.end_step_here, begins=True)
    _phase_begin = _guarded(TrainingLoop.switch, begins=True)
    _phase_end = _guarded(TrainingLoop.switch)
    _phase_named = _guarded(TrainingLoop.record_phase, begins=True)

    def step(self) -> None:
        """Say that a training step ends here, where the rules would find another end; it holds from then on."""
        self._step_here()

    def process_group_ready(self) -> None:
        """The process group is there: training is about to begin."""
        if self._watching is None:
            self._quietly(self._begin)
        else:
            self._quietly(self._watching.look)

    def _quietly(self, function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Stop watching for good, and say so in the ring, or on stderr where there is none."""
        watching, self._ended = self._watching, True
        try:
            said = str(error) if isinstance(error, RankscopeError) else f"{type(error).__name__}: {error}"
            if watching is None:
                self._write_error(f"rankscope: not watching this rank: {said}\n")
            else:
                watching.clock.mark(MarkKind.DEGRADED, f"stopped watching: {said}")
            self._stop()
        except Exception:
            self._unhook()

    def _on_exception(self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if self._watching is not None:
            self._quietly(_mark_exception, self._watching.clock, kind, value)
        self._excepthook(kind, value, traceback)


def _mark_exception(clock: StepClock, kind: type[BaseException], value: BaseException) -> None:
    from rankscope.redact import without_secrets

    clock.mark(MarkKind.EXCEPTION, without_secrets(f"{kind.__name__}: {value}"[:2000]))
