"""The hot path in Python and in C: the same rings and the same answers for the same calls."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import components
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope.clock import ClockAnchor
from rankscope.identity import rank_identity
from rankscope.records import MISSING, GroupKind, GroupRecord, Phase, RecordKind, StepRecord
from rankscope.ring import HEADER_BYTES, SLOT_BYTES, RingWriter, parse_slot
from rankscope.torch_hooks import hot, reference

SLOTS = 4
PHASES = st.sampled_from([int(phase) for phase in Phase])
NS = st.integers(0, 2**40)
SETTABLE = (
    *("phase", "depth", "flags", "sync_count", "work", "loader_ready", "loader_workers", "collate_ns", "loader_cpu_ns"),
    *("loader_io_ns", "backward_count", "microbatches", "runqueue_ns", "hook_ns", "allocated_bytes", "reserved_bytes"),
    *("peak_bytes", "alloc_retries", "issued", "gc_ns", "gc_count", "compile_ns", "recompiles"),
)
#: Where StepRecord.cpu_ns lies in a slot: the thread's own CPU time is no two times the same.
CPU_NS = slice(16 + 8 * 16, 16 + 8 * 17)


def compiled() -> ModuleType:
    """The extension; where it was not built the test is skipped, and fails in CI."""
    try:
        return importlib.import_module("rankscope.torch_hooks._native")
    except ImportError:
        components.missing("the extension was not built: a C compiler, and `make install` again")
        raise


BOTH = pytest.mark.parametrize("find", [compiled, lambda: reference], ids=["compiled", "python"])


def new_ring(directory: str | Path, slots: int = SLOTS) -> RingWriter:
    """A ring of few slots."""
    identity = rank_identity({"RANK": "0", "WORLD_SIZE": "1"}, boot_id="")
    return RingWriter(Path(directory, f"{len(os.listdir(directory))}.ring"), identity, ClockAnchor(0, 0), slots)


def ticking(steps: list[int]) -> Callable[[], int]:
    """A clock that goes on by these steps, over and over."""

    def ticks() -> Iterator[int]:
        now = 10**15
        while True:
            for step in steps:
                now += step
                yield now

    return ticks().__next__


def written(ring: RingWriter) -> bytes:
    """Everything in the ring but its header, with what no two runs share blanked out where its slot is whole."""
    content = bytearray(ring.mapped[:])
    content[:2048] = b""
    for start in range(HEADER_BYTES - 2048, len(content), SLOT_BYTES):
        slot = content[start : start + SLOT_BYTES]
        parsed = parse_slot(bytes(slot))
        if parsed is not None and parsed[1].kind is RecordKind.STEP:
            slot[:4] = bytes(4)
            slot[CPU_NS] = bytes(8)
            content[start : start + SLOT_BYTES] = slot
    return bytes(content)


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


class Device:
    """A device clock whose events are done once it has come so far."""

    def __init__(self, passed: list[int]) -> None:
        self._times = ticking(passed)
        self.allowed, self.reached, self.given_back = True, 0, 0

    def ready(self) -> bool:
        return self.allowed

    def record(self) -> int:
        return self._times()

    def done(self, event: int) -> bool:
        return event <= self.reached

    def elapsed_ns(self, first: int, second: int) -> int:
        return second - first

    def release(self, event: int) -> None:
        self.given_back += event


MARKED = st.one_of(
    st.tuples(st.just("mark"), st.tuples(PHASES, PHASES, NS)),
    st.tuples(st.just("mark"), st.tuples(st.just(3), st.just(4), NS)),
    st.tuples(st.just("wait_begins"), st.tuples(st.sampled_from([4, 12]), NS)),
    st.tuples(st.just("wait_ends"), st.tuples(st.integers(0, 3), NS)),
    st.tuples(st.just("end_step"), st.tuples(NS)),
    st.tuples(st.just("flush"), st.tuples()),
    st.tuples(st.just("used"), st.tuples(st.integers(0, 2), st.integers(0, 3))),
    st.tuples(st.just("reach"), st.integers(0, 10**8)),
    st.tuples(st.just("allow"), st.booleans()),
    st.tuples(st.just("seen"), st.booleans()),
    # More steps than may be outstanding.
    st.tuples(st.just("behind"), st.integers(1, 40)),
)


def play_timeline(
    module: Any, calls: list[tuple[str, Any]], passed: list[int], world_size: int, *, coarse: bool
) -> tuple[list[Any], bytes]:
    """What a timeline asked of its device, and the ring."""
    seen: list[Any] = []
    kinds = (GroupKind.DATA, GroupKind.SHARD, GroupKind.PIPELINE)
    states = [module.GroupState(kind.name.encode(), kind, 2, b"0-1") for kind in kinds]
    device = Device(passed)
    with tempfile.TemporaryDirectory() as directory:
        ring = new_ring(directory, 16)
        timeline = module.DeviceTimeline(device, ring, world_size, coarse=coarse)
        watched: list[Any] | None = states
        for name, value in calls:
            if name == "mark":
                timeline.mark(*value)
            elif name == "wait_begins":
                timeline.wait_begins(*value)
            elif name == "wait_ends":
                timeline.wait_ends(states[value[0]] if value[0] < len(states) else None, value[1])
            elif name == "end_step":
                timeline.end_step(value[0], watched)
            elif name == "flush":
                timeline.flush(watched)
            elif name == "used":
                states[value[0]].count = value[1]
            elif name == "reach":
                device.reached = 10**15 + value
            elif name == "allow":
                device.allowed = value
            elif name == "seen":
                watched = states if value else None
            else:
                for step in range(value):
                    timeline.mark(Phase.FORWARD, Phase.BACKWARD, step)
                    timeline.end_step(step, watched)
            seen.append((device.given_back, timeline.dropped_steps))
        return seen, written(ring)


@settings(deadline=None)
@given(
    st.lists(MARKED, max_size=40),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
    st.integers(1, 2),
    st.booleans(),
)
def test_same_device_times_for_the_same_marks(
    calls: list[tuple[str, Any]], passed: list[int], world_size: int, coarse: bool
) -> None:
    """Boundaries, waits, groups, graph captures and a device far behind: both write the same records."""
    one, other = (play_timeline(module, calls, passed, world_size, coarse=coarse) for module in (compiled(), reference))
    assert one == other


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


WORKS: list[Any] = [object(), object(), None]
OPERATIONS = st.one_of(
    # Gate, process group, work that comes back, the other rank; a work of 3 is an operation that fails.
    st.tuples(st.just("operation"), st.tuples(*(st.integers(0, size) for size in (2, 2, 3, 1)))),
    # Gate, work; the last waits for nothing that is known, or fails.
    st.tuples(st.just("wait"), st.tuples(st.integers(0, 1), st.integers(0, 3))),
    st.tuples(st.just("watch"), st.sampled_from([0, 1, None])),
    st.tuples(st.just("phase"), PHASES),
    st.tuples(st.just("meets"), st.booleans()),
    st.tuples(st.just("timeline"), st.booleans()),
    # An operation that is waited for, twice.
    st.tuples(st.just("usual"), st.integers(0, 2)),
    # More operations than works are remembered.
    st.tuples(st.just("many"), st.integers(0, 1)),
)


def play_collectives(module: Any, calls: list[tuple[str, Any]], steps: list[int]) -> list[Any]:
    """What every call returned or left behind."""
    seen: list[Any] = []
    states = [module.GroupState(name, kind, 2, b"0-1") for kind, name in enumerate((b"a", b"b", b"c"))]
    groups: list[Any] = [object(), object(), object()]
    works = {id(work): at for at, work in enumerate(WORKS)}
    can = {"meet": True}

    class Collectives(module.HotCollectives):  # type: ignore[misc]
        def meet(self, group: Any, name: str) -> Any:
            seen.append(("meet", groups.index(group), name))
            if not can["meet"]:
                raise ValueError("unknown")
            self.states[id(group)] = state = states[groups.index(group)]
            return state

        def sent(self, state: Any, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return state, name, arguments

        def record(self, known: tuple[Any, ...], began_ns: int, waited_ns: int) -> None:
            seen.append((states.index(known[0]), *known[1:], began_ns, waited_ns))

    class Timeline:
        def wait_begins(self, phase: int, host_ns: int) -> None:
            seen.append((phase, host_ns))

        def wait_ends(self, state: Any, host_ns: int) -> None:
            seen.append((states.index(state), host_ns))

        def mark(self, *_arguments: Any) -> None:
            pass

    def original(*arguments: Any, **keywords: Any) -> Any:
        seen.append((len(arguments), keywords))
        if keywords["work"] == 3:
            raise OSError("link down")
        return WORKS[keywords["work"]]

    def stop(error: Exception) -> None:
        seen.append(repr(error))
        collectives.default = None

    with tempfile.TemporaryDirectory() as directory:
        clock = module.Boundaries(new_ring(directory), ticking(steps))
        collectives = Collectives(clock, threading.get_ident(), stop)
        collectives.default = collectives.latest = states[0]
        gates = [
            module.operation_gate(original, collectives, "allreduce", False, False),
            module.operation_gate(original, collectives, "_allgather_base", True, False),
            module.operation_gate(original, collectives, "send", False, True),
        ]
        waits = [module.wait_gate(original, collectives, of_work) for of_work in (True, False)]
        for name, value in calls:
            if name == "operation":
                gate, group, work, peer = value
                try:
                    seen.append(WORKS.index(gates[gate](groups[group], ["tensors"], peer, work=work)))
                except OSError as error:
                    seen.append(str(error))
            elif name == "wait":
                try:
                    waits[value[0]](WORKS[min(value[1], 2)], work=value[1])
                except OSError as error:
                    seen.append(str(error))
            elif name == "watch":
                collectives.default = None if value is None else states[value]
            elif name == "phase":
                clock.switch(value)
            elif name == "meets":
                can["meet"] = value
            elif name == "timeline":
                clock.timeline = Timeline() if value else None
            elif name == "usual":
                work = gates[value](groups[value], ["tensors"], 1, work=0)
                for _ in range(2):
                    waits[0](work, work=0)
            else:
                collectives.works.update(dict.fromkeys(range(600 * value), states[0]))
            of = {works[work]: known for work, known in collectives.works.items() if work in works}
            seen += [len(collectives.works), clock.issued, clock.phase]
            seen += [(at, states.index(known[0] if isinstance(known, tuple) else known)) for at, known in of.items()]
            seen += [(state.count, state.kind, state.wait_ns) for state in states]
            seen += [clock.spent_ns(Phase.COLLECTIVE_WAIT), clock.spent_ns(Phase.BUBBLE), clock.end_wait_ns()]
            seen.append(None if collectives.latest is None else states.index(collectives.latest))
    return seen


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=25), st.lists(st.integers(1, 10**7), min_size=1, max_size=5))
def test_same_waits_for_the_same_operations(calls: list[tuple[str, Any]], steps: list[int]) -> None:
    """Operations of all kinds, waits for them in any order, and what fails: both count and time the same."""
    assert play_collectives(compiled(), calls, steps) == play_collectives(reference, calls, steps)


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


def test_a_device_that_fails_leaves_the_timeline_whole(tmp_path: Path) -> None:
    """Each call of the device may raise, at any step: no event is read twice, nothing crashes."""
    native: Any = compiled()

    class Failing(Device):
        def done(self, event: int) -> bool:
            if event > self.reached:
                raise RuntimeError("device lost")
            return True

    device = Failing([5])
    timeline = native.DeviceTimeline(device, new_ring(tmp_path), 2)
    failures = 0
    for step in range(100):
        timeline.mark(Phase.BACKWARD, Phase.OTHER, step)
        try:
            timeline.end_step(step, None)
        except RuntimeError:
            failures += 1
    assert failures == 100
    assert timeline.dropped_steps == 0


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
    gate = native.backward_gate([loop].count, told, print, Source())
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
