"""The kernel log: Xids, GPUs that fall off the bus, processes killed for memory, tasks that hang.

Reads /dev/kmsg, or a regular file of the same form. What was logged before the probe opened it is history, not news.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from rankscope.probes.kernel_log_lines import KernelRecord, Notice, notice, parse, uuid_announced
from rankscope.reading import Event, Group, Outcome, ProbeResult, Severity

#: Records taken in one read: a storm of messages is spread over several reads.
MAX_RECORDS = 2000
#: Larger than any record: a shorter buffer makes the kernel answer EINVAL (PRINTK_MESSAGE_MAX is 2048, escaped 8192).
_CHUNK_BYTES = 16384


class KernelLogProbe:
    """Probe of one kernel log."""

    name = "kernel-log"
    groups: Sequence[Group] = (Group("events", 500_000_000, 200_000_000, "one system call when nothing was logged"),)

    def __init__(
        self,
        path: Path = Path("/dev/kmsg"),
        *,
        uuid_of: Callable[[str], str | None] = lambda _pci: None,
        listener: Callable[[Event], None] = lambda _event: None,
        history: bool = False,
    ) -> None:
        """`uuid_of` maps a PCI address "dddd:bb:dd" to a GPU UUID; `listener` hears each new event at once.

        With `history`, what was logged before is told too, as events with the attribute history=1.
        """
        self._path = path
        self._uuid_of = uuid_of
        self._listener = listener
        self._in_history = history
        self._descriptor = -1
        self._is_device = False
        self._partial = b""
        self._expected: int | None = None
        self._end_reached_ns: int | None = None
        self._announced: dict[str, str] = {}
        self._failure: tuple[Outcome, str] | None = None
        self._said: set[str] = set()
        self._open(from_start=history)

    def _open(self, *, from_start: bool) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._is_device = stat.S_ISCHR(os.fstat(self._descriptor).st_mode)
            if not from_start:
                os.lseek(self._descriptor, 0, os.SEEK_END)
            self._failure = None
        except PermissionError:
            todo = "run the agent with CAP_SYSLOG, or as a user who may read it"
            self._failure = (Outcome.NO_PERMISSION, f"{self._path}: permission denied; {todo}")
        except FileNotFoundError:
            self._failure = (Outcome.UNSUPPORTED, f"{self._path}: does not exist")
        except OSError as error:
            self._failure = (Outcome.FAILED, f"{self._path}: {error.strerror}")

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """Every event logged since the last call."""
        if self._descriptor < 0:
            # A file that appears later holds only what came after the start.
            self._open(from_start=True)
        if self._failure is not None:
            outcome, reason = self._failure
            if reason in self._said:
                return ProbeResult()
            self._said.add(reason)
            return ProbeResult(outcomes=[("", outcome, reason)])
        events: list[Event] = []
        at_end = self._read_device(events, now_ns) if self._is_device else self._read_file(events, now_ns)
        if at_end:
            self._end_reached_ns = now_ns
            self._in_history = False
        return ProbeResult(events=events)

    def close(self) -> None:
        """Close the log."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read_device(self, events: list[Event], now_ns: int) -> bool:
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
            self._take(events, data, now_ns)
        return False

    def _read_file(self, events: list[Event], now_ns: int) -> bool:
        data = os.read(self._descriptor, MAX_RECORDS * 256)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(events, line, now_ns)
        return len(data) < MAX_RECORDS * 256

    def _take(self, events: list[Event], line: bytes, now_ns: int) -> None:
        record = parse(line)
        if record is None:
            return
        time_ns = self._time_ns(record, now_ns)
        if self._expected is not None and record.sequence > self._expected:
            count = record.sequence - self._expected
            text = f"{count} kernel log records were overwritten before they were read"
            events.append(Event("kernel-log-lost", time_ns, text, Severity.WARNING, attributes={"count": count}))
        self._expected = record.sequence + 1
        if (announced := uuid_announced(record.text)) is not None:
            self._announced[announced[0]] = announced[1]
        found = notice(record.text)
        if found is not None:
            event = self._event(found, record, time_ns)
            events.append(event)
            if not self._in_history:
                self._listener(event)

    def _time_ns(self, record: KernelRecord, now_ns: int) -> int:
        """The record's time on CLOCK_MONOTONIC.

        The kernel stamps with its scheduler clock, which drifts from CLOCK_MONOTONIC by what NTP corrects (up to
        500 ppm, seconds a day). A new record was written between the last read that found the end and now, so its
        time is held between the two; older records keep the error.
        """
        time_ns = min(record.time_us * 1000, now_ns)
        if self._is_device and self._end_reached_ns is not None:
            return max(time_ns, self._end_reached_ns)
        return time_ns

    def _event(self, found: Notice, record: KernelRecord, time_ns: int) -> Event:
        attributes = dict(found.attributes)
        device = ""
        if found.kind == "sxid":
            attributes["pci"] = found.pci
            device = str(attributes["switch"])
        elif found.kind in ("xid", "gpu-fallen-off"):
            attributes |= {"pci": found.pci, "source": "kernel-log"}
            if found.pci is not None:
                device = self._uuid_of(found.pci) or self._announced.get(found.pci, "")
        if self._in_history:
            attributes["history"] = 1
        return Event(found.kind, time_ns, record.text, found.severity, device, attributes=attributes)
