"""The clock anchors of a recording, as it keeps them: the first in two entries of `meta`, later ones in a third."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rankscope.agent.plausible import plausible
from rankscope.clock import ClockAnchor
from rankscope.errors import RecordingError

#: When the recording began, on both clocks, ns.
FIRST_KEYS = ("anchor_monotonic_ns", "anchor_wall_ns")
#: {"later": [[monotonic, wall], ...], "asleep_ns": how long the host had slept at the last of them}, as JSON.
LATER_KEY = "anchors"


def later_anchors(anchor: ClockAnchor, asleep_ns: int) -> str:
    """The entry of the anchors that took the place of the first."""
    later = [[each.monotonic_ns, each.wall_ns] for each in anchor.later]
    return json.dumps({"later": later, "asleep_ns": asleep_ns})


def anchors_of(meta: Mapping[str, Any]) -> tuple[ClockAnchor, int | None]:
    """The anchors, and how long the host had slept at the last (None: not known). Raises RecordingError.

    Later anchors that a disk changed are as none: times after them are by the first.
    """
    first = (meta.get(FIRST_KEYS[0]), meta.get(FIRST_KEYS[1]))
    if not plausible(FIRST_KEYS, [first]):
        raise RecordingError("damaged: it does not say when it began")
    began_ns, wall_ns = (int(time_ns) for time_ns in first if time_ns is not None)
    try:
        found = json.loads(meta.get(LATER_KEY) or "{}")
        pairs, asleep_ns = found.get("later", []), found.get("asleep_ns")
        fit = plausible(FIRST_KEYS, pairs) == pairs and pairs == sorted(pairs)
        later = tuple(ClockAnchor(*pair) for pair in pairs) if fit else ()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ClockAnchor(began_ns, wall_ns), None
    known = isinstance(asleep_ns, int) and not isinstance(asleep_ns, bool) and asleep_ns >= 0
    return ClockAnchor(began_ns, wall_ns, later), asleep_ns if known else None
