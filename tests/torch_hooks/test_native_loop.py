"""What the choke points tell the loop, in Python and in C: the same steps for the same events."""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_hooks.both_paths import BOTH, PHASES, compiled, new_ring, ticking, written

from rankscope.records import MISSING, Phase
from rankscope.torch_hooks import reference


class Source:
    """A dataset, or a loader's iterator of one."""

    def __init__(self, dataset: object = None) -> None:
        if dataset is not None:
            self._dataset = dataset


class Sized:
    """A batch of so many elements; one that fails where it is None."""

    def __init__(self, elements: int | None) -> None:
        self._elements = elements

    def numel(self) -> int:
        if self._elements is None:
            raise ValueError("no size")
        return self._elements


_DATASETS = [Source(), Source()]
ITERATORS = [Source(_DATASETS[0]), Source(_DATASETS[0]), Source(_DATASETS[1]), Source()]
BATCHES = [None, Sized(5), [Sized(6)], ((Sized(7), 1), 2), [], {"x": Sized(8)}, Sized(None), "text"]
EVENTS = st.one_of(
    st.tuples(st.just("data_begin"), st.sampled_from(range(len(ITERATORS)))),
    st.tuples(st.just("data_end"), st.sampled_from(range(len(BATCHES)))),
    *(st.tuples(st.just(name), st.none()) for name in ("backward_begin", "backward_own_end", "backward_end")),
    st.tuples(st.just("optimizer_begin"), st.sampled_from([((1,), {}), ((1, 2), {}), ((1,), {"closure": 3})])),
    st.tuples(st.just("optimizer_end"), st.none()),
    st.tuples(st.just("end_step"), PHASES),
    *(st.tuples(st.just(name), st.booleans()) for name in ("explicit", "stamps", "grad", "made", "rule_settled")),
    st.tuples(st.just("quiet"), st.sampled_from([*range(len(ITERATORS)), None])),
    # A usual step, so that what needs several of them is reached.
    st.tuples(st.just("usual"), st.integers(1, 3)),
)
USUAL: tuple[tuple[str, Any], ...] = (
    *(("data_begin", 0), ("data_end", 1), ("backward_begin", None), ("backward_own_end", None), ("backward_end", None)),
    *(("optimizer_begin", ((1,), {})), ("optimizer_end", None)),
)


def play_loop(module: Any, events: list[tuple[str, Any]], steps: list[int]) -> tuple[list[Any], bytes]:
    """What every event answered or left behind, and the ring."""
    seen: list[Any] = []
    said = {"grad": True, "made": True}

    class Loop(module.HotLoop):  # type: ignore[misc]
        def settle_rule(self) -> None:
            seen.append("settle_rule")
            self.rule_settled = self.optimizer_seen

        def look_into_loader(self, iterator: Any) -> None:
            seen.append(("look_into_loader", ITERATORS.index(iterator)))

        def work_of(self, batch: Any) -> int:
            seen.append("work_of")
            return MISSING

        def updated(self) -> None:
            seen.append("updated")
            self.stepped = True

        def optimizer_stepped(self, optimizer: Any) -> None:
            seen.append(optimizer)
            self.end_step(Phase.FORWARD)

        def watch_copies(self) -> None:
            seen.append("watch_copies")

        def unwatch_copies(self) -> None:
            seen.append("unwatch_copies")

    with tempfile.TemporaryDirectory() as directory:
        ring = new_ring(directory)
        clock = module.Boundaries(ring, ticking(steps))
        asked = (lambda: said["grad"]), (lambda: said["made"])
        loop = Loop(clock, threading.get_ident(), lambda error: seen.append(repr(error)), *asked)
        names = ("explicit", "stamps", "rule_settled", "loader_seen", "stepped", "updated_in_backward", "closure")
        names += ("optimizer_seen", "optimizer_depth", "usual_backwards", "last_asked", "training_sources", "asked")
        for event, value in events:
            for name, given_value in USUAL * value if event == "usual" else ((event, value),):
                if name in ("grad", "made"):
                    said[name] = given_value
                elif name in ("explicit", "stamps", "rule_settled"):
                    setattr(loop, name, given_value)
                elif name == "quiet":
                    loop.quiet_iterator = None if given_value is None else weakref.ref(ITERATORS[given_value])
                elif name in ("data_begin", "data_end"):
                    seen.append(getattr(loop, name)((ITERATORS if name == "data_begin" else BATCHES)[given_value]))
                elif name == "optimizer_begin":
                    seen.append(loop.optimizer_begin(*given_value))
                elif name in ("optimizer_end", "end_step"):
                    seen.append(getattr(loop, name)(given_value))
                else:
                    seen.append(getattr(loop, name)())
                # The depth is part of the status word: as in a real loop it does not go below nothing.
                clock.depth = max(0, clock.depth)
                seen += [getattr(loop, name) for name in names[:-2]]
                seen += [set(loop.training_sources), dict(loop.asked)]
                seen += [clock.step, clock.phase, clock.depth, clock.flags, clock.work, clock.backward_count]
        return seen, written(ring)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=25), st.lists(st.integers(1, 10**7), min_size=1, max_size=5))
def test_same_steps_for_the_same_events(events: list[tuple[str, Any]], steps: list[int]) -> None:
    """Loaders, backwards, optimizers and closures in any order: both see the same steps and phases."""
    assert play_loop(compiled(), events, steps) == play_loop(reference, events, steps)


@BOTH
def test_another_thread_is_not_listened_to(find: Callable[[], Any], tmp_path: Path) -> None:
    """Only the end of backward's own work may come from a thread of the engine."""
    module: Any = find()
    clock = module.Boundaries(new_ring(tmp_path))
    errors: list[Exception] = []
    loop = module.HotLoop(clock, threading.get_ident(), errors.append, lambda: True, lambda: True)

    def other() -> None:
        loop.data_begin(ITERATORS[0])
        loop.data_end(Sized(3))
        assert loop.backward_begin() is False
        loop.backward_end()
        loop.optimizer_begin((), {})
        loop.optimizer_end(None)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (clock.phase, clock.depth, loop.loader_seen, errors) == (Phase.NONE, 0, False, [])
    clock.sampled = False
    loop.backward_begin()
    thread = threading.Thread(target=loop.backward_own_end)
    thread.start()
    thread.join()
    assert clock.phase == Phase.COLLECTIVE_WAIT


@BOTH
def test_what_is_no_exception_goes_on(find: Callable[[], Any], tmp_path: Path) -> None:
    """A keyboard interrupt inside ours is the user's, as in any Python function; an error is ours and is told."""
    module: Any = find()
    told: list[Exception] = []

    def interrupted() -> bool:
        raise KeyboardInterrupt

    clock = module.Boundaries(new_ring(tmp_path))
    loop = module.HotLoop(clock, threading.get_ident(), told.append, interrupted, bool)
    with pytest.raises(KeyboardInterrupt):
        loop.data_begin(ITERATORS[0])
    assert told == []
    loop = module.HotLoop(clock, threading.get_ident(), told.append, lambda: 1 // 0, bool)
    assert loop.data_begin(ITERATORS[0]) is None
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert told[0].__traceback__ is not None
