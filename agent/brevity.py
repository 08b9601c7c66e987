"""Reasons that name many metrics, made short for people: whole groups by their common beginning, then the first few."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: "a.b, a.c, ...: why", as a probe says what a device has not got.
_LISTED = re.compile(r"^((?:\w+\.\w+, ){3,}\w+\.\w+)(?=: )")
#: A beginning that so many names share stands for them.
_SHARED = 3
_SHOWN = 4


def brief(reason: str) -> str:
    """The reason with its list of metrics cut down; any other text as it is."""
    return _LISTED.sub(lambda found: _names(found[1].split(", ")), reason)


def _names(metrics: Sequence[str]) -> str:
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(metric.partition("_")[0], []).append(metric)
    parts: list[tuple[str, int]] = []
    for start, members in groups.items():
        if len(members) >= _SHARED:
            parts.append((f"{start}_* ({len(members)})", len(members)))
        else:
            parts += ((member, 1) for member in members)
    shown, left = parts[:_SHOWN], parts[_SHOWN:]
    text = ", ".join(part for part, _ in shown)
    return text + (f" and {sum(count for _, count in left)} more" if left else "")
