"""Why a step waits for its batch: starved workers, slow reading or slow collating, as far as the loader shows it."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from typing import Any

from rankscope.records import MISSING, MarkKind
from rankscope.torch_hooks.hot import collate_gate
from rankscope.torch_hooks.step_clock import StepClock

#: Share of a step spent waiting for data above which the loader is looked into (7 us for its ready batches).
_SUSPICIOUS_DATA_WAIT = 0.02
#: Workers' CPU and I/O times are read no oftener: 20 us a worker.
_WORKERS_PERIOD_NS = 100_000_000
_MOST_WORKERS = 16


class LoaderWatch:
    """Looks into the loader's iterator, and into its workers where the step waits for them."""

    def __init__(self, clock: StepClock, proc: Path = Path("/proc")) -> None:
        self._clock = clock
        self._proc = proc
        self._iterator: weakref.ref[Any] | None = None
        self._pids: tuple[int, ...] = ()
        self._read_ns = 0
        self._cpu_ns = self._io_ns = 0

    def asked(self, iterator: Any) -> bool:
        """A training batch is asked for: see what the loader has, if the step before waited for one.

        Returns whether there is anything to see at this iterator's next batches.
        """
        clock = self._clock
        if self._iterator is None or self._iterator() is not iterator:
            self._iterator = weakref.ref(iterator)
            self._meet(iterator)
        if not self._pids:
            return False
        if clock.last_data_wait_ns <= _SUSPICIOUS_DATA_WAIT * clock.last_step_ns:
            clock.loader_ready = clock.loader_cpu_ns = clock.loader_io_ns = MISSING
            return True
        ready = ready_batches(iterator)
        clock.loader_ready = MISSING if ready is None else ready
        self._read_workers()
        return True

    def _meet(self, iterator: Any) -> None:
        """A new iterator: who its workers are, or, without any, how long it reads and collates."""
        workers = getattr(iterator, "_workers", ())
        pids = (getattr(worker, "pid", None) for worker in workers)
        self._pids = tuple(pid for pid in pids if isinstance(pid, int))[:_MOST_WORKERS]
        self._clock.loader_workers = getattr(iterator, "_num_workers", MISSING)
        if self._pids:
            self._clock.mark(MarkKind.LOADER, f"workers={','.join(map(str, self._pids))}")
            self._cpu_ns, self._io_ns = worker_times(self._pids, self._proc)
        elif (fetcher := getattr(iterator, "_dataset_fetcher", None)) is not None:
            time_collating(fetcher, self._clock)
        if self._pids:
            self._clock.collate_ns = MISSING

    def _read_workers(self) -> None:
        now = time.monotonic_ns()
        if now - self._read_ns < _WORKERS_PERIOD_NS:
            return
        self._read_ns = now
        cpu_ns, io_ns = worker_times(self._pids, self._proc)
        clock = self._clock
        clock.loader_cpu_ns, clock.loader_io_ns = max(0, cpu_ns - self._cpu_ns), max(0, io_ns - self._io_ns)
        self._cpu_ns, self._io_ns = cpu_ns, io_ns


def time_collating(fetcher: Any, clock: StepClock) -> None:
    """Have a fetcher in the training process say how long it collated: the rest of the wait was reading samples.

    The collate function is wrapped on this one fetcher, which lives and dies with its iterator.
    """
    collate = getattr(fetcher, "collate_fn", None)
    if collate is None:
        return
    clock.collate_ns = 0
    fetcher.collate_fn = collate_gate(collate, clock)


def worker_times(pids: tuple[int, ...], proc: Path = Path("/proc")) -> tuple[int, int]:
    """(CPU ns, ns blocked in block I/O) of processes together so far; those that are gone count nothing.

    Fields 14, 15 and 42 of /proc/PID/stat (man 5 proc). The kernel counts the last only with delay accounting on.
    """
    cpu = blocked = 0
    for pid in pids:
        try:
            text = (proc / str(pid) / "stat").read_text()
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        cpu += int(fields[11]) + int(fields[12])
        blocked += int(fields[39])
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return cpu * tick_ns, blocked * tick_ns


def ready_batches(iterator: Any) -> int | None:
    """Batches the workers have ready, from the loader's own bookkeeping; None where it has changed."""
    try:
        fetched = sum(1 for task in iterator._task_info.values() if len(task) == 2)
        return fetched + int(iterator._data_queue.qsize())
    except (AttributeError, NotImplementedError, TypeError):
        return None
