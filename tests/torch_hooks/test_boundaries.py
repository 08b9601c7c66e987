"""The boundaries in Python and in C: the same ring for the same calls, and the same steps of real loops."""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.records import MISSING, Phase, StepRecord
from rankscope.ring import HEADER_BYTES, SLOT_BYTES, parse_slot
from rankscope.torch_hooks.boundaries import Boundaries, fastest, name_of

SLOTS = 4
PHASES = st.sampled_from([int(phase) for phase in Phase])
NS = st.integers(0, 2**40)
ANY = st.integers(MISSING, 2**63 - 1)
SETTABLE = (
    *("phase", "depth", "flags", "sync_count", "work", "loader_ready", "loader_workers", "collate_ns", "loader_cpu_ns"),
    *("loader_io_ns", "backward_count", "microbatches", "cpu_ns", "runqueue_ns", "hook_ns", "allocated_bytes"),
    *("reserved_bytes", "peak_bytes", "alloc_retries"),
)


def compiled() -> type[Boundaries]:
    """The extension's type; where it was not built the test is skipped."""
    try:
        kind: Any = importlib.import_module("rankscope.torch_hooks._boundaries")
    except ImportError:
        pytest.skip("the extension was not built")
    return kind.Boundaries  # type: ignore[no-any-return]


def ticking(steps: list[int]) -> Callable[[], int]:
    """A clock that goes on by these steps, over and over."""

    def ticks() -> Iterator[int]:
        now = 10**15
        while True:
            for step in steps:
                now += step
                yield now

    return ticks().__next__


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
    st.tuples(st.just("write_step"), st.tuples(st.integers(1, 9), NS, NS, NS, ANY, ANY, NS, ANY)),
    st.tuples(st.just("next_step"), st.tuples(st.integers(10**15, 2 * 10**15))),
    *(st.tuples(st.just(name), small(name)) for name in SETTABLE),
    st.tuples(st.just("sampled"), st.booleans()),
    st.tuples(st.just("copies_watched"), st.booleans()),
)


def play(kind: type[Boundaries], calls: list[tuple[str, Any]], steps: list[int]) -> tuple[list[Any], bytes]:
    """What every call returned or left behind, and the ring."""
    ring = mmap.mmap(-1, HEADER_BYTES + SLOTS * SLOT_BYTES)
    boundaries = kind(ring, SLOTS, ticking(steps))
    seen: list[Any] = []
    marks: list[tuple[int, int, int]] = []
    boundaries.timeline_mark = lambda *mark: marks.append(mark)
    for name, value in calls:
        if name in SETTABLE or name in ("sampled", "copies_watched"):
            setattr(boundaries, name, value)
        else:
            seen.append(getattr(boundaries, name)(*value))
        seen += [boundaries.last_step_ns, boundaries.last_data_wait_ns, boundaries.timed_ns, boundaries.start_ns]
        seen += [getattr(boundaries, name) for name in ("step", *SETTABLE)]
    return [seen, marks], bytes(ring)


@given(st.lists(CALLS, max_size=30), st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_same_ring_for_the_same_calls(calls: list[tuple[str, Any]], steps: list[int]) -> None:
    """Whatever is called in whatever order, both write the same bytes and answer the same."""
    assert play(compiled(), calls, steps) == play(Boundaries, calls, steps)


@pytest.mark.parametrize("find", [compiled, lambda: Boundaries], ids=["compiled", "python"])
def test_a_record_reads_back(find: Callable[[], type[Boundaries]]) -> None:
    """A step's record is what a reader of the ring takes it for."""
    ring = mmap.mmap(-1, HEADER_BYTES + SLOTS * SLOT_BYTES)
    boundaries = find()(ring, SLOTS, ticking([5]))
    boundaries.sampled = False
    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.COLLECTIVE_WAIT, Phase.OTHER):
        end = boundaries.switch(phase)
    boundaries.write_step(6, end, 0, 0, MISSING, 0, 1, MISSING)
    parsed = parse_slot(ring[HEADER_BYTES + SLOT_BYTES : HEADER_BYTES + 2 * SLOT_BYTES])
    assert parsed is not None
    sequence, record = parsed
    assert isinstance(record, StepRecord)
    assert (sequence, record.forward_ns, record.backward_own_ns, record.backward_ns) == (6, 5, 5, 10)
    assert (record.collective_wait_ns, record.compile_ns, record.flags) == (5, None, 1)
    assert sum(record.phases_ns().values()) == record.end_ns - record.start_ns == 20


def test_nonsense_is_an_error_and_no_crash() -> None:
    """Wrong types, phases that are none, rings too small, no ring, a clock that fails."""
    kind: Any = compiled()
    ring = mmap.mmap(-1, HEADER_BYTES + SLOTS * SLOT_BYTES)
    for arguments in (
        (b"x" * 8192, 1),
        (ring, 0),
        (ring, SLOTS + 1),
        (ring, -1),
        (mmap.mmap(-1, 100), 1),
        (None, 1),
        (),
    ):
        with pytest.raises((BufferError, TypeError, ValueError)):
            kind(*arguments)
    boundaries = kind(ring, SLOTS)
    for phase in (-1, len(Phase), 2**70, "x", None):
        for method in (boundaries.switch, boundaries.wait_begins, boundaries.spent_ns):
            with pytest.raises((IndexError, OverflowError, TypeError)):
                method(phase)
    for arguments in ((), (1,), (0, *[1] * 7), ("x", *[1] * 7), (2**70, *[1] * 7)):
        with pytest.raises((OverflowError, TypeError, ValueError)):
            boundaries.write_step(*arguments)
    boundaries.phase = 99
    with pytest.raises(IndexError):
        boundaries.switch(0)
    empty = kind.__new__(kind)
    for call in (lambda: empty.switch(0), lambda: empty.wait_begins(0), lambda: empty.wait_ends(0, 0)):
        with pytest.raises(ValueError, match="no ring"):
            call()
    with pytest.raises(ZeroDivisionError):
        kind(ring, SLOTS, lambda: 1 // 0)


def test_nothing_is_kept() -> None:
    """With the last reference the ring can be closed, a cycle through the mark included."""
    ring = mmap.mmap(-1, HEADER_BYTES + SLOTS * SLOT_BYTES)
    boundaries = compiled()(ring, SLOTS)
    boundaries.timeline_mark = [boundaries].count  # type: ignore[assignment]
    del boundaries
    gc.collect()
    ring.close()


def test_choice() -> None:
    """The user may keep to Python."""
    assert fastest({"RANKSCOPE_BOUNDARIES": "python"}) is Boundaries
    assert name_of(fastest({"RANKSCOPE_BOUNDARIES": "python"})) == "python"
    assert name_of(fastest({})) == name_of(compiled()) == "compiled"


def test_a_stale_build_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that writes another record than this source is passed by."""
    compiled()
    monkeypatch.setattr("rankscope.torch_hooks._boundaries.FIELDS", 37)
    assert fastest({}) is Boundaries


def test_loops_in_python() -> None:
    """The loops of the other tests, watched without the extension, give the same steps."""
    tests = str(Path(__file__).with_name("test_steps.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", tests]
    command += ["-k", "plain_loop or accumulation"]
    done = subprocess.run(
        command, env=os.environ | {"RANKSCOPE_BOUNDARIES": "python"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
