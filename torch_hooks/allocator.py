"""Looks into CUDA's caching allocator: sizes of blocks, fragmentation, and a snapshot where memory ran out.

A look walks every block and takes the allocator's lock (milliseconds on a large model), so it is taken at most once a
minute and after an out-of-memory error. Not yet run on a GPU.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rankscope.records import SIZE_CLASSES, MemoryRecord

#: Sizes of blocks are multiples of 512 bytes (c10/cuda/CUDACachingAllocator, kMinBlockSize).
_SMALLEST_BYTES = 512
LOOK_PERIOD_NS = 60_000_000_000


def size_class(size_bytes: int) -> int:
    """Class of a block's size: the smallest i with size <= 512 << i, the last one for all above."""
    return min(((max(size_bytes, 1) - 1) // _SMALLEST_BYTES).bit_length(), SIZE_CLASSES - 1)


def memory_record(segments: list[dict[str, Any]], stats: dict[str, Any], *, step: int, time_ns: int) -> MemoryRecord:
    """A look as a record, of torch.cuda.memory_snapshot() and memory_stats_as_nested_dict()."""
    blocks, free = [0] * SIZE_CLASSES, [0] * SIZE_CLASSES
    allocated = reserved = split = largest = 0
    for segment in segments:
        reserved += segment["total_size"]
        whole = len(segment["blocks"]) == 1
        for block in segment["blocks"]:
            size = block["size"]
            if block["state"] == "inactive":
                free[size_class(size)] += 1
                largest = max(largest, size)
                split += 0 if whole else size
            else:
                blocks[size_class(size)] += 1
                allocated += size
    ooms, retries = int(stats.get("num_ooms", 0)), int(stats.get("num_alloc_retries", 0))
    counts = (tuple(blocks), tuple(free))
    return MemoryRecord(step, time_ns, allocated, reserved, split, largest, ooms, retries, *counts)


#: Environment variable: the directory in which snapshots are left. The ring's own unless it is set.
SNAPSHOTS_VARIABLE = "RANKSCOPE_SNAPSHOTS"


def make_watch(
    torch: Any,
    ring: Path,
    environ: Mapping[str, str],
    *,
    report: Callable[[MemoryRecord], None],
    kept: Callable[[str], None],
) -> AllocatorWatch:
    """The watch of this process's caching allocator; snapshots are named after the ring."""
    directory = Path(environ.get(SNAPSHOTS_VARIABLE) or ring.parent)
    attach_oom = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
    snapshot = directory / f"{ring.stem}.memory.pickle"
    return AllocatorWatch(torch.cuda, attach_oom, snapshot_path=snapshot, report=report, kept=kept)


class AllocatorWatch:
    """Looks now and then, on request, and where memory ran out.

    The last may come from a thread of the autograd engine: then what was seen waits for the training thread.

    `cuda` is torch.cuda and `attach_oom` torch._C._cuda_attach_out_of_memory_observer (None where this torch has none),
    injected so that a fake can stand in.
    """

    def __init__(
        self,
        cuda: Any,
        attach_oom: Callable[[Callable[..., None]], None] | None,
        *,
        snapshot_path: Path,
        report: Callable[[MemoryRecord], None],
        kept: Callable[[str], None],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`report` hears of every look, `kept` of every snapshot file."""
        self._cuda = cuda
        self._path = snapshot_path
        self._report = report
        self._kept = kept
        self._monotonic_ns = monotonic_ns
        self._next_ns = 0
        self._step = 0
        self._active = True
        self._waiting: list[MemoryRecord] = []
        self._snapshots: list[str] = []
        if attach_oom is not None:
            # The allocator offers no way to take an observer back: a detached one stays and does nothing.
            attach_oom(self._out_of_memory)

    def end_step(self, step: int) -> None:
        """A step is over; look where it is time to, and tell what was seen."""
        self._step = step
        if self._monotonic_ns() >= self._next_ns:
            self._look()
        self._tell()

    def keep_snapshot(self) -> None:
        """Leave the allocator's state in a file that pytorch.org/memory_viz reads."""
        self._keep()
        self._tell()

    def close(self) -> None:
        """Tell what was seen, and look no more."""
        self._active = False
        self._tell()

    def _look(self) -> None:
        now = self._monotonic_ns()
        self._next_ns = now + LOOK_PERIOD_NS
        if self._cuda.is_initialized() and not self._cuda.is_current_stream_capturing():
            stats = self._cuda.memory_stats_as_nested_dict()
            self._waiting.append(memory_record(self._cuda.memory_snapshot(), stats, step=self._step, time_ns=now))

    def _keep(self) -> None:
        with self._path.open("wb") as file:
            pickle.dump(self._cuda.memory._snapshot(), file)
        self._snapshots.append(str(self._path))

    def _tell(self) -> None:
        while self._waiting:
            self._report(self._waiting.pop(0))
        while self._snapshots:
            self._kept(self._snapshots.pop(0))

    def _out_of_memory(self, *_device_and_sizes: Any) -> None:
        if self._active:
            try:
                self._look()
                self._keep()
            except Exception:  # the allocator calls this on its way to raising: nothing of ours may come out of it
                self._active = False
