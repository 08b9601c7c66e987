"""The hot path in Python and in C, to be played the same calls: where they write, and by which clock."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import components
import pytest
from hypothesis import strategies as st

from rankscope.clock import ClockAnchor
from rankscope.identity import rank_identity
from rankscope.records import Phase, RecordKind
from rankscope.ring import HEADER_BYTES, SLOT_BYTES, RingWriter, parse_slot
from rankscope.torch_hooks import reference

SLOTS = 4
PHASES = st.sampled_from([int(phase) for phase in Phase])
NS = st.integers(0, 2**40)
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
