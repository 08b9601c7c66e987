"""What a rank's process leaves behind: its launcher's error file, the tail of its standard error, its cgroup's killer.

Where these lie is noted while the process lives, and read when it has ended. Everything is bounded, foreign, and
relieved of secrets before it is recorded.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankscope.reading import Event, Severity
from rankscope.redact import without_secrets

Attributes = dict[str, str | int | float | None]

#: Bytes of an error file, and of a standard error's end.
_ERROR_FILE_BYTES = 256 * 1024
_TAIL_BYTES = 8 * 1024
#: Characters that are recorded of either.
_TEXT = 4_000
_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class LastWords:
    """What was found when a process had ended. Empty or None where there is nothing, or it may not be read."""

    #: The message of torchelastic's error file, with the end of its traceback.
    error: str = ""
    #: The end of standard error, where that is a file.
    stderr: str = ""
    #: Processes that were killed for memory in its cgroup while it lived.
    killed_for_memory: int = 0
    memory_limit_bytes: int | None = None
    #: Why there is no standard error to be read; "" where there is.
    stderr_unseen: str = ""


class ProcessTraces:
    """Notes where one process's traces lie. Never raises: what cannot be read is not there."""

    def __init__(self, pid: int, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        self._error_file = _error_file(proc / str(pid) / "environ")
        self._stderr, self._stderr_unseen = _standard_error(proc / str(pid) / "fd" / "2")
        #: Identity of the file that standard error goes to: ranks that share it cannot be told apart in it.
        self.stderr_identity = _identity(self._stderr)
        #: What stood in the file before this process wrote to it is another's.
        self._stderr_begin = _size(self._stderr)
        self._cgroup = _cgroup(proc / str(pid) / "cgroup", cgroups)
        self._kills = _kills(self._cgroup)

    def read(self) -> LastWords:
        """What there is now that the process has ended."""
        kills = _kills(self._cgroup)
        return LastWords(
            error=parse_error_file(_end_of(self._error_file, _ERROR_FILE_BYTES, 0)),
            stderr=clean_tail(_end_of(self._stderr, _TAIL_BYTES, self._stderr_begin)),
            killed_for_memory=0 if kills is None or self._kills is None else max(0, kills - self._kills),
            memory_limit_bytes=_limit(self._cgroup),
            stderr_unseen=self._stderr_unseen,
        )


def left_behind(traces: ProcessTraces, exited: Event, peers: Sequence[ProcessTraces]) -> list[Event]:
    """Events of what a rank left, beside the event of its end; of a rank that ended well only its cgroup's kills.

    `peers` are the traces of all ranks: standard error that several share is said to be shared.
    """
    words = traces.read()
    number, pid, time_ns = exited.rank, exited.attributes.get("pid"), exited.time_ns
    events = []
    if words.killed_for_memory and exited.attributes.get("signal") == 9:
        limit = words.memory_limit_bytes
        bound = "" if limit is None else f" (limit {limit / 2**30:.1f} GiB)"
        text = f"{words.killed_for_memory} process(es) of rank {number}'s cgroup were killed for memory{bound}"
        attributes: Attributes = {"pid": pid, "source": "cgroup", "limit_bytes": limit}
        events.append(Event("oom-kill", time_ns, text, Severity.CRITICAL, rank=number, attributes=attributes))
    failed = exited.attributes.get("signal") or exited.attributes.get("status") or not exited.attributes.get("clean")
    if not failed:
        return events
    if words.error:
        attributes = {"pid": pid, "source": "error-file"}
        events.append(Event("rank-error", time_ns, words.error, Severity.WARNING, rank=number, attributes=attributes))
    if words.stderr:
        shared = sum(peer.stderr_identity == traces.stderr_identity for peer in peers) > 1
        attributes = {"pid": pid, "source": "stderr", "shared": int(shared)}
        events.append(Event("rank-stderr", time_ns, words.stderr, Severity.INFO, rank=number, attributes=attributes))
    return events


def parse_error_file(data: bytes) -> str:
    """Message and end of the traceback of a torchelastic error file; "" for anything else.

    It is {"message": TEXT} or {"message": {"message": TEXT, "extraInfo": {"py_callstack": TEXT, ...}}}
    (torch/distributed/elastic/multiprocessing/errors).
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    message: object = document.get("message") if isinstance(document, dict) else None
    stack = ""
    if isinstance(message, dict):
        extra = message.get("extraInfo")
        stack = str(extra.get("py_callstack") or "") if isinstance(extra, dict) else ""
        message = message.get("message")
    if not isinstance(message, str):
        return ""
    # Far more than is kept, so that what is cut here cannot halve a secret that is.
    text = message.strip()[: 2 * _TEXT]
    if stack.strip():
        text += f"\n{stack.strip()[-_TEXT // 2 :]}"
    return _plain(text)[:_TEXT]


def clean_tail(data: bytes) -> str:
    """The end of a log as text: whole lines, without control characters and secrets."""
    text = data.decode("utf-8", "replace")
    if len(data) >= _TAIL_BYTES:
        text = text.partition("\n")[2] or text
    kept = _plain(text).strip()
    return kept if len(kept) <= _TEXT else kept[-_TEXT:].partition("\n")[2] or kept[-_TEXT:]


def _plain(text: str) -> str:
    lines = text.replace("\r", "\n").split("\n")
    kept = ("".join(each if each.isprintable() or each == "\t" else "?" for each in line) for line in lines)
    return without_secrets("\n".join(line for line in kept if line.strip()))


def _error_file(environ: Path) -> Path | None:
    try:
        data = environ.read_bytes()
    except OSError:
        return None
    for entry in data.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == b"TORCHELASTIC_ERROR_FILE" and value.startswith(b"/"):
            return Path(os.fsdecode(value))
    return None


def _standard_error(link: Path) -> tuple[Path | None, str]:
    try:
        target = str(link.readlink())
        found = link.stat()
    except OSError as error:
        return None, f"it may not be looked at ({error.strerror})"
    if stat.S_ISREG(found.st_mode):
        return (Path(target), "") if not target.endswith(" (deleted)") else (None, "its file was deleted")
    return None, "it goes to a terminal or a pipe, not to a file"


def _identity(path: Path | None) -> tuple[int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0


def _end_of(path: Path | None, limit: int, begin: int) -> bytes:
    """The last bytes of a regular file beyond `begin`; nothing of anything else."""
    if path is None:
        return b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return b""
        start = max(0 if found.st_size < begin else begin, found.st_size - limit)
        return os.pread(descriptor, limit, start)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _cgroup(file: Path, cgroups: Path) -> Path | None:
    """The process's directory in the unified hierarchy."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, _, path = line.partition("::")
        if number == "0" and path.startswith("/") and ".." not in path.split("/"):
            return cgroups / path.lstrip("/")
    return None


def _kills(cgroup: Path | None) -> int | None:
    """`oom_kill` of memory.events: processes of this cgroup, and those below, killed for memory."""
    try:
        text = (cgroup / "memory.events").read_text() if cgroup is not None else ""
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            return int(value)
    return None


def _limit(cgroup: Path | None) -> int | None:
    try:
        text = (cgroup / "memory.max").read_text().strip() if cgroup is not None else ""
    except OSError:
        return None
    return int(text) if text.isdigit() else None
