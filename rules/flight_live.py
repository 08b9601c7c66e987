"""Flight recorders of a job that hangs now, as its ranks answered for them, compared over ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rankscope.reading import Event
from rankscope.rules.flight import DumpError, RankFlight, parse_dump
from rankscope.rules.flight_suspects import Comparison, Suspect, compare

#: Reasons that name a rank, not a group of ranks that are all alike.
_NAMING = frozenset({"mismatch", "behind", "awaited", "no-dump", "not-started"})


def live_comparison(events: Sequence[Event]) -> Comparison | None:
    """The comparison of what ranks answered last (events "rank-flight"); None where fewer than two did."""
    last = {event.rank: event.text for event in events if event.kind == "rank-flight" and event.rank is not None}
    dumps: list[RankFlight] = []
    for rank, text in sorted(last.items()):
        try:
            dumps.append(parse_dump(json.loads(text), rank))
        except (ValueError, RecursionError, DumpError):
            # It did not answer: what is missing says something too.
            continue
    return compare(dumps) if len(dumps) > 1 else None


def named(comparison: Comparison | None) -> Suspect | None:
    """The rank that a comparison names: its first suspect, where the reason is that rank's own and no other's equal."""
    if comparison is None or not comparison.suspects:
        return None
    first, *others = comparison.suspects
    alone = not others or others[0].score < 0.9 * first.score
    return first if alone and _NAMING & set(first.kinds) else None
