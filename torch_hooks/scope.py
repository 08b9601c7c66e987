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
from functools import partial
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, TypeVar

from rankscope.clock import ClockAnchor, SystemClock, boot_id
from rankscope.control import Command, ControlReader
from rankscope.device import DeviceClock
from rankscope.errors import RankscopeError
from rankscope.identity import rank_identity
from rankscope.records import MarkKind, Phase
from rankscope.ring import RingWriter, ring_path
from rankscope.torch_hooks.allocator import AllocatorWatch, make_watch
from rankscope.torch_hooks.clocks import choose_clock, device_undecided
from rankscope.torch_hooks.collectives import CollectiveWatch, process_group_is_there
from rankscope.torch_hooks.fingerprint import write_fingerprint
from rankscope.torch_hooks.flight_socket import FlightSocket, flight_path
from rankscope.torch_hooks.hot import NAME
from rankscope.torch_hooks.loop import TrainingLoop, optimizer_made
from rankscope.torch_hooks.nonfinite import NonFiniteWatch
from rankscope.torch_hooks.patches import Patches
from rankscope.torch_hooks.peak import device_peak_flops
from rankscope.torch_hooks.pipeline import PipelineWatch
from rankscope.torch_hooks.signals import Signals
from rankscope.torch_hooks.stacks import StackDumper
from rankscope.torch_hooks.step_clock import StepClock
from rankscope.torch_hooks.window import Window, make_window

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
        loop = scope._loop
        if loop is None:
            if not begins or scope._ended:
                return
            scope._quietly(scope._begin)
            loop = scope._loop
        if loop is not None and get_ident() == loop.thread:
            try:
                function(loop, *arguments)
            except Exception as error:
                scope._give_up(error)

    return call


def _ignored(*_arguments: Any) -> None:
    """What is called where nothing is watched: not yet, or no more."""


def _no() -> bool:
    return False


