"""The hot path in Python and in C: the same rings and the same answers for the same calls."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_hooks.both_paths import BOTH, NS, PHASES, SLOTS, Device, compiled, new_ring, ticking, written

from rankscope.records import MISSING, GroupKind, GroupRecord, Phase, StepRecord
from rankscope.ring import HEADER_BYTES, SLOT_BYTES, parse_slot
from rankscope.torch_hooks import hot, reference

SETTABLE = (
    *("phase", "depth", "flags", "sync_count", "work", "loader_ready", "loader_workers", "collate_ns", "loader_cpu_ns"),
    *("loader_io_ns", "backward_count", "microbatches", "runqueue_ns", "hook_ns", "allocated_bytes", "reserved_bytes"),
    *("peak_bytes", "alloc_retries", "issued", "gc_ns", "gc_count", "compile_ns", "recompiles"),
)


def small(name: str) -> st.SearchStrategy[int]:
    """Values that the member of this name can have."""
    return {"phase": PHASES, "depth": st.integers(0, 200)}.get(name, st.integers(MISSING, 2**62))


CALLS = st.one_of(
    st.tuples(st.just("switch"), st.tuples(PHASES)),
    st.tuples(st.just("synchronized"), st.tuples(NS)),
    st.tuples(st.just("wait_begins"), st.tuples(PHASES)),
    st.tuples(st.just("wait_ends"), st.tuples(st.integers(10**14, 10**15), PHASES)),
    st.tuples(st.just("spent_ns"), st.tuples(PHASES)),
    st.tuples(st.just("end_wait_ns"), st.tuples()),
    st.tuples(st.just("end_step"), st.tuples(PHASES)),
    *(st.tuples(st.just(name), small(name)) for name in SETTABLE),
    st.tuples(st.just("sampled"), st.booleans()),
    st.tuples(st.just("copies_watched"), st.booleans()),
    st.tuples(st.just("group"), st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 9), st.integers(0, 9))),
    st.tuples(st.just("groups"), st.booleans()),
    st.tuples(st.just("on_step"), st.booleans()),
    st.tuples(st.just("memory"), st.sampled_from([None, (1, 2, 3, 4)])),
)


def play(module: Any, calls: list[tuple[str, Any]], steps: list[int], *, device: bool) -> tuple[list[Any], bytes]:
    """What every call returned or left behind, and the ring."""
    seen: list[Any] = []

    class Clock(module.Boundaries):  # type: ignore[misc]
        def explain(self) -> None:
            seen.append("explain")
            self.recompiles += 1

        def look(self) -> None:
            seen.append("look")

    class Timeline:
        def mark(self, *arguments: Any) -> None:
            seen.append(arguments)

        def end_step(self, step: int, states: Any) -> None:
            seen.append((step, None if states is None else len(states)))

    sequences = [[0], [7]]
    states = [
        module.GroupState(b"default", 1, 8, b"0-7", lambda: sequences[0][0]),
        module.GroupState("größe".encode(), 3, 2, b"0,4", lambda: sequences[1][0]),
    ]
    with tempfile.TemporaryDirectory() as directory:
        ring = new_ring(directory)
        clock = Clock(ring, ticking(steps))
        clock.timeline = Timeline() if device else None
        for name, value in calls:
            if name in SETTABLE or name in ("sampled", "copies_watched"):
                setattr(clock, name, value)
            elif name == "group":
                at, states[value[0]].count, states[value[0]].wait_ns, more = value
                sequences[at][0] += more
            elif name == "groups":
                clock.group_states = states if value else None
            elif name == "on_step":
                clock.on_step = partial(seen.append, "on_step") if value else None
            elif name == "memory":
                clock.memory = lambda value=value: value
            else:
                seen.append(getattr(clock, name)(*value))
            seen += [clock.last_step_ns, clock.last_data_wait_ns, clock.timed_ns, clock.start_ns, clock.sampled]
            seen += [getattr(clock, name) for name in ("step", *SETTABLE)]
            seen += [(state.count, state.wait_ns, state.sequence) for state in states]
        return seen, written(ring)


@settings(deadline=None)
@given(st.lists(CALLS, max_size=30), st.lists(st.integers(0, 10**9), min_size=1, max_size=5), st.booleans())
def test_same_ring_for_the_same_calls(calls: list[tuple[str, Any]], steps: list[int], device: bool) -> None:
    """Whatever is called in whatever order, both write the same bytes and answer the same."""
    assert play(compiled(), calls, steps, device=device) == play(reference, calls, steps, device=device)


@given(st.binary(max_size=400))
def test_same_checksum(content: bytes) -> None:
    """Of any length, by multiplication and by tables: what zlib says."""
    assert compiled().crc32(content, True) == compiled().crc32(content, False) == zlib.crc32(content)


@BOTH
def test_a_record_reads_back(find: Callable[[], Any], tmp_path: Path) -> None:
    """A step's and a group's records are what a reader of the ring takes them for."""
    module: Any = find()
    ring = new_ring(tmp_path)
    clock = module.Boundaries(ring, ticking([5]))
    numbers = iter((3, 6))
    state = module.GroupState(b"default", GroupKind.DATA, 2, b"0-1", lambda: next(numbers))
    clock.group_states = [state]
    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.COLLECTIVE_WAIT):
        clock.sampled = False
        clock.switch(phase)
    clock.sampled = True
    clock.backward_count = 1
    clock.end_step(Phase.OTHER)
    assert ring.written == 2
    records = [parse_slot(ring.mapped[HEADER_BYTES + at * SLOT_BYTES :][:SLOT_BYTES]) for at in (0, 1)]
    assert records[0] is not None
    assert records[1] is not None
    (first, step), (second, group) = records[0], records[1]
    assert isinstance(step, StepRecord)
    assert isinstance(group, GroupRecord)
    assert (first, step.forward_ns, step.backward_own_ns, step.backward_ns) == (1, 5, 5, 10)
    assert (step.collective_wait_ns, step.compile_ns, step.flags, step.collectives) == (5, 0, 1, 0)
    assert sum(step.phases_ns().values()) == step.end_ns - step.start_ns == 20
    assert (second, group.count, group.own_ns, group.wait_ns, group.members) == (2, 1, 10, 5, "0-1")
    assert (group.first_sequence, group.last_sequence, group.contaminated) == (4, 6, 0)


@BOTH
def test_usage(find: Callable[[], Any], tmp_path: Path) -> None:
    """CPU time is this thread's; the wait for a core is the second number of its schedstat, and missing where that
    says nothing."""
    clock = find().Boundaries(new_ring(tmp_path))
    file = tmp_path / "schedstat"
    file.write_text("1000 500 7\n")
    with file.open("r+") as opened:
        clock.schedstat = opened.fileno()
        clock.read_usage()
        assert clock.runqueue_ns == 500
        assert clock.cpu_ns > 0
        clock.step = 3
        opened.write("2000 1100 9\n")
        opened.flush()
        clock.read_usage()
        assert clock.runqueue_ns == 200
        for nonsense in ("", "1", "1 x", "  "):
            clock.schedstat = opened.fileno()
            opened.seek(0)
            opened.truncate()
            opened.write(nonsense)
            opened.flush()
            clock.read_usage()
            assert (clock.schedstat, clock.runqueue_ns) == (-1, MISSING)
    clock.schedstat = 10_000
    clock.read_usage()
    assert clock.schedstat == -1


def test_nonsense_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """Wrong types, phases that are none, rings that are none, objects that were never made, a clock that fails."""
    native: Any = compiled()
    ring = new_ring(tmp_path)

    class Odd:
        mapped, slots, counter = ring.mapped, SLOTS, ring.counter

    for wrong in ({"slots": 0}, {"slots": SLOTS + 1}, {"slots": "x"}, {"mapped": b"x" * 8192}, {"counter": b"x" * 8}):
        with pytest.raises((BufferError, TypeError, ValueError)):
            native.Boundaries(type("Wrong", (Odd,), wrong))
    with pytest.raises(AttributeError):
        native.Boundaries(None)
    clock = native.Boundaries(ring)
    with pytest.raises(ValueError, match="once"):
        clock.__init__(ring)
    for phase in (-1, len(Phase), 2**70, "x", None):
        for method in (clock.switch, clock.wait_begins, clock.spent_ns, clock.end_step):
            with pytest.raises((IndexError, OverflowError, TypeError)):
                method(phase)
    for states in ("x", [], [1], [None], [native.GroupState.__new__(native.GroupState)]):
        clock.group_states = states
        with pytest.raises(TypeError):
            clock.end_step(Phase.FORWARD)
    clock.phase = 99
    with pytest.raises(IndexError):
        clock.switch(0)
    empty = native.Boundaries.__new__(native.Boundaries)
    for call in (lambda: empty.switch(0), lambda: empty.wait_begins(0), lambda: empty.wait_ends(0, 0)):
        with pytest.raises(ValueError, match="no ring"):
            call()
    with pytest.raises(ZeroDivisionError):
        native.Boundaries(ring, lambda: 1 // 0)
    with pytest.raises(ValueError, match="48 bytes"):
        native.GroupState(b"x" * 49, 0, 0, b"")
    loop = native.HotLoop.__new__(native.HotLoop)
    assert loop.backward_begin() is False
    for call in (loop.backward_own_end, loop.backward_end, lambda: loop.data_begin(1), lambda: loop.data_end(1)):
        assert call() is None
    with pytest.raises(ValueError, match="no clock"):
        loop.end_step(0)
    loop = native.HotLoop(native.Boundaries(ring), threading.get_ident(), print, bool, bool)
    for name in ("asked", "training_sources"):
        with pytest.raises(TypeError):
            setattr(loop, name, [])
    with pytest.raises(TypeError):
        loop.optimizer_begin()
    empty_timeline = native.DeviceTimeline.__new__(native.DeviceTimeline)
    for call in (lambda: empty_timeline.mark(1, 2, 3), lambda: empty_timeline.flush(None)):
        with pytest.raises(ValueError, match="no clock"):
            call()
    timeline = native.DeviceTimeline(Device([1]), ring, 2)
    for wrong in ((-2, 1, 1), (1, 99, 1), (1, 2, 2**70), (1, 2, 3, "group")):
        with pytest.raises((IndexError, OverflowError, TypeError)):
            timeline.mark(*wrong)
    timeline.mark(1, 2, 3)
    for states in ("x", [1]):
        with pytest.raises(TypeError):
            timeline.end_step(1, states)
    broken = native.DeviceTimeline(object(), ring, 2)
    with pytest.raises(AttributeError):
        broken.mark(1, 2, 3)


def test_nothing_is_kept(tmp_path: Path) -> None:
    """With the last reference the ring can be closed, cycles through marks, loops and gates included."""
    native: Any = compiled()
    ring = new_ring(tmp_path)
    clock = native.Boundaries(ring)
    clock.on_step = [clock].count
    loop = native.HotLoop(clock, threading.get_ident(), [clock].count, bool, bool)
    loop.quiet_iterator = loop.data_begin
    told = native.Listener()
    told.data_begin, told.data_end = loop.data_begin, told
    gate = native.backward_gate([loop].count, told, print, SimpleNamespace())
    gate.itself = gate
    del clock, loop, gate, told
    gc.collect()
    ring.close()


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user may keep to Python; an extension that writes other records than this source is passed by."""
    assert hot.choose({"RANKSCOPE_BOUNDARIES": "python"}) is reference
    native = compiled()
    assert hot.choose({}) is native
    with monkeypatch.context() as patch:
        patch.delattr(native, "Listener")
        assert hot.choose({}) is reference
    monkeypatch.setattr(native, "LAYOUTS", (1, 2))
    assert hot.choose({}) is reference


def test_loops_in_python() -> None:
    """The loops of the other tests, watched without the extension, give the same steps."""
    tests = str(Path(__file__).with_name("test_steps.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", tests]
    command += ["-k", "plain_loop or accumulation or error_of_ours"]
    done = subprocess.run(
        command, env=os.environ | {"RANKSCOPE_BOUNDARIES": "python"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
