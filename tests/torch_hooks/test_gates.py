"""What stands in the place of torch's functions: in Python and in C, called like what it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.torch_hooks.test_native import BOTH


class Told:
    """A listener that remembers what it was told."""

    def __init__(self, *, stamps: bool = False) -> None:
        self.calls: list[Any] = []
        self._stamps = stamps

    def data_begin(self, iterator: Any) -> None:
        self.calls.append("data_begin")

    def data_end(self, batch: Any) -> None:
        self.calls.append(("data_end", batch))

    def backward_begin(self) -> bool:
        self.calls.append("backward_begin")
        return self._stamps

    def backward_own_end(self) -> None:
        self.calls.append("own_end")

    def backward_end(self) -> None:
        self.calls.append("backward_end")


@BOTH
def test_next(find: Callable[[], Any]) -> None:
    """As `__next__` of a class: batches pass, the end is told, and what the original raises goes on."""
    told = Told()

    class Numbers:
        def __init__(self) -> None:
            self.left = 2

        def __iter__(self) -> Numbers:
            return self

        def __next__(self) -> int:
            if not self.left:
                raise StopIteration
            self.left -= 1
            if self.left > 10:
                raise OSError("disk")
            return self.left

    original = Numbers.__next__
    Numbers.__next__ = functools.wraps(original)(find().next_gate(original, told))  # type: ignore[method-assign]
    assert list(Numbers()) == [1, 0]
    assert told.calls == [
        "data_begin",
        ("data_end", 1),
        "data_begin",
        ("data_end", 0),
        "data_begin",
        ("data_end", None),
    ]
    failing = Numbers()
    failing.left = 20
    told.calls.clear()
    with pytest.raises(OSError, match="disk"):
        next(failing)
    assert told.calls == ["data_begin", ("data_end", None)]
    assert failing.__next__.__name__ == "__next__"
    assert Numbers.__next__.__wrapped__ is original  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        Numbers.__next__()  # type: ignore[call-arg]


@BOTH
def test_backward(find: Callable[[], Any]) -> None:
    """Gradients are the same, own work ends inside, hooks of the user stay, and ours are gone after."""
    from torch.autograd import Variable, _engine_run_backward

    queue = Variable._execution_engine.queue_callback
    for stamps in (False, True):
        told = Told(stamps=stamps)
        gate = find().backward_gate(_engine_run_backward, told, queue)
        weight = torch.ones(3, requires_grad=True)
        loss = (weight * weight).sum()
        seen: list[Any] = []
        loss.register_hook(lambda _gradient, seen=seen: seen.append(1))
        gate((loss,), (torch.ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True)
        assert weight.grad is not None
        assert weight.grad.tolist() == [2, 2, 2]
        own = ["own_end"] if stamps else []
        assert told.calls == ["backward_begin", *own, "backward_end"]
        assert seen == [1]
        assert list(loss._backward_hooks or {}) != ["rankscope"]
        with pytest.raises(RuntimeError):
            gate((loss,), (torch.ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True)
        assert told.calls[-1] == "backward_end"


@BOTH
def test_a_root_that_is_no_tensor(find: Callable[[], Any]) -> None:
    """An edge of the graph is a root too: it runs, unstamped."""
    from torch.autograd import Variable, _engine_run_backward
    from torch.autograd.graph import get_gradient_edge

    told = Told(stamps=True)
    gate = find().backward_gate(_engine_run_backward, told, Variable._execution_engine.queue_callback)
    weight = torch.ones(3, requires_grad=True)
    edge = get_gradient_edge((weight * 2).sum())
    gate((edge,), (torch.ones(()),), True, False, (), allow_unreachable=True, accumulate_grad=True)
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 2, 2]
    assert told.calls == ["backward_begin", "backward_end"]


@BOTH
def test_what_the_listener_lets_out(find: Callable[[], Any]) -> None:
    """Only what is no Exception gets out of a listener; it arrives, and nothing crashes."""

    class Interrupted(Told):
        def data_end(self, batch: Any) -> None:
            raise KeyboardInterrupt

        def backward_end(self) -> None:
            raise KeyboardInterrupt

    gate = find().next_gate(lambda _iterator: 1, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        gate(object())
    failing = find().backward_gate(lambda *_: 1 // 0, Interrupted(), print)
    with pytest.raises(KeyboardInterrupt):
        failing(())


@BOTH
def test_collate(find: Callable[[], Any], tmp_path: Any) -> None:
    """Its time is counted, whether it returns or raises."""
    from tests.torch_hooks.test_native import new_ring

    clock = find().Boundaries(new_ring(tmp_path))
    clock.collate_ns = 0
    assert find().collate_gate(list, clock)((1, 2)) == [1, 2]
    assert clock.collate_ns > 0
    before = clock.collate_ns
    with pytest.raises(ZeroDivisionError):
        find().collate_gate(lambda samples: samples // 0, clock)(1)
    assert clock.collate_ns > before
