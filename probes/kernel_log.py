"""The kernel log: Xids, GPUs that fall off the bus, errors of the host's hardware, processes killed for memory.

Reads /dev/kmsg, or a regular file of the same form, or, where neither may be read, journald's copy. What was logged
before the probe opened it is history, not news.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from rankscope.errors import PermissionDenied, ProbeError, Unsupported
from rankscope.probes.kernel_log_events import EventMaker, Folded
from rankscope.probes.kernel_log_journal import Journal
from rankscope.probes.kernel_log_record import KernelRecord, parse
from rankscope.reading import Event, Group, Outcome, Priority, ProbeResult, Severity

#: Records taken in one read: a storm of messages is spread over several reads.
MAX_RECORDS = 2000
#: Larger than any record: a shorter buffer makes the kernel answer EINVAL (PRINTK_MESSAGE_MAX is 2048, escaped 8192).
_CHUNK_BYTES = 16384
#: Steady period where the kernel wakes the agent for every record.
_WOKEN_NS = 1_000_000_000


class KernelLogProbe:
    """Probe of one kernel log."""

    name = "kernel-log"
    groups: Sequence[Group] = (
        Group(
            "events",
            250_000_000,
            100_000_000,
            "one system call when nothing was logged; where the kernel says that something was, 1 s besides",
            Priority.VITAL,
        ),
    )

    def __init__(
        self,
        path: Path = Path("/dev/kmsg"),
        *,
        uuid_of: Callable[[str], str | None] = lambda _pci: None,
        listener: Callable[[Event], None] = lambda _event: None,
        history: bool = False,
        journal: Callable[[bool], Journal] | None = None,
    ) -> None:
        """`uuid_of` maps a PCI address "dddd:bb:dd" to a GPU UUID; `listener` hears each new event at once.

        With `history`, what was logged before is told too, as events with the attribute history=1. `journal` opens
        journald's copy, from its start or from now on, where the path may not be read or does not exist.
        """
        self._path = path
        self._listener = listener
        self._in_history = history
        self._maker = EventMaker(uuid_of)
        self._open_journal = journal
        self._journal: Journal | None = None
        self._descriptor = -1
        self._is_device = False
        self._partial = b""
        self._expected: int | None = None
        self._end_reached_ns: int | None = None
        self._failure: tuple[Outcome, str] | None = None
        self._said: set[str] = set()
        self._open(from_start=history)
        if self.descriptor is not None:
            self.groups = [dataclasses.replace(group, steady_ns=_WOKEN_NS) for group in self.groups]

    @property
    def descriptor(self) -> int | None:
        """Becomes readable when something is logged; None where the log is no device, and has to be looked at."""
        return self._descriptor if self._descriptor >= 0 and self._is_device else None

    def _open(self, *, from_start: bool) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._is_device = stat.S_ISCHR(os.fstat(self._descriptor).st_mode)
            if not from_start:
                os.lseek(self._descriptor, 0, os.SEEK_END)
            self._failure = None
        except PermissionError:
            todo = "run the agent with CAP_SYSLOG, or as a user who may read it"
            self._fail(Outcome.NO_PERMISSION, "permission denied", todo, from_start=from_start)
        except FileNotFoundError:
            todo = "mount the host's device there" if self._open_journal is not None else ""
            self._fail(Outcome.UNSUPPORTED, "does not exist", todo, from_start=from_start)
        except OSError as error:
            self._failure = (Outcome.FAILED, f"{self._path}: {error.strerror}")

    def _fail(self, outcome: Outcome, what: str, todo: str, *, from_start: bool) -> None:
        """Try the journal; where that cannot be read either, keep both reasons."""
        if self._open_journal is None:
            self._failure = (outcome, f"{self._path}: {what}; {todo}" if todo else f"{self._path}: {what}")
            return
        try:
            self._journal = self._open_journal(from_start)
            self._failure = None
        except Unsupported as error:
            self._failure = (outcome, f"{self._path}: {what}, and {error.where} {error.what}; {todo}")
        except PermissionDenied as error:
            reason = f"{self._path}: {what}, and {error.where}: {error.what}; {todo}, or {error.todo}"
            self._failure = (Outcome.NO_PERMISSION, reason)
        except ProbeError as error:
            self._failure = (Outcome.FAILED, f"{self._path}: {what}, and {error}")

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """Every event logged since the last call. Raises ProbeError where the journal fails."""
        if self._descriptor < 0 and self._journal is None:
            # A file that appears later holds only what came after the start.
            self._open(from_start=self._open_journal is None)
        if self._failure is not None:
            return ProbeResult(outcomes=self._trouble())
        folded = Folded()
        if self._journal is not None:
            at_end = self._read_journal(self._journal, folded, now_ns)
        elif self._is_device:
            at_end = self._read_device(folded, now_ns)
        else:
            at_end = self._read_file(folded, now_ns)
        if at_end:
            self._end_reached_ns = now_ns
            self._in_history = False
        return ProbeResult(events=folded.events, outcomes=self._trouble())

    def _trouble(self) -> Sequence[tuple[str, Outcome, str]]:
        """Why the log cannot be read, said once; nothing while it can."""
        if self._failure is None or self._failure[1] in self._said:
            return ()
        self._said.add(self._failure[1])
        return [("", *self._failure)]

    def close(self) -> None:
        """Close the log."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _read_device(self, folded: Folded, now_ns: int) -> bool:
        """One record a system call; returns whether the end was reached."""
        for _ in range(MAX_RECORDS):
            try:
                data = os.read(self._descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.EPIPE:
                    self._failure = (Outcome.FAILED, f"{self._path}: {error.strerror}")
                    return False
                # Overwritten before it was read: the next read goes on with the oldest that is left,
                # and the gap in the sequence says how many are gone.
                continue
            self._take_line(folded, data, now_ns)
        return False

    def _read_file(self, folded: Folded, now_ns: int) -> bool:
        try:
            data = os.read(self._descriptor, MAX_RECORDS * 256)
        except OSError as error:
            self._failure = (Outcome.FAILED, f"{self._path}: {error.strerror}")
            return False
        *lines, partial = (self._partial + data).split(b"\n")
        # What never ends is no log: of a line longer than any record only its begin counts.
        self._partial = partial[:_CHUNK_BYTES]
        for line in lines:
            self._take_line(folded, line, now_ns)
        return len(data) < MAX_RECORDS * 256

    def _read_journal(self, journal: Journal, folded: Folded, now_ns: int) -> bool:
        records, lost = journal.read(MAX_RECORDS)
        if lost:
            self._add_loss(folded, lost, now_ns)
        for record in records:
            self._take(folded, record, now_ns)
        return len(records) < MAX_RECORDS

    def _take_line(self, folded: Folded, line: bytes, now_ns: int) -> None:
        record = parse(line)
        if record is None:
            return
        if self._expected is not None and record.sequence > self._expected:
            self._add_loss(folded, record.sequence - self._expected, self._time_ns(record, now_ns))
        self._expected = record.sequence + 1
        self._take(folded, record, now_ns)

    def _take(self, folded: Folded, record: KernelRecord, now_ns: int) -> None:
        event = self._maker.event(record, self._time_ns(record, now_ns), history=self._in_history)
        if event is not None:
            folded.add(event)
            if not self._in_history:
                self._listener(event)

    def _add_loss(self, folded: Folded, count: int, time_ns: int) -> None:
        text = f"{count} kernel log records were overwritten before they were read"
        folded.add(Event("kernel-log-lost", time_ns, text, Severity.WARNING, attributes={"count": count}))

    def _time_ns(self, record: KernelRecord, now_ns: int) -> int:
        """The record's time on CLOCK_MONOTONIC.

        The kernel stamps with its scheduler clock, which drifts from CLOCK_MONOTONIC by what NTP corrects (up to
        500 ppm, seconds a day). A new record was written between the last read that found the end and now, so its
        time is held between the two; older records keep the error.
        """
        time_ns = min(record.time_us * 1000, now_ns)
        live = self._is_device or self._journal is not None
        return max(time_ns, self._end_reached_ns) if live and self._end_reached_ns is not None else time_ns
