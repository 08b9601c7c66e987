"""Device clocks of a training process: CUDA events, or the host where there is no accelerator."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from rankscope.device import DEVICE_CLOCK_VARIABLE, DeviceClock
from rankscope.errors import ConfigurationError


class HostClock:
    """The CPU as device: kernels run in the calling thread, so host time is device time."""

    name = "host"

    def gpu_uuid(self) -> str | None:
        return None

    def ready(self) -> bool:
        return True

    def record(self) -> int:
        return time.monotonic_ns()

    def done(self, event: int) -> bool:
        return True

    def elapsed_ns(self, first: int, second: int) -> int:
        return second - first

    def release(self, event: int) -> None:
        return None

    def memory(self) -> tuple[int, int, int, int] | None:
        return None

    def watch_waits(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        return _nothing

    def watch_copies(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        return _nothing

    def watch_synchronize(self, report: Callable[[int], None]) -> Callable[[], None]:
        return _nothing


def _nothing() -> None:
    """Nothing was replaced, nothing is to be undone."""


class CudaClock:
    """CUDA events on the current stream, from a pool. Not yet run on a GPU.

    `cuda` is torch.cuda, injected so that a fake can enforce CUDA's rules. Costs and rules: torch.cuda.Event
    documentation; events must not be recorded or queried while the stream is captured into a graph.
    """

    name = "cuda"

    def __init__(self, cuda: Any, tensor_type: Any) -> None:
        self._cuda = cuda
        self._tensor_type = tensor_type
        self._pool: list[Any] = []

    def gpu_uuid(self) -> str | None:
        try:
            uuid = str(self._cuda.get_device_properties(self._cuda.current_device()).uuid)
        except (AttributeError, RuntimeError, AssertionError):
            return None
        return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"

    def ready(self) -> bool:
        return bool(self._cuda.is_initialized()) and not self._cuda.is_current_stream_capturing()

    def record(self) -> Any:
        event = self._pool.pop() if self._pool else self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def done(self, event: Any) -> bool:
        return self.ready() and bool(event.query())

    def elapsed_ns(self, first: Any, second: Any) -> int:
        # elapsed_time is float32 milliseconds: neighbours only, or precision is lost.
        return int(first.elapsed_time(second) * 1e6)

    def release(self, event: Any) -> None:
        self._pool.append(event)

    def memory(self) -> tuple[int, int, int, int] | None:
        if not self._cuda.is_initialized():
            return None
        stats = self._cuda.memory_stats_as_nested_dict()
        if not stats:
            return None
        allocated = stats["allocated_bytes"]["all"]
        reserved = stats["reserved_bytes"]["all"]
        return allocated["current"], reserved["current"], allocated["peak"], stats.get("num_alloc_retries", 0)

    def watch_waits(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        """Around `Stream.wait_event` and `wait_stream` of the current stream: how FSDP2 waits for its collectives."""
        current = self._cuda.current_stream

        def is_current(arguments: tuple[Any, ...], _keywords: Mapping[str, Any]) -> bool:
            return bool(arguments[0] == current())

        stream_type = self._cuda.Stream
        return _undo_all(
            [_around(stream_type, name, begins, ends, is_current) for name in ("wait_event", "wait_stream")]
        )

    def watch_copies(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[], None]:
        """Around `Tensor.to` and `Tensor.cuda` of tensors on the host."""
        return _undo_all([_around(self._tensor_type, name, begins, ends, _goes_to_device) for name in ("to", "cuda")])

    def watch_synchronize(self, report: Callable[[int], None]) -> Callable[[], None]:
        """Time the calls that wait for the device: synchronize(), and the tensor methods that copy to the host."""
        undo = [_timed(self._cuda, "synchronize", report, lambda _arguments: True)]
        for method in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__"):
            undo += [_timed(self._tensor_type, method, report, _first_is_on_device)]
        return _undo_all(undo)


def _undo_all(undo: list[Callable[[], None]]) -> Callable[[], None]:
    def restore_all() -> None:
        for restore in undo:
            restore()

    return restore_all


def _goes_to_device(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether `tensor.to(...)` or `.cuda(...)` copies from the host: by the device it names, if it names one."""
    if arguments[0].is_cuda:
        return False
    target = arguments[1] if len(arguments) > 1 else keywords.get("device", "cuda")
    if isinstance(target, str):
        return target.startswith("cuda")
    return (
        isinstance(target, int) or getattr(target, "type", None) == "cuda" or getattr(target, "is_cuda", False) is True
    )


def _first_is_on_device(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[0].is_cuda)


def _timed(
    owner: Any, name: str, report: Callable[[int], None], waits: Callable[[tuple[Any, ...]], bool]
) -> Callable[[], None]:
    """Replace `owner.name` by a version that reports how long it took where it waits; returns the undo."""
    original = getattr(owner, name)

    def timed(*arguments: Any, **keywords: Any) -> Any:
        if not waits(arguments):
            return original(*arguments, **keywords)
        began = time.monotonic_ns()
        try:
            return original(*arguments, **keywords)
        finally:
            report(time.monotonic_ns() - began)

    return _replace(owner, name, original, timed)


def _around(
    owner: Any,
    name: str,
    begins: Callable[[], None],
    ends: Callable[[], None],
    concerns: Callable[[tuple[Any, ...], Mapping[str, Any]], bool],
) -> Callable[[], None]:
    """Replace `owner.name` by a version that calls `begins` and `ends` around the calls that `concerns` picks.

    What fails in ours never reaches the caller: the call goes on unwatched.
    """
    original = getattr(owner, name)

    def around(*arguments: Any, **keywords: Any) -> Any:
        try:
            watched = concerns(arguments, keywords)
            if watched:
                begins()
        except Exception:
            watched = False
        if not watched:
            return original(*arguments, **keywords)
        try:
            return original(*arguments, **keywords)
        finally:
            with suppress(Exception):
                ends()

    return _replace(owner, name, original, around)


def _replace(owner: Any, name: str, original: Any, replacement: Any) -> Callable[[], None]:
    own = vars(owner).get(name)
    replacement.__name__, replacement.__doc__ = name, original.__doc__
    setattr(owner, name, replacement)

    def restore() -> None:
        # Where somebody wrapped ours since, theirs stays, and ours passes through.
        if vars(owner).get(name) is not replacement:
            return
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    return restore


def choose_clock(environ: Mapping[str, str] = os.environ) -> DeviceClock:
    """The clock of this process: the factory a user named, else CUDA where it is in use, else the host.

    Raises ConfigurationError where the named factory cannot be had.
    """
    named = environ.get(DEVICE_CLOCK_VARIABLE, "")
    if named:
        module, _, function = named.partition(":")
        try:
            factory = getattr(importlib.import_module(module), function)
            return cast(DeviceClock, factory())
        except Exception as error:
            raise ConfigurationError(
                f"device clock factory failed: {type(error).__name__}: {error}",
                where=f"{DEVICE_CLOCK_VARIABLE}={named}",
                todo="name a function as module:function that returns a DeviceClock",
            ) from error
    torch = importlib.import_module("torch")
    return CudaClock(torch.cuda, torch.Tensor) if torch.cuda.is_initialized() else HostClock()


def device_undecided() -> bool:
    """Whether a GPU is there that this process has not begun to use: asking more of it now would initialise it."""
    torch = importlib.import_module("torch")
    return bool(torch.cuda.is_available()) and not torch.cuda.is_initialized()
