"""What /proc says of one process. Pure parsing, and the two questions a hang watcher asks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rankscope.probes.numbers import cpu_list

_NS = 10**9
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SWITCHES = re.compile(r"^(non)?voluntary_ctxt_switches:\s+(\d{1,19})", re.MULTILINE)
_ALLOWED = re.compile(r"^Cpus_allowed_list:\s+(\S{1,4000})$", re.MULTILINE)
_IO_LINE = re.compile(r"^(read_bytes|write_bytes): (\d{1,19})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The fields of /proc/PID/stat that are used; times in ns."""

    #: R running, S sleeping, D uninterruptible, T stopped, Z zombie, ... (proc(5)).
    state: str
    parent: int
    major_faults: int
    cpu_ns: int
    start_ticks: int
    resident_bytes: int
    #: Time blocked on storage; 0 throughout where delay accounting is off.
    blkio_ns: int


def parse_stat(text: str) -> ProcessStat | None:
    """A /proc/PID/stat, or None for what is none. The command may hold spaces and brackets. Never raises."""
    columns = text.rpartition(")")[2].split()
    # Fields 3 to 42 of proc(5), so field n stands at n - 3.
    if len(columns) < 40 or len(columns[0]) != 1:
        return None
    numbers: list[int] = []
    for field in (4, 12, 14, 15, 22, 24, 42):
        column = columns[field - 3]
        if not (column.isascii() and column.isdigit() and len(column) <= 20):
            return None
        numbers.append(int(column))
    parent, faults, user, system, start, resident, blkio = numbers
    return ProcessStat(
        state=columns[0],
        parent=parent,
        major_faults=faults,
        cpu_ns=(user + system) * _NS // _TICKS_PER_SECOND,
        start_ticks=start,
        resident_bytes=resident * _PAGE_BYTES,
        blkio_ns=blkio * _NS // _TICKS_PER_SECOND,
    )


def parse_schedstat(text: str) -> tuple[int, int] | None:
    """(ns on a core, ns runnable but waiting for one) of a schedstat, or None. Never raises."""
    columns = text.split()
    if len(columns) < 2 or not all(c.isascii() and c.isdigit() and len(c) <= 20 for c in columns[:2]):
        return None
    return int(columns[0]), int(columns[1])


def parse_io(text: str) -> tuple[int, int] | None:
    """(bytes fetched from storage, bytes sent to storage) of a /proc/PID/io, or None. Never raises."""
    found = {match[1]: int(match[2]) for match in _IO_LINE.finditer(text)}
    return (found["read_bytes"], found["write_bytes"]) if len(found) == 2 else None


def parse_switches(text: str) -> dict[str, int]:
    """Metric -> times a thread was preempted, and gave up its core, of a status file. Never raises."""
    return {
        f"process.{'in' if match[1] else ''}voluntary_switches": int(match[2]) for match in _SWITCHES.finditer(text)
    }


def parse_allowed(text: str) -> frozenset[int] | None:
    """CPUs a thread may run on, of a status file, or None. Never raises."""
    match = _ALLOWED.search(text)
    return None if match is None else cpu_list(match[1])


def parse_children(text: str) -> list[int]:
    """Process ids of a /proc/PID/task/TID/children. Never raises."""
    return [int(column) for column in text.split() if column.isascii() and column.isdigit() and len(column) <= 10]


def process_state(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The kernel's state letter of a process's main thread ("R", "S", "D", "T", "Z", ...), or None once it is gone."""
    try:
        stat = parse_stat((proc / str(pid) / "stat").read_text(errors="replace"))
    except OSError:
        return None
    return None if stat is None else stat.state


def wait_channel(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The kernel function a process's main thread sleeps in, or None where it runs, is gone or may not be asked."""
    try:
        name = (proc / str(pid) / "wchan").read_text(errors="replace").strip()
    except OSError:
        return None
    return name if name not in ("", "0") else None
