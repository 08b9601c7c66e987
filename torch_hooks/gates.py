"""What stands in the place of torch's own functions on the hot path: the reference of `native/gates.c`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rankscope.torch_hooks.boundaries import Boundaries

#: Key of our hook among a tensor's own; torch's are numbers.
_STAMP = "rankscope"


class HotListener(Protocol):
    """What is told in every step. Implementations never raise; attributes are looked up at each call."""

    data_begin: Callable[[Any], None]
    data_end: Callable[[Any], None]
    #: Returns whether `backward_own_end` is to be called.
    backward_begin: Callable[[], bool]
    backward_own_end: Callable[[], None]
    backward_end: Callable[[], None]


def next_gate(original: Any, listener: HotListener) -> Any:
    """In the place of a data loader's `__next__`."""

    def __next__(iterator: Any) -> Any:
        listener.data_begin(iterator)
        batch = None
        try:
            batch = original(iterator)
            return batch
        finally:
            listener.data_end(batch)

    return __next__


def backward_gate(original: Any, listener: HotListener, queue_callback: Callable[[Any], None]) -> Any:
    """In the place of `_engine_run_backward`; `queue_callback` is the engine's."""
    queued = [False]

    def own_end() -> None:
        listener.backward_own_end()

    def stamp(_gradient: Any) -> None:
        # DDP waits in an engine callback that it queues when its first gradient is ready; callbacks run in the
        # order they were queued, and a hook on a root runs before any gradient is ready.
        if not queued[0]:
            queued[0] = True
            queue_callback(own_end)

    def _engine_run_backward(outputs: Any, *arguments: Any, **keywords: Any) -> Any:
        roots = []
        if listener.backward_begin():
            queued[0] = False
            roots = hook_roots(outputs, stamp)
        try:
            return original(outputs, *arguments, **keywords)
        finally:
            for hooks in roots:
                hooks.pop(_STAMP, None)
            listener.backward_end()

    return _engine_run_backward


def hook_roots(outputs: Any, hook: Callable[[Any], None]) -> list[Any]:
    """Have `hook` run when the engine reaches a root, a third of the cost of `register_hook`; returns where it was put.

    What `Tensor.register_hook` does, without the handle: the hooks of a tensor are an ordered dictionary that its graph
    node knows. A root that is none of torch's tensors (an edge of the graph) has no hook.
    """
    placed = []
    try:
        for root in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            node = root.grad_fn
            if node is not None:
                hooks = root._backward_hooks
                if hooks is None:
                    root._backward_hooks = hooks = OrderedDict()
                    node._register_hook_dict(root)
                hooks[_STAMP] = hook
                placed.append(hooks)
    except (AttributeError, RuntimeError, TypeError):
        return placed
    return placed


def collate_gate(collate: Callable[[Any], Any], clock: Boundaries) -> Callable[[Any], Any]:
    """In the place of a fetcher's collate function: its time is added to `clock.collate_ns`."""
    now = time.monotonic_ns

    def timed_collate(samples: Any) -> Any:
        began = now()
        try:
            return collate(samples)
        finally:
            clock.collate_ns += now() - began

    return timed_collate
