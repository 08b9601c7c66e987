"""What stands in the place of torch's functions: in Python and in C, called like what it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.torch_hooks.both_paths import BOTH


def listening(module: Any, calls: list[Any], *, stamps: bool = False) -> Any:
    """A listener that writes down what it is told."""
    listener = module.Listener()

    def begins() -> bool:
        calls.append("backward_begin")
        return stamps

    listener.data_begin = lambda _iterator: calls.append("data_begin")
    listener.data_end = lambda batch: calls.append(("data_end", batch))
    listener.backward_begin = begins
    listener.backward_own_end = lambda: calls.append("own_end")
    listener.backward_end = lambda: calls.append("backward_end")
    return listener


def interrupted(*_arguments: Any) -> None:
    """Somebody pressed Ctrl-C."""
    raise KeyboardInterrupt


@BOTH
def test_next(find: Callable[[], Any]) -> None:
    """As `__next__` of a class: batches pass, the end is told, and what the original raises goes on."""
    calls: list[Any] = []
    told = listening(find(), calls)

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
    assert calls == [
        "data_begin",
        ("data_end", 1),
        "data_begin",
        ("data_end", 0),
        "data_begin",
        ("data_end", None),
    ]
    failing = Numbers()
    failing.left = 20
    calls.clear()
    with pytest.raises(OSError, match="disk"):
        next(failing)
    assert calls == ["data_begin", ("data_end", None)]
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
        calls: list[Any] = []
        told = listening(find(), calls, stamps=stamps)
        gate = find().backward_gate(_engine_run_backward, told, queue, torch.zeros(()))
        weight = torch.ones(3, requires_grad=True)
        loss = (weight * weight).sum()
        seen: list[Any] = []
        loss.register_hook(lambda _gradient, seen=seen: seen.append(1))
        gate((loss,), (torch.ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True)
        assert weight.grad is not None
        assert weight.grad.tolist() == [2, 2, 2]
        own = ["own_end"] if stamps else []
        assert calls == ["backward_begin", *own, "backward_end"]
        assert seen == [1]
        assert len(loss._backward_hooks or {}) == 1
        with pytest.raises(RuntimeError):
            gate((loss,), (torch.ones(()),), False, False, (), allow_unreachable=True, accumulate_grad=True)
        assert calls[-1] == "backward_end"


@BOTH
def test_a_root_that_is_no_tensor(find: Callable[[], Any]) -> None:
    """An edge of the graph is a root too: it runs, unstamped."""
    from torch.autograd import Variable, _engine_run_backward
    from torch.autograd.graph import get_gradient_edge

    calls: list[Any] = []
    told = listening(find(), calls, stamps=True)
    queue = Variable._execution_engine.queue_callback
    gate = find().backward_gate(_engine_run_backward, told, queue, torch.zeros(()))
    weight = torch.ones(3, requires_grad=True)
    edge = get_gradient_edge((weight * 2).sum())
    gate((edge,), (torch.ones(()),), True, False, (), allow_unreachable=True, accumulate_grad=True)
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 2, 2]
    assert calls == ["backward_begin", "backward_end"]


@BOTH
def test_roots_are_left_as_they_were(find: Callable[[], Any]) -> None:
    """No hook is put among a root's own; several roots end once; a graph that is kept and runs unheard says nothing;
    a root's node may be a custom function's, or have several outputs."""
    from torch.autograd import Variable, _engine_run_backward

    calls: list[Any] = []
    told = listening(find(), calls, stamps=True)
    queue = Variable._execution_engine.queue_callback
    gate = find().backward_gate(_engine_run_backward, told, queue, torch.zeros(()))
    keywords = {"allow_unreachable": True, "accumulate_grad": True}
    heard = ["backward_begin", "own_end", "backward_end"]
    weight = torch.ones(3, requires_grad=True)
    first, second = (weight * 2).sum(), (weight * 3).sum()
    gate((first, second), (torch.ones(()), torch.ones(())), True, False, (), **keywords)
    assert (first._backward_hooks, second._backward_hooks) == (None, None)
    assert calls == heard
    _engine_run_backward((first,), (torch.ones(()),), True, False, (), **keywords)
    assert calls == heard
    gate((first,), (torch.ones(()),), True, False, (), **keywords)
    assert calls == heard * 2

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: Any) -> Any:
            return 2 * value

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            return 2 * gradients[0]

    gate((Doubled.apply(weight.sum()),), (torch.ones(()),), False, False, (), **keywords)
    _, last = (weight * 2).split([1, 2])
    gate((last,), (torch.ones(2),), False, False, (), **keywords)
    assert calls == heard * 4


@BOTH
def test_what_the_listener_lets_out(find: Callable[[], Any]) -> None:
    """Only what is no Exception gets out of a listener; it arrives, and nothing crashes. Nor does one without ears."""
    told = listening(find(), [])
    told.data_end = told.backward_end = interrupted
    gate = find().next_gate(lambda _iterator: 1, told)
    with pytest.raises(KeyboardInterrupt):
        gate(object())
    failing = find().backward_gate(lambda *_: 1 // 0, told, print, torch.zeros(()))
    with pytest.raises(KeyboardInterrupt):
        failing(())
    with pytest.raises(AttributeError):
        find().next_gate(lambda _iterator: 1, find().Listener())(object())


@BOTH
def test_collate(find: Callable[[], Any], tmp_path: Any) -> None:
    """Its time is counted, whether it returns or raises."""
    from tests.torch_hooks.both_paths import new_ring

    clock = find().Boundaries(new_ring(tmp_path))
    clock.collate_ns = 0
    assert find().collate_gate(list, clock)((1, 2)) == [1, 2]
    assert clock.collate_ns > 0
    before = clock.collate_ns
    with pytest.raises(ZeroDivisionError):
        find().collate_gate(lambda samples: samples // 0, clock)(1)
    assert clock.collate_ns > before
