"""Orders from the agent to a rank: a small file beside the ring, polled by the rank at step boundaries.

The rank makes the file (64 bytes, zero) and maps it; the agent overwrites its first 16. Layout, little-endian: sequence
number (8), command (4), CRC-32 of the 12 bytes before (4). Commands are a fixed list; anything else is ignored.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from enum import IntEnum
from pathlib import Path

from rankscope.errors import RingError

SUFFIX = ".control"
_SIZE = 64
_BODY = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_ORDER_BYTES = _BODY.size + _CRC.size


class Command(IntEnum):
    """What an agent may ask of a rank. The values are part of the format."""

    NONE = 0
    #: Stop watching for good: the hooks cost more than they may.
    DETACH = 1
    #: Record a window of the profiler as soon as its cost allows it.
    WINDOW = 2
    #: Leave the allocator's state in a file.
    SNAPSHOT = 3


def control_path(ring: Path) -> Path:
    """The control file of a ring."""
    return ring.with_name(ring.name + SUFFIX)


class ControlReader:
    """The rank's end: made with the ring, polled once a step."""

    def __init__(self, ring: Path) -> None:
        """Create and map the file; raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(control_path(ring), flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._path = control_path(ring)
        self._seen = self._map[:_ORDER_BYTES]

    def poll(self) -> Command:
        """The command written since the last poll, if any."""
        raw = self._map[:_ORDER_BYTES]
        if raw == self._seen:
            return Command.NONE
        sequence, command = _BODY.unpack_from(raw)
        if zlib.crc32(raw[: _BODY.size]) != _CRC.unpack_from(raw, _BODY.size)[0]:
            return Command.NONE  # being written: whole at the next step
        self._seen = raw
        return Command(command) if sequence and command in Command._value2member_map_ else Command.NONE

    def close(self) -> None:
        """Take no more orders: the file goes, so that this process can attach again."""
        self._path.unlink(missing_ok=True)


def send(ring: Path, command: Command) -> None:
    """The agent's end: give a rank a command. Raises RingError where its control file is not there or not a file."""
    path = control_path(ring)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.fstat(descriptor).st_size != _SIZE:
                raise RingError("not a control file", where=str(path))
            last = os.pread(descriptor, _BODY.size, 0)
            body = _BODY.pack((_BODY.unpack(last)[0] + 1) % 2**64, command)
            os.pwrite(descriptor, body + _CRC.pack(zlib.crc32(body)), 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RingError(f"cannot command the rank ({error.strerror})", where=str(path)) from error
