"""Which rank is late, and by what: nobody leaves a collective before the last has come, so the others' waits say it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from rankscope.rules.trace.seen import FloatArray, Group, Seen

#: A rank is late from this share of the step on: less is within what ranks differ by anyway.
_LEAST = 0.02
#: ... and from so many times the spread of the others (median distance from their median).
_SPREADS = 4.0
#: ... and in this share of the steps.
_STEADY = 0.6
#: Groups of one kind do alike work: one whose transfers take this many times the others' is slow.
_SLOW_GROUP = 1.15
#: A cause explains a rank's excess from this share of it on.
_EXPLAINS = 0.5


class Reason(StrEnum):
    """What makes the late rank late."""

    #: Its kernels take longer than its peers'.
    DEVICE = "device"
    #: Its device idles because its host launches late.
    HOST = "host"
    #: Its copies take longer.
    COPIES = "copies"
    #: Every group it is in transfers slowly, and the others do not.
    LINK = "link"
    #: It is late, and what was seen does not say by what.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Blame:
    """The late rank, or None where no rank is."""

    rank: int | None
    reason: Reason | None
    #: What the job would gain a step if the rank were like the median of the others.
    ns_per_step: float
    #: The same as a share of the step.
    fraction: float
    #: Groups whose transfers are slow beside others of their kind.
    slow_groups: tuple[str, ...] = ()


_NOBODY = Blame(None, None, 0.0, 0.0)


def blame(seen: Seen) -> Blame:
    """Name the late rank of at least two, or nobody."""
    if len(seen.ranks) < 2 or not seen.steps:
        return _NOBODY
    found = _late(seen)
    slow = _slow_groups(seen)
    if found is not None:
        return found
    return _link(seen, slow) if slow else _NOBODY


def _late(seen: Seen) -> Blame | None:
    own = np.nanmedian(seen.own_ns, axis=1)
    row = int(np.argmax(own))
    others = np.delete(own, row)
    length = float(np.nanmedian(seen.step_ns))
    excess = float(own[row] - np.median(others))
    spread = float(np.median(np.abs(others - np.median(others)))) if len(others) > 1 else 0.0
    if not (excess >= _LEAST * length and excess >= _SPREADS * spread):
        return None
    if np.mean(np.nanargmax(seen.own_ns, axis=0) == row) < _STEADY or not _waited_for(seen, row):
        return None
    return Blame(seen.ranks[row], _reason(seen, row, excess), excess, excess / length)


def _waited_for(seen: Seen, row: int) -> bool:
    """Whether the rank waits least in its groups, steps taken together: it comes last. True where it is in none."""
    of = [group for group in seen.groups if np.isfinite(group.took_ns[row]).any()]
    if not of:
        return not seen.groups
    waits = np.array([[np.nanmedian(each) if np.isfinite(each).any() else np.nan for each in g.took_ns] for g in of])
    least = np.array([np.nanmin(each) for each in waits])
    # In one group of several it may come no later than others: what it waits in all counts.
    mine = waits[:, row].sum()
    return bool(mine <= 1.02 * least.sum() + 0.25 * (np.nanmedian(waits, axis=1) - least).sum())


def _excess(values: FloatArray, row: int) -> float:
    each = np.nanmedian(values, axis=1)
    return float(each[row] - np.median(np.delete(each, row)))


def _reason(seen: Seen, row: int, excess: float) -> Reason:
    if seen.compute_ns is None or seen.host_wait_ns is None or seen.memory_ns is None:
        return Reason.UNKNOWN
    shares = {
        Reason.DEVICE: _excess(seen.compute_ns, row),
        Reason.HOST: _excess(seen.host_wait_ns, row),
        Reason.COPIES: _excess(seen.memory_ns, row),
    }
    reason, most = max(shares.items(), key=lambda share: share[1])
    return reason if most >= _EXPLAINS * excess else Reason.UNKNOWN


def _slow_groups(seen: Seen) -> dict[str, tuple[Group, float]]:
    """Groups whose transfers take longer than those of other groups of their kind, with the excess a step."""
    kinds: dict[str, list[Group]] = {}
    for group in seen.groups:
        kinds.setdefault(group.kind, []).append(group)
    found = {}
    for alike in kinds.values():
        took = np.array([np.nanmedian(group.least_ns) for group in alike])
        for index, group in enumerate(alike):
            if len(alike) > 1 and took[index] >= _SLOW_GROUP * (usual := float(np.min(np.delete(took, index)))):
                found[group.name] = (group, float(took[index] - usual))
    return found


def _link(seen: Seen, slow: dict[str, tuple[Group, float]]) -> Blame:
    """The one rank that every slow group shares and that is in no other group."""
    common = set.intersection(*(set(group.members) for group, _ in slow.values()))
    clean = {rank for group in seen.groups if group.name not in slow for rank in group.members}
    suspects = common - clean
    excess = sum(each for _, each in slow.values())
    length = float(np.nanmedian(seen.step_ns))
    if excess < _LEAST * length:
        return _NOBODY
    rank = suspects.pop() if len(suspects) == 1 else None
    return Blame(rank, Reason.LINK, excess, excess / length, tuple(slow))
