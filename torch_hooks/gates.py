"""What stands in the place of torch's own functions on the hot path: the reference of `native/gates.c`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankscope.torch_hooks.boundaries import Boundaries


class Listener:
    """What is told in every step: attributes that are called, and may be replaced at any time. They never raise."""

    __slots__ = (
        "backward_begin",
        "backward_end",
        "backward_own_end",
        "data_begin",
        "data_end",
        "optimizer_begin",
        "optimizer_end",
    )
    data_begin: Callable[[Any], object]
    data_end: Callable[[Any], object]
    #: Returns whether `backward_own_end` is to be called.
    backward_begin: Callable[[], bool]
    backward_own_end: Callable[[], object]
    backward_end: Callable[[], object]
    #: Given the arguments of an optimizer's step: itself, perhaps a closure.
    optimizer_begin: Callable[[tuple[Any, ...], dict[str, Any]], object]
    optimizer_end: Callable[[Any], object]


def next_gate(original: Any, listener: Listener) -> Any:
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


def backward_gate(original: Any, listener: Listener, queue_callback: Callable[[Any], None], anchor: Any) -> Any:
    """In the place of `_engine_run_backward`.

    `queue_callback` is the engine's; `anchor` a tensor of ours, whose hooks any root's graph node can be told to run.
    """
    # Only while a backward that is listened to runs: a graph that was kept has the stamp still.
    queued = [True]

    def own_end() -> None:
        listener.backward_own_end()

    def stamp(_gradient: Any) -> None:
        # DDP waits in an engine callback that it queues when its first gradient is ready; callbacks run in the
        # order they were queued, and a hook on a root runs before any gradient is ready.
        if not queued[0]:
            queued[0] = True
            queue_callback(own_end)

    anchor._backward_hooks = OrderedDict(rankscope=stamp)

    def _engine_run_backward(outputs: Any, *arguments: Any, **keywords: Any) -> Any:
        if listener.backward_begin():
            queued[0] = False
            hook_roots(outputs, anchor)
        try:
            return original(outputs, *arguments, **keywords)
        finally:
            queued[0] = True
            listener.backward_end()

    return _engine_run_backward


def hook_roots(outputs: Any, anchor: Any) -> None:
    """Have the hooks of `anchor` run when the engine reaches a root: the roots themselves are left alone.

    What `Tensor.register_hook` does for a tensor's own hooks, at a fraction of its cost. A root that is none of torch's
    tensors (an edge of the graph) has no stamp.
    """
    try:
        for root in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            node = root.grad_fn
            if node is not None:
                node._register_hook_dict(anchor)
    except (AttributeError, RuntimeError, TypeError):
        return


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
