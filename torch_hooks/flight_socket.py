"""The flight recorder of this rank on a Unix socket, answered by a thread of torch's that needs no interpreter lock.

Only in a directory that nobody else may enter: the socket also answers requests for stacks. Never on TCP.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

#: sun_path holds 107 bytes and a zero (unix(7)).
_LONGEST_PATH = 107


class FlightSocket:
    """torch's worker server at a path, unless RANKSCOPE_FLIGHT is "0"."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._wanted = environ.get("RANKSCOPE_FLIGHT", "1") != "0"
        self._open = False

    def open(self) -> bool:
        """Whether the agent can ask now. Costs some 0.3 ms once; raises nothing."""
        library = sys.modules.get("torch._C._distributed_c10d")
        server = getattr(library, "_WorkerServer", None)
        if not self._wanted or server is None or not _private(self._path.parent):
            return False
        if len(os.fsencode(self._path)) > _LONGEST_PATH:
            return False
        try:
            self._path.unlink(missing_ok=True)
            with _without_notice():
                _keep(server(str(self._path), -1))
        except Exception:
            # A torch built without it, or another signature: a signal less.
            return False
        self._open = True
        return True

    def close(self) -> None:
        """Take the socket away; the thread ends with the process."""
        if self._open:
            self._path.unlink(missing_ok=True)


def flight_path(ring: Path, pid: int) -> Path:
    """Where the rank that writes `ring` answers."""
    return ring.with_name(f"{pid}.flight")


#: Part of the line that torch's C++ writes to standard error where a server starts, whatever its log level.
_NOTICE = b"Server listening"


@contextmanager
def _without_notice() -> Iterator[None]:
    """Keep torch's notice of the new server, a line for every rank, from the job's standard error, and nothing else.

    What is written meanwhile, by any thread, goes to a file in memory and from there to where it belongs.
    """
    held = os.memfd_create("rankscope", os.MFD_CLOEXEC)
    try:
        error_output = os.dup(2)
        try:
            os.dup2(held, 2)
            try:
                yield
            finally:
                os.dup2(error_output, 2)
        finally:
            os.close(error_output)
        written = os.pread(held, os.fstat(held).st_size, 0)
        rest = b"".join(line for line in written.splitlines(keepends=True) if _NOTICE not in line)
        if rest:
            os.write(2, rest)
    finally:
        os.close(held)


def _keep(server: object) -> None:
    """Never let the server's destructor run: it waits for its thread, in some orders for ever, with the lock held."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))


def _private(directory: Path) -> bool:
    try:
        found = directory.stat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
