"""Small files of /sys that are read seldom: opened and closed each time, so that hundreds cost no descriptors."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rankscope.probes.held_file import translated
from rankscope.probes.numbers import whole

_CHUNK_BYTES = 65536
#: An attribute of sysfs is a page at most; files of debugfs and of processes are longer, and none is endless.
_MAX_BYTES = 8 << 20
_NUMBERS = re.compile(r"(\d+)")


def read_text(path: Path) -> str | None:
    """A file's text, or None where it does not exist or has nothing to say. Raises PermissionDenied or ProbeError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, _CHUNK_BYTES)
            # What the kernel makes line by line comes a page at a time.
            while data and len(data) < _MAX_BYTES and (more := os.read(descriptor, _CHUNK_BYTES)):
                data += more
        finally:
            os.close(descriptor)
        return data.decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # Attributes that do not apply now (the speed of a link that is down) answer EINVAL, ENODATA or the like.
        if isinstance(error, PermissionError):
            raise translated(error, path) from error
        return None


def read_number(path: Path) -> int | None:
    """A file's number, or None where there is none. Raises PermissionDenied."""
    text = read_text(path)
    return None if text is None else whole(text)


def children(directory: Path, pattern: str = "*") -> list[Path]:
    """Entries of a directory in natural order (cpu2 before cpu10); none where it cannot be listed."""
    try:
        found = list(directory.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() and len(part) <= 20 else (-1, part) for part in _NUMBERS.split(path.name)]
