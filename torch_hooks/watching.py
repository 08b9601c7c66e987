"""A rank under watch, from the begin of its training on: its ring, its clocks, and what looks after the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rankscope.clock import ClockAnchor, SystemClock, boot_id
from rankscope.control import Command, ControlReader
from rankscope.identity import rank_identity
from rankscope.records import MarkKind, Phase
from rankscope.ring import RingWriter, ring_path
from rankscope.torch_hooks.allocator import AllocatorWatch, make_watch
from rankscope.torch_hooks.clocks import choose_clock
from rankscope.torch_hooks.collectives import CollectiveWatch, process_group_is_there
from rankscope.torch_hooks.fingerprint import write_fingerprint
from rankscope.torch_hooks.flight_socket import FlightSocket, flight_path
from rankscope.torch_hooks.hot import NAME
from rankscope.torch_hooks.loop import TrainingLoop, optimizer_made
from rankscope.torch_hooks.patches import Patches
from rankscope.torch_hooks.peak import device_peak_flops
from rankscope.torch_hooks.pipeline import PipelineWatch
from rankscope.torch_hooks.signals import Signals
from rankscope.torch_hooks.stacks import StackDumper
from rankscope.torch_hooks.step_clock import StepClock
from rankscope.torch_hooks.window import Window, make_window


class Watching:
    """What is there while a rank is watched. Made in the training thread; `close` gives everything back."""

    def __init__(
        self,
        environ: Mapping[str, str],
        directory: Path,
        patches: Patches,
        give_up: Callable[[Exception], None],
        leave: Callable[[], None],
    ) -> None:
        """`give_up` is told of an error of ours, `leave` that the agent asks to stop. Raises RingError, and whatever
        else goes wrong, with everything given back."""
        self._patches = patches
        self._leave = leave
        self._close: list[Callable[[], object]] = []
        self._allocator: AllocatorWatch | None = None
        try:
            self._begin(environ, directory, give_up)
        except BaseException:
            self.close()
            raise

    def _begin(self, environ: Mapping[str, str], directory: Path, give_up: Callable[[Exception], None]) -> None:
        torch: Any = sys.modules["torch"]
        device = choose_clock(environ)
        identity = rank_identity(environ, boot_id=boot_id(), gpu_uuid=device.gpu_uuid(), device_clock=device.name)
        path = ring_path(directory, identity)
        write_fingerprint(path, environ)
        ring = RingWriter(path, identity, ClockAnchor.take(SystemClock()))
        # With one hardware queue, timing events between kernels were seen to break compute/communication overlap.
        coarse = environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1"
        clock = StepClock(ring, device, world_size=identity.world_size, coarse=coarse)
        self.device, self.clock, self.signals = device, clock, Signals(ring, device)
        self._window = make_window(path, identity.rank, environ)
        self._control = ControlReader(path)
        self._close.append(self._control.close)
        dumper = StackDumper(path.with_name(f"{path.name}.stacks"), environ)
        flight = FlightSocket(flight_path(path, identity.pid), environ)
        clock.gc_watch.install()
        self._close += [clock.close, dumper.remove, flight.close, device.watch_synchronize(clock.synchronized)]
        if self._window is not None:
            self._close.append(self._window.close)
            clock.on_step = partial(_step_window, clock, self._window)
        self.loop = TrainingLoop(
            clock,
            give_up,
            grad_enabled=torch.is_grad_enabled,
            optimizer_made=partial(optimizer_made, torch.optim.Optimizer),
        )
        self._collectives = collectives = CollectiveWatch(clock)
        self._close += [collectives.remove, device.watch_waits(collectives.stream_waits, collectives.stream_waited)]
        pipelines = PipelineWatch(self.loop)
        self._close.append(pipelines.remove)
        self._patches.install_after("torch.distributed.pipelining.stage", "pipeline stages", pipelines.install)
        can = f"stacks={dumper.install()} flight={int(flight.open())} boundaries={NAME}"
        clock.mark(MarkKind.ATTACHED, f"{can} torch={torch.__version__} python={sys.executable}")
        self._say_missing(self._patches.unavailable)
        #: Dense rate of this rank's device, operations a second; None where it is not known.
        self.peak_flops: int | None = None
        if device.name == "cuda":
            self.peak_flops = device_peak_flops(torch.cuda)
            kept = partial(clock.mark, MarkKind.SNAPSHOT)
            self._allocator = make_watch(torch, path, environ, report=ring.append_record, kept=kept)
            self._close.append(self._allocator.close)
        self._close.append(partial(self.signals.close, partial(clock.mark, MarkKind.DEGRADED)))
        self._world_size = identity.world_size
        clock.on_look = self.look

    def look(self) -> None:
        """Now and then: orders of the agent, and parts of torch that were imported since."""
        clock = self.clock
        command = self._control.poll()
        if command is Command.DETACH:
            self._leave()
            return
        if command is Command.WINDOW and self._window is not None:
            self._window.ask()
        if self._allocator is not None:
            if command is Command.SNAPSHOT:
                self._allocator.keep_snapshot()
            self._allocator.end_step(clock.step)
        elif command is Command.SNAPSHOT:
            clock.mark(MarkKind.DEGRADED, "memory snapshot: this device has no caching allocator")
        if not self._collectives.installed and process_group_is_there(sys.modules["torch"]):
            self._collectives.on_reducer = self._stamp
            self._say_missing(self._collectives.install())
        self._say_missing(self._patches.look())

    def _stamp(self) -> None:
        self.loop.stamps = self._world_size > 1

    def _say_missing(self, lines: list[str]) -> None:
        for line in lines:
            self.clock.mark(MarkKind.DEGRADED, line)

    def say_goodbye(self) -> None:
        """Write what is left, and that this rank ended on its own."""
        self.clock.flush()
        self.clock.mark(MarkKind.ENDED)
        self.clock.ring.set_status(time.monotonic_ns(), self.clock.step, Phase.ENDED)

    def close(self) -> None:
        """Give back what was registered elsewhere, the latest first."""
        while self._close:
            self._close.pop()()


def _step_window(clock: StepClock, window: Window) -> None:
    said = window.step_end(clock.step - 1, clock.last_step_ns)
    if said is not None:
        clock.mark(MarkKind.WINDOW, said)
