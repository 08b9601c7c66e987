"""The first failing rank among many: one root, and its echoes in any order, on clocks that do not quite agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rankscope.rules.failure import ECHO, NEXT_ACTION, OWN, WEAK, Failure, FailureKind, kind_of_rank

#: Wall clocks of hosts agree to about this where nothing disciplines them (NTP's usual error is far less).
CLOCK_ERROR_NS = 1_000_000_000
#: Ranks of which nothing at all was heard may be the root where no more than this share is silent.
_SILENT_SHARE = 0.1
#: c10d's watchdog names the collective and how far its group came.
_SEQUENCE = re.compile(r"SeqNum=(\d+)")
_COMPLETED = re.compile(r"last completed (?:NCCL )?work: (-?\d+)", re.IGNORECASE)
_ENQUEUED = re.compile(r"last enqueued (?:NCCL )?work: (-?\d+)", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:remote|peer|from|waiting for|lost|missing|failed to pass\D{0,40}?)\s*rank[s:]?\s*(\d+)", re.IGNORECASE
)
_BARRIER = re.compile(r"Ranks? ([\d, ]+?) failed to pass monitoredBarrier", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FirstFailure:
    """The root, how surely, and what follows from it."""

    #: None where nothing tells one rank from the others.
    rank: int | None
    kind: FailureKind
    failure: Failure | None
    #: From 0 to 1: how plainly it stands out.
    strength: float
    why: str
    action: str
    #: Ranks by how they ended, the root not counted.
    echoes: dict[FailureKind, int]
    #: Other ranks that failed by themselves, in order.
    also: tuple[int, ...]


def first_failure(
    failures: Iterable[Failure], world_size: int = 0, *, clock_error_ns: int = CLOCK_ERROR_NS
) -> FirstFailure | None:
    """The root of failures given in any order, one or more a rank; None where there are none.

    A cause of its own goes before any echo, however late its record came. Between several the earliest counts, within
    the error of the clocks the one that no other death produces. `world_size` (0: not known) tells ranks of which
    nothing was heard.
    """
    by_rank: dict[int, list[Failure]] = {}
    for failure in failures:
        by_rank.setdefault(failure.rank, []).append(failure)
    kinds = {rank: kind for rank, each in by_rank.items() if (kind := kind_of_rank(each)) is not None}
    if not kinds:
        return None
    own = sorted((rank for rank in kinds if kinds[rank] in OWN), key=lambda rank: (_time(by_rank[rank]), rank))
    if own:
        return _own(own, kinds, by_rank, clock_error_ns)
    weak = [rank for rank in kinds if kinds[rank] in WEAK]
    echo = [rank for rank in kinds if kinds[rank] in ECHO]
    if weak:
        return _weak(weak, echo, kinds, by_rank)
    return _echoes_only(kinds, by_rank, world_size)


def _time(failures: Sequence[Failure]) -> float:
    return min((each.time_ns for each in failures if each.time_ns is not None), default=float("inf"))


def _result(
    rank: int | None,
    kind: FailureKind,
    strength: float,
    why: str,
    kinds: dict[int, FailureKind],
    by_rank: dict[int, list[Failure]],
    also: Sequence[int] = (),
) -> FirstFailure:
    said = sorted(by_rank.get(rank, ()), key=lambda each: (not each.text, _time([each]))) if rank is not None else []
    echoes = Counter(each for other, each in kinds.items() if other != rank)
    return FirstFailure(
        rank, kind, said[0] if said else None, strength, why, NEXT_ACTION[kind], dict(echoes), tuple(also)
    )


def _own(
    own: Sequence[int], kinds: dict[int, FailureKind], by_rank: dict[int, list[Failure]], clock_error_ns: int
) -> FirstFailure:
    begin = _time(by_rank[own[0]])
    hosts = {each.host for rank in own for each in by_rank[rank]}
    slack = clock_error_ns if len(hosts) > 1 else 0
    together = [rank for rank in own if _time(by_rank[rank]) <= begin + slack]
    # SIGKILL is also how launchers end survivors: another cause at the same time is the better one.
    root = min(
        together, key=lambda rank: (kinds[rank] is FailureKind.KILLED and not _memory(by_rank[rank]), own.index(rank))
    )
    if kinds[root] is FailureKind.KILLED and not _memory(by_rank[root]):
        killed = [rank for rank in own if kinds[rank] is FailureKind.KILLED]
        if len(killed) > 1 and len(killed) == len(kinds):
            return _result(
                None, kinds[root], 0.2, "all ranks were killed: the job was ended from outside", kinds, by_rank
            )
    also = [rank for rank in own if rank != root]
    strength = 1.0 if len(together) == 1 else 0.6
    count = len(kinds) - 1
    why = f"rank {root} failed by itself ({kinds[root]})"
    if count:
        why += f"; of {count} others {sum(kinds[rank] in ECHO for rank in kinds)} only say that a peer is gone or late"
    return _result(root, kinds[root], strength, why, kinds, by_rank, also)


def _memory(failures: Sequence[Failure]) -> bool:
    return any(each.out_of_memory for each in failures)


def _weak(
    weak: Sequence[int], echo: Sequence[int], kinds: dict[int, FailureKind], by_rank: dict[int, list[Failure]]
) -> FirstFailure:
    aborted = [rank for rank in weak if kinds[rank] is FailureKind.ABORTED]
    # One that aborted among many who say why is its own; many that aborted are what a watchdog does.
    candidates = (
        weak if len(weak) <= max(1, len(kinds) // 4) else [rank for rank in weak if rank not in aborted] or weak
    )
    root = min(candidates, key=lambda rank: (_time(by_rank[rank]), rank))
    strength = 0.9 if len(candidates) == 1 and echo else 0.5 if len(candidates) == 1 or len(weak) < len(kinds) else 0.4
    why = f"rank {root} ended without a word about its peers ({kinds[root]})"
    if echo:
        why += f"; {len(echo)} others say that a peer is gone or late"
    return _result(root, kinds[root], strength, why, kinds, by_rank, [rank for rank in weak if rank != root])


def _echoes_only(kinds: dict[int, FailureKind], by_rank: dict[int, list[Failure]], world_size: int) -> FirstFailure:
    silent = [rank for rank in range(world_size) if rank not in kinds]
    waited = [rank for rank in kinds if kinds[rank] is not FailureKind.STOPPED]
    if not waited:
        return _result(None, FailureKind.STOPPED, 0.3, "all ranks were stopped", kinds, by_rank)
    if silent and len(silent) <= max(1, _SILENT_SHARE * world_size):
        why = f"rank {silent[0]} left no word at all, while {len(waited)} others wait for a peer"
        return _result(
            silent[0], FailureKind.VANISHED, 0.8 if len(silent) == 1 else 0.5, why, kinds, by_rank, silent[1:]
        )
    named = Counter(rank for each in waited for rank in _named(by_rank[each]) if rank != each)
    if named and named.most_common(1)[0][1] > len(waited) // 3:
        root = named.most_common(1)[0][0]
        why = f"{named[root]} ranks name rank {root} as the one they lost or wait for"
        return _result(root, kinds.get(root, FailureKind.VANISHED), 0.7, why, kinds, by_rank)
    for pattern, what in ((_COMPLETED, "last completed"), (_ENQUEUED, "last enqueued"), (_SEQUENCE, "timed out in")):
        behind = _lowest(pattern, waited, by_rank)
        if behind is not None:
            rank, number, usual = behind
            why = f"rank {rank} {what} collective {number}, the others {usual}"
            return _result(rank, kinds[rank], 0.7, why, kinds, by_rank)
    first = min(waited, key=lambda rank: (_time(by_rank[rank]), rank))
    why = "every rank says that a peer is late or gone, and none says why"
    return _result(None, kinds[first], 0.1, why, kinds, by_rank)


def _named(failures: Sequence[Failure]) -> set[int]:
    found = {int(number) for each in failures for number in _NAMED.findall(each.text)}
    for each in failures:
        for ranks in _BARRIER.findall(each.text):
            found |= {int(number) for number in re.findall(r"\d+", ranks)}
    return found


def _lowest(
    pattern: re.Pattern[str], ranks: Sequence[int], by_rank: dict[int, list[Failure]]
) -> tuple[int, int, int] | None:
    """The one rank whose number is below everybody else's, its number and what is usual."""
    numbers = {
        rank: int(match[1])
        for rank in ranks
        if (match := pattern.search(" ".join(each.text for each in by_rank[rank])))
    }
    if len(numbers) < 2:
        return None
    usual = Counter(numbers.values()).most_common(1)[0][0]
    below = [rank for rank, number in numbers.items() if number < usual]
    return (below[0], numbers[below[0]], usual) if len(below) == 1 else None