class Scope:
    """Watches this process's training loop. Made by `attach()`; every method is safe to call at any time."""

    # What the choke points on the hot path call: the loop's own methods while it is watched, else nothing.
    data_begin: Callable[[Any], None]
    data_end: Callable[[Any], None]
    backward_begin: Callable[[], bool]
    backward_own_end: Callable[[], None]
    backward_end: Callable[[], None]
    optimizer_begin: Callable[[tuple[Any, ...], dict[str, Any]], None]
    optimizer_end: Callable[[Any], None]

    def __init__(self, environ: Mapping[str, str], *, write_error: Callable[[str], object]) -> None:
        self._environ = environ
        self._write_error = write_error
        self._directory = Path(environ.get("RANKSCOPE_DIR") or DEFAULT_DIRECTORY)
        self._process = os.getpid()
        self._patches = Patches(self)
        self._loop: TrainingLoop | None = None
        self._clock: StepClock | None = None
        self._device: DeviceClock | None = None
        self._signals: Signals | None = None
        self._peak_flops: int | None = None
        self._stop_watching: list[Callable[[], None]] = []
        self._ended = False
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
        clock = self._clock
        if clock is not None and os.getpid() == self._process:
            self._quietly(self._say_goodbye, clock)
        self._stop()

    def forked(self) -> None:
        """This is a child process: the ring is the parent's alone."""
        self._ended = True
        self._unhook()

    def _say_goodbye(self, clock: StepClock) -> None:
        clock.flush()
        clock.mark(MarkKind.ENDED)
        clock.ring.set_status(time.monotonic_ns(), clock.step, Phase.ENDED)

    def _await_training(self) -> None:
        """Until training begins nothing is watched but its begin."""
        self._unhook()
        self.data_begin = self._early_batch
        self.backward_begin = self._first_backward
        self.optimizer_begin = self._first_optimizer

    def _hook(self, loop: TrainingLoop) -> None:
        """From now on the choke points talk to the loop itself: no layer in between."""
        self.data_begin, self.data_end = loop.data_begin, loop.data_end
        self.backward_begin, self.backward_end = loop.backward_begin, loop.backward_end
        self.backward_own_end = loop.backward_own_end
        self.optimizer_begin, self.optimizer_end = loop.optimizer_begin, loop.optimizer_end

    def _unhook(self) -> None:
        self._loop = self._clock = None
        self.data_begin = self.data_end = self.optimizer_end = _ignored
        self.backward_own_end = self.backward_end = self.optimizer_begin = _ignored
        self.backward_begin = _no

    def _early_batch(self, iterator: Any) -> None:
        source = id(getattr(iterator, "_dataset", iterator))
        self._asked_early[source] = self._asked_early.pop(source, 0) + 1

    def _first_backward(self) -> bool:
        self._quietly(self._begin)
        return self.backward_begin() if self._loop is not None else False

    def _first_optimizer(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._quietly(self._begin)
        if self._loop is not None:
            self.optimizer_begin(arguments, keywords)

    def _stop(self) -> None:
        self._ended = True
        self._unhook()
        while self._stop_watching:
            self._stop_watching.pop()()

    def _begin(self) -> TrainingLoop | None:
        """Make the ring, in the training thread, now that training begins."""
        if self._ended or device_undecided():
            return None
        device = choose_clock(self._environ)
        identity = rank_identity(self._environ, boot_id=boot_id(), gpu_uuid=device.gpu_uuid(), device_clock=device.name)
        path = ring_path(self._directory, identity)
        write_fingerprint(path, self._environ)
        ring = RingWriter(path, identity, ClockAnchor.take(SystemClock()))
        # With one hardware queue, timing events between kernels were seen to break compute/communication overlap.
        coarse = self._environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1"
        clock = StepClock(ring, device, world_size=identity.world_size, coarse=coarse)
        window = make_window(path, identity.rank, self._environ)
        control = ControlReader(path)
        self._stop_watching.append(control.close)
        dumper = StackDumper(path.with_name(f"{path.name}.stacks"), self._environ)
        flight = FlightSocket(flight_path(path, identity.pid), self._environ)
        clock.gc_watch.install()
        self._stop_watching += [clock.close, dumper.remove, flight.close]
        self._stop_watching.append(device.watch_synchronize(clock.synchronized))
        if window is not None:
            self._stop_watching.append(window.close)
            clock.on_step = partial(_step_window, clock, window)
        torch: Any = sys.modules["torch"]
        loop = TrainingLoop(
            clock,
            self._give_up,
            grad_enabled=torch.is_grad_enabled,
            optimizer_made=partial(optimizer_made, torch.optim.Optimizer),
        )
        if self._asked_early:
            loop.loaders_were_asked(self._asked_early)
        collectives = CollectiveWatch(clock)
        self._stop_watching += [collectives.remove, device.watch_waits(collectives.wait_begins, collectives.wait_ends)]
        pipelines = PipelineWatch(loop)
        self._stop_watching.append(pipelines.remove)
        self._patches.install_after("torch.distributed.pipelining.stage", "pipeline stages", pipelines.install)
        can = f"stacks={dumper.install()} flight={int(flight.open())}"
        can = f"{can} boundaries={NAME}"
        clock.mark(MarkKind.ATTACHED, f"{can} torch={torch.__version__} python={sys.executable}")
        for line in self._patches.unavailable:
            clock.mark(MarkKind.DEGRADED, line)
        self._device, self._signals = device, Signals(ring, device)
        allocator: AllocatorWatch | None = None
        if device.name == "cuda":
            self._peak_flops = device_peak_flops(torch.cuda)
            kept = partial(clock.mark, MarkKind.SNAPSHOT)
            allocator = make_watch(torch, path, self._environ, report=ring.append_record, kept=kept)
            self._stop_watching.append(allocator.close)
        self._stop_watching.append(partial(self._signals.close, partial(clock.mark, MarkKind.DEGRADED)))

        def look() -> None:
            """Now and then: orders of the agent, and parts of torch that were imported since."""
            command = control.poll()
            if command is Command.DETACH:
                self._leave(clock)
                return
            if command is Command.WINDOW and window is not None:
                window.ask()
            if allocator is not None:
                if command is Command.SNAPSHOT:
                    allocator.keep_snapshot()
                allocator.end_step(clock.step)
            elif command is Command.SNAPSHOT:
                clock.mark(MarkKind.DEGRADED, "memory snapshot: this device has no caching allocator")
            if clock.groups is None and not collectives.installed and process_group_is_there(torch):
                collectives.install()
                loop.stamps = identity.world_size > 1
                self._say_missing(collectives.unavailable)
            self._say_missing(self._patches.look())

        clock.on_look = look
        self._clock, self._loop = clock, loop
        self._hook(loop)
        look()
        return self._loop

    def _say_missing(self, lines: list[str]) -> None:
        for line in lines:
            if self._clock is not None:
                self._clock.mark(MarkKind.DEGRADED, line)

    def _leave(self, clock: StepClock) -> None:
        """The agent asks for it."""
        self._patches.remove()
        clock.mark(MarkKind.DETACHED, "the agent asked for it")
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
        before = self._clock.phase if self._clock is not None else int(Phase.OTHER)
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
        clock, signals = self._clock, self._signals
        if clock is not None and signals is not None and get_ident() == clock.thread:
            peak = peak_flops or self._peak_flops
            counts = {"samples": samples, "tokens": tokens, "flops": flops, "peak_flops": peak}
            self._quietly(signals.note, clock.step, loss, gradient_norm, counts)

    def watch_nonfinite(self, model: Any) -> None:
        """Name the first of the model's modules whose output is NaN or infinite, for the price of a reduction each."""
        self._quietly(self._watch_nonfinite, model)

    def _watch_nonfinite(self, model: Any) -> None:
        device = self._device or choose_clock(self._environ)

        def step() -> int:
            return 0 if self._clock is None else self._clock.step

        def report(step: int, name: str) -> None:
            if self._clock is not None:
                self._quietly(self._clock.mark, MarkKind.NONFINITE, f"step {step}: the output of {name} is not finite")

        self._stop_watching.append(NonFiniteWatch(model, device, step=step, report=report).close)

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
        if self._loop is None:
            self._quietly(self._begin)
        elif self._clock is not None and self._clock.on_look is not None:
            self._quietly(self._clock.on_look)

    def _quietly(self, function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Stop watching for good, and say so in the ring, or on stderr where there is none."""
        clock, self._ended = self._clock, True
        try:
            said = str(error) if isinstance(error, RankscopeError) else f"{type(error).__name__}: {error}"
            if clock is None:
                self._write_error(f"rankscope: not watching this rank: {said}\n")
            else:
                clock.mark(MarkKind.DEGRADED, f"stopped watching: {said}")
            self._stop()
        except Exception:
            self._unhook()

    def _on_exception(self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        clock = self._clock
        if clock is not None:
            self._quietly(_mark_exception, clock, kind, value)
        self._excepthook(kind, value, traceback)


def _step_window(clock: StepClock, window: Window) -> None:
    said = window.step_end(clock.step - 1, clock.last_step_ns)
    if said is not None:
        clock.mark(MarkKind.WINDOW, said)


def _mark_exception(clock: StepClock, kind: type[BaseException], value: BaseException) -> None:
    from rankscope.redact import without_secrets

    clock.mark(MarkKind.EXCEPTION, without_secrets(f"{kind.__name__}: {value}"[:2000]))
