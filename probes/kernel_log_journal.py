"""The kernel log as journald keeps it, for a user who may read the journal and not /dev/kmsg.

Reads the journal's files through libsystemd, as journalctl does: no process is started, and nothing is installed that a
host with a journal does not have.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from pathlib import Path

from rankscope.errors import PermissionDenied, ProbeError, Unsupported
from rankscope.probes.kernel_log_record import KernelRecord

# sd-journal.h
_SYSTEM_ONLY = 1 << 2
#: MESSAGE_ID of "Missed N kernel messages" (SD_MESSAGE_JOURNAL_MISSED of sd-messages.h).
_MISSED_ID = "e9bf28e6e834481bb6f48f548ad13606"
_MISSED = re.compile(r"Missed (\d{1,12}) kernel messages")
_FIELDS = ("MESSAGE", "SYSLOG_IDENTIFIER", "_SOURCE_MONOTONIC_TIMESTAMP", "PRIORITY", "MESSAGE_ID")
#: Longer than any kernel message (PRINTK_MESSAGE_MAX); what is behind it is cut.
_MAX_FIELD_BYTES = 16384


class Journal:
    """The kernel's messages of this boot, from now on or from its start."""

    def __init__(
        self,
        *,
        from_start: bool,
        directory: Path | None = None,
        boot_id: str | None = None,
        library: str = "libsystemd.so.0",
    ) -> None:
        """Open the host's journal, or the files in a directory. Raises Unsupported, PermissionDenied or ProbeError.

        `boot_id` as /proc/sys/kernel/random/boot_id writes it; None: of any boot.
        """
        self._where = "journald" if directory is None else f"journald ({directory})"
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise Unsupported(f"cannot be read without {library}", where=self._where) from error
        self._journal = ctypes.c_void_p()
        if directory is None:
            code = self._library.sd_journal_open(ctypes.byref(self._journal), _SYSTEM_ONLY)
        else:
            path = str(directory).encode()
            code = self._library.sd_journal_open_directory(ctypes.byref(self._journal), path, 0)
        if code < 0:
            raise self._error(code)
        try:
            self._begin(from_start=from_start, boot_id=boot_id)
        except ProbeError:
            self.close()
            raise

    def _begin(self, *, from_start: bool, boot_id: str | None) -> None:
        # Matches of one field are alternatives; a conjunction demands what stands on both its sides.
        for match in ("_TRANSPORT=kernel", f"MESSAGE_ID={_MISSED_ID}"):
            self._call("sd_journal_add_match", match.encode(), ctypes.c_size_t(0))
            self._call("sd_journal_add_disjunction")
        if boot_id is not None:
            self._call("sd_journal_add_conjunction")
            self._call(
                "sd_journal_add_match", f"_BOOT_ID={boot_id.strip().replace('-', '')}".encode(), ctypes.c_size_t(0)
            )
        self._call("sd_journal_get_fd")  # begins to watch for new files
        if from_start:
            self._call("sd_journal_seek_head")
        else:
            self._call("sd_journal_seek_tail")
            # The tail is a place behind the last entry: step onto it, so that the next step is a new one.
            self._call("sd_journal_previous")
        self._call("sd_journal_set_data_threshold", ctypes.c_size_t(_MAX_FIELD_BYTES))
        size = ctypes.c_uint64()
        self._call("sd_journal_get_usage", ctypes.byref(size))
        if not size.value:  # files that may not be opened are left out without a word
            todo = "join the group systemd-journal, or mount the host's /var/log/journal and /run/log/journal"
            raise PermissionDenied("no journal that this user may read", where=self._where, todo=todo)

    def read(self, limit: int) -> tuple[list[KernelRecord], int]:
        """At most `limit` records logged since the last call, and how many are known to be lost. Raises ProbeError."""
        self._call("sd_journal_process")
        records: list[KernelRecord] = []
        lost = 0
        while len(records) < limit and self._call("sd_journal_next") > 0:
            fields = {name: value for name in _FIELDS if (value := self._field(name)) is not None}
            if fields.get("MESSAGE_ID") == _MISSED_ID:
                missed = _MISSED.search(fields.get("MESSAGE", ""))
                lost += int(missed[1]) if missed is not None else 1
                continue
            records.append(_record(fields, self._received_us()))
        return records, lost

    def close(self) -> None:
        """Close the journal. Safe to call twice."""
        if self._journal.value is not None:
            self._library.sd_journal_close(self._journal)
            self._journal = ctypes.c_void_p()

    def _field(self, name: str) -> str | None:
        data, length = ctypes.c_void_p(), ctypes.c_size_t()
        code = self._library.sd_journal_get_data(self._journal, name.encode(), ctypes.byref(data), ctypes.byref(length))
        if code < 0 or not data.value:
            return None
        raw = ctypes.string_at(data.value, min(length.value, _MAX_FIELD_BYTES))
        return raw[len(name) + 1 :].decode("utf-8", "replace")

    def _received_us(self) -> int:
        """When journald wrote the entry, on CLOCK_MONOTONIC of its boot."""
        stamp = ctypes.c_uint64()
        boot = (ctypes.c_uint8 * 16)()
        code = self._library.sd_journal_get_monotonic_usec(self._journal, ctypes.byref(stamp), ctypes.byref(boot))
        return stamp.value if code >= 0 else time.monotonic_ns() // 1000

    def _call(self, name: str, *arguments: object) -> int:
        code = int(getattr(self._library, name)(self._journal, *arguments))
        if code < 0:
            raise self._error(code)
        return code

    def _error(self, code: int) -> ProbeError:

        reason = os.strerror(-code)
        if -code in (errno.EACCES, errno.EPERM):
            return PermissionDenied(reason, where=self._where, todo="join the group systemd-journal")
        if -code in (errno.ENOENT, errno.ENOTDIR):
            return Unsupported(reason, where=self._where)
        return ProbeError(reason, where=self._where)


def _record(fields: dict[str, str], received_us: int) -> KernelRecord:
    stamp = fields.get("_SOURCE_MONOTONIC_TIMESTAMP", "")
    time_us = int(stamp) if stamp.isascii() and stamp.isdigit() and len(stamp) <= 19 else received_us
    priority = fields.get("PRIORITY", "")
    text = fields.get("MESSAGE", "")
    # journald takes a prefix of what a process wrote into the kernel log for the process's name.
    if (name := fields.get("SYSLOG_IDENTIFIER", "kernel")) != "kernel":
        text = f"{name}: {text}"
    return KernelRecord(int(priority) if priority in set("01234567") else 6, 0, time_us, text)
