"""Small files of /sys that are read seldom: opened and closed each time, so that hundreds cost no descriptors."""

from __future__ import annotations

import re
from pathlib import Path

from rankscope.probes.held_file import translated
from rankscope.probes.numbers import whole

#: No attribute of sysfs is longer than a page; those of debugfs and cgroups are read by other means.
_MAX_BYTES = 65536
_NUMBERS = re.compile(r"(\d+)")


def read_text(path: Path) -> str | None:
    """A file's text, or None where it does not exist or has nothing to say. Raises PermissionDenied or ProbeError."""
    try:
        with path.open("rb", buffering=0) as file:
            return (file.read(_MAX_BYTES) or b"").decode("utf-8", "replace")
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
