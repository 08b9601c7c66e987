"""Several ranks of one job side by side: whether they can be compared, who is late, and a sentence for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankscope.rules.trace.blame import Blame, Reason, blame
from rankscope.rules.trace.exchange import RankExchange
from rankscope.rules.trace.seen import Seen, seen_of

_BECAUSE = {
    Reason.DEVICE: "its kernels take longer than those of its peers (device-bound)",
    Reason.HOST: "its device waits for its host, which launches late (host-bound)",
    Reason.COPIES: "its copies take longer than those of its peers",
    Reason.LINK: "every group it is in transfers slowly, and the others do not",
    Reason.UNKNOWN: "the trace does not say by what",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ranks compared, or why they were not."""

    seen: Seen | None
    blame: Blame | None
    #: Why there is no comparison, or what it lacks.
    notes: tuple[str, ...]


def compare(exchanges: Sequence[RankExchange]) -> Comparison:
    """Compare the ranks of one job; traces that cannot be of one job are not compared, and it is said why."""
    usable = [each for each in exchanges if each.steps]
    if len(usable) < 2:
        return Comparison(None, None, ("a comparison needs the traces of two ranks with device events",))
    numbers = [each.rank for each in usable]
    if len(set(numbers)) < len(numbers):
        return Comparison(None, None, ("not compared: two of the traces are of the same rank",))
    if len({each.world_size for each in usable}) > 1:
        return Comparison(None, None, ("not compared: the traces are of jobs of different sizes",))
    seen = seen_of(usable)
    if not seen.steps:
        return Comparison(None, None, ("not compared: the traces have no step in common",))
    return Comparison(seen, blame(seen), tuple(_notes(usable, seen)))


def _notes(exchanges: Sequence[RankExchange], seen: Seen) -> list[str]:
    notes = []
    world = exchanges[0].world_size
    if world is not None and world > len(exchanges):
        notes.append(f"{len(exchanges)} of {world} ranks were given: another may be later than all of these")
    if seen.unmatched:
        notes.append(f"{seen.unmatched} collectives could not be matched over the ranks")
    if any(each.point_to_point for each in exchanges):
        notes.append("sends and receives between two ranks are not compared")
    if not seen.groups:
        notes.append("no collective that two of the ranks share is in the traces: waits could not be compared")
    return notes


def verdict(comparison: Comparison) -> str:
    """Who is late and by what, in one sentence; "" where ranks were not compared."""
    seen, found = comparison.seen, comparison.blame
    if seen is None or found is None:
        return ""
    length = float(np.nanmedian(seen.step_ns)) / 1e6
    if found.reason is None:
        return f"no rank is late: {len(seen.ranks)} ranks differ by less than is told apart (step {length:.1f} ms)"
    price = f"{found.ns_per_step / 1e6:.1f} ms of a {length:.1f} ms step ({found.fraction:.0%})"
    if found.rank is None:
        return f"transfers in {', '.join(found.slow_groups)} are slow beside others of their kind: {price}"
    return f"rank {found.rank} is late by {price}: {_BECAUSE[found.reason]}"
