"""What a rank that makes no progress can be asked from outside: flight recorder, stacks, where its thread waits.

Every question has a deadline and is asked on a thread of its own: a rank that answers none keeps nobody waiting.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Longest wait for a rank's flight recorder, and for py-spy.
FLIGHT_SECONDS = 2.0
STACKS_SECONDS = 8.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
#: Operations of a rank that are kept: a hang concerns the last ones. Bytes that they may take.
_KEPT_OPERATIONS = 128
_KEPT_BYTES = 256 * 1024
_KEPT_FIELDS = (
    "record_id",
    "pg_id",
    "process_group",
    "collective_seq_id",
    "p2p_seq_id",
    "profiling_name",
    "time_created_ns",
    "input_sizes",
    "input_dtypes",
    "output_sizes",
    "output_dtypes",
    "state",
    "retired",
    "is_p2p",
)
_REQUEST = (
    b"POST /handler/fr_trace_json?includecollectives=true&onlyactive=false HTTP/1.0\r\n"
    b"Host: rank\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class RankState:
    """What one rank was found in. Text is "" where it could not be had, and the reason stands beside it."""

    row: int
    flight: str
    flight_unseen: str
    stacks: str
    stacks_unseen: str


class StateTaker:
    """Asks ranks on threads of their own; `take` starts, `done` collects."""

    def __init__(self, *, pyspy: Path | None = None) -> None:
        self.pyspy = pyspy
        self._results: queue.SimpleQueue[RankState] = queue.SimpleQueue()
        self._asked: set[int] = set()

    @property
    def waiting(self) -> bool:
        """Whether answers are still to come."""
        return bool(self._asked)

    def take(self, row: int, pid: int, flight: Path | None) -> None:
        """Ask one process; a rank that is being asked already is left alone."""
        if row in self._asked:
            return
        self._asked.add(row)
        threading.Thread(target=self._ask, args=(row, pid, flight), name="rankscope-state", daemon=True).start()

    def done(self) -> list[RankState]:
        """Answers that came in since the last call. Never waits."""
        found = []
        while not self._results.empty():
            state = self._results.get_nowait()
            self._asked.discard(state.row)
            found.append(state)
        return found

    def _ask(self, row: int, pid: int, flight: Path | None) -> None:
        text, why = "", "it has no flight recorder that can be asked"
        stacks, no_stacks = "", "py-spy is not installed"
        try:
            if flight is not None:
                text, why = _flight(flight)
            if self.pyspy is not None:
                stacks, no_stacks = _stacks(self.pyspy, pid)
        finally:
            self._results.put(RankState(row, text, why, stacks, no_stacks))


def find_pyspy(environ_path: str | None = None) -> Path | None:
    """py-spy beside this interpreter, else on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("py-spy", path=environ_path)
    return Path(found) if found else None


def wait_channel(pid: int, proc: Path = Path("/proc")) -> str:
    """Kernel function in which the main thread sleeps; "" where it runs, or where one may not look."""
    try:
        text = (proc / str(pid) / "wchan").read_text(errors="replace").strip()
    except OSError:
        return ""
    return "" if text == "0" else "".join(each for each in text if each.isalnum() or each in "_.")[:64]


def _flight(path: Path) -> tuple[str, str]:
    try:
        body = ask(path, _REQUEST, FLIGHT_SECONDS)
        return compact(json.loads(body)), ""
    except OSError as error:
        return "", f"it did not answer ({error.strerror or error})"
    except (ValueError, RecursionError) as error:
        return "", f"its answer makes no sense ({type(error).__name__})"


def ask(path: Path, request: bytes, seconds: float) -> bytes:
    """The body of an HTTP/1.0 answer over a Unix socket. Raises OSError (TimeoutError among them), ValueError."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ValueError("not a socket")
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(request)
        data = bytearray()
        while len(data) <= _MAX_ANSWER_BYTES:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = connection.recv(1 << 16)
            if not part:
                break
            data += part
            if time.monotonic() > deadline:
                raise TimeoutError("too slow")
    head, separator, body = bytes(data).partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError("no answer")
    return body


def compact(document: Any) -> str:
    """A flight recorder's JSON reduced to its last operations and what is needed to compare them. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("no document")
    entries = document.get("entries")
    kept = [
        {name: entry[name] for name in _KEPT_FIELDS if name in entry}
        for entry in (entries if isinstance(entries, list) else [])[-_KEPT_OPERATIONS:]
        if isinstance(entry, dict)
    ]
    shell = {name: document[name] for name in ("version", "pg_config", "pg_status") if name in document}
    while True:
        text = json.dumps(shell | {"entries": kept}, separators=(",", ":"))
        if len(text) <= _KEPT_BYTES or not kept:
            return text if len(text) <= _KEPT_BYTES else json.dumps({"version": "?", "entries": []})
        kept = kept[len(kept) // 2 + 1 :]


def _stacks(pyspy: Path, pid: int) -> tuple[str, str]:
    command = [str(pyspy), "dump", "--nonblocking", "--json", "--pid", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=STACKS_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return "", "py-spy took too long"
    except OSError as error:
        return "", f"py-spy cannot be started ({error.strerror})"
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace")
        denied = "ermission" in said or "not permitted" in said
        return "", "py-spy may not look at it (ptrace is not permitted)" if denied else "py-spy could not look at it"
    try:
        return pyspy_text(json.loads(done.stdout)), ""
    except (ValueError, TypeError, AttributeError):
        return "", "py-spy's answer makes no sense"


def pyspy_text(threads: Sequence[dict[str, Any]]) -> str:
    """py-spy's JSON in the form in which Python's fault handler writes stacks, the main thread last."""
    ordered = sorted(threads, key=lambda thread: thread.get("thread_name") == "MainThread")
    parts = []
    for thread in ordered:
        main = thread.get("thread_name") == "MainThread" or len(ordered) == 1
        held = " holding the interpreter lock" if thread.get("owns_gil") else ""
        title = f"{'Current thread' if main else 'Thread'} 0x{int(thread.get('thread_id') or 0):016x}{held}"
        lines = [f"{title} (most recent call first):"]
        for frame in thread.get("frames") or ():
            name, file, line = frame.get("name"), frame.get("filename"), frame.get("line")
            lines.append(f'  File "{file}", line {int(line or 0)} in {name}')
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
