"""Numbers as /proc and /sys write them."""

from __future__ import annotations

#: Counters have 64 bits: what is larger is no number of the kernel's.
_MAX_DIGITS = 20
_MAX = (1 << 64) - 1
#: More CPUs than any kernel counts (CONFIG_NR_CPUS is at most 8192).
_MAX_CPUS = 8192


def whole(text: str) -> int | None:
    """A number of 0 and more in decimal digits, or None for anything else ("N/A", "-1", "", "max"). Never raises."""
    if not (text.isascii() and text.isdigit()):
        text = text.strip()
        if not (text.isascii() and text.isdigit()):
            return None
    if len(text) > _MAX_DIGITS:
        return None
    return number if (number := int(text)) <= _MAX else None


def first_column(text: str, keys: frozenset[str]) -> dict[str, int]:
    """Key -> number of lines "key number ..."; a colon behind the key is not part of it. Never raises."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        # Of hundreds of lines few are wanted: the others are not cut any further.
        key = line.partition(" ")[0].removesuffix(":")
        if key in keys and len(columns := line.split(None, 2)) >= 2:
            value = whole(columns[1])
            if value is not None:
                found[key] = value
    return found


def cpu_list(text: str) -> frozenset[int] | None:
    """CPUs of a list as "0-3,8", or None for what is none. Never raises."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        begin, end = whole(first), whole(last if dash else first)
        if begin is None or end is None or not begin <= end < _MAX_CPUS:
            return None
        cpus.update(range(begin, end + 1))
    return frozenset(cpus)
