"""Collectives that do not match over ranks: another operation, size, type or order under the same sequence number.

Compared is what has to be equal for the collective to be one: sizes as element counts (shapes may differ), uneven ones
only where the operation asks for even ones. The first mismatch of a group counts; those after it follow from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from rankscope.rules.flight import GroupKey, Operation

#: Operations whose input (or output) has as many elements on every rank.
_EVEN_INPUT = frozenset(
    {
        "all_reduce",
        "allreduce_coalesced",
        "broadcast",
        "_broadcast_oop",
        "reduce",
        "_reduce_oop",
        "_all_gather_base",
        "all_gather_single",
        "all_gather_into_tensor_coalesced",
        "_reduce_scatter_base",
        "reduce_scatter_single",
        "reduce_scatter_tensor_coalesced",
        "gather",
    }
)
_EVEN_OUTPUT = (_EVEN_INPUT - {"gather", "reduce", "_reduce_oop"}) | {"all_gather", "scatter"}
#: Operations that ranks split unevenly: the sums over the group must agree.
_EXCHANGE = frozenset({"all_to_all", "all_to_all_single", "all_to_all_v_single"})
#: How many collectives a rank may have left out or added to be recognised by what follows.
_MAX_SLIP = 4

Fingerprint = tuple[tuple[str, object, object], ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Ranks that do not mean the same collective."""

    #: "type", "size", "dtype" or "order".
    kind: str
    group: GroupKey
    sequence: int
    #: The ranks that differ from most others; all of them where there is no majority.
    ranks: tuple[int, ...]
    #: One operation of each side, the majority's first.
    sides: tuple[tuple[tuple[int, ...], Operation], ...]
    text: str
    #: Every rank got past it, so that nothing hangs for it.
    passed: bool


def mismatches(by_group: Mapping[GroupKey, Mapping[int, Sequence[Operation]]]) -> list[Mismatch]:
    """The first mismatch of every group, from the collectives of each of its ranks."""
    found = []
    for key, by_rank in by_group.items():
        series = {rank: _by_sequence(operations) for rank, operations in by_rank.items()}
        sequences = sorted({number for each in series.values() for number in each})
        for number in sequences:
            present = {rank: each[number] for rank, each in series.items() if number in each}
            mismatch = _compare(key, number, present, series) if len(present) > 1 else None
            if mismatch is not None:
                found.append(mismatch)
                break
    return sorted(found, key=lambda each: (each.passed, each.sides[0][1].created_ns or 0))


def unequal_message(key: GroupKey, send: Operation, receive: Operation) -> Mismatch | None:
    """The mismatch of a send and the receive it meets, where one is larger than the other or of another type."""
    given, taken = elements(send.input_sizes), elements(receive.output_sizes)
    types = send.input_dtypes or None, receive.output_dtypes or None
    if None not in types and types[0] != types[1]:
        kind = "dtype"
    elif given is not None and taken is not None and given != taken:
        kind = "size"
    else:
        return None
    sides = (((send.rank,), send), ((receive.rank,), receive))
    text = " against ".join(f"{each.name} {_size_text(each)} {'/'.join(each.input_dtypes or ())}" for _, each in sides)
    return Mismatch(kind, key, send.sequence, (send.rank, receive.rank), sides, text, passed=False)


def _by_sequence(operations: Sequence[Operation]) -> dict[int, tuple[Operation, ...]]:
    grouped: dict[int, list[Operation]] = {}
    for operation in operations:
        grouped.setdefault(operation.sequence, []).append(operation)
    return {number: tuple(each) for number, each in grouped.items()}


def _compare(
    key: GroupKey,
    number: int,
    present: Mapping[int, tuple[Operation, ...]],
    series: Mapping[int, Mapping[int, tuple[Operation, ...]]],
) -> Mismatch | None:
    # A coalesced group may be cut by the ring buffer: only what all of them have is compared.
    length = min(map(len, present.values()))
    prints = {rank: _fingerprint(operations[-length:]) for rank, operations in present.items()}
    counts = Counter(prints.values()).most_common()
    if len(counts) == 1:
        return _uneven_exchange(key, number, present)
    majority = counts[0][0] if counts[0][1] > counts[1][1] else None
    reference = majority if majority is not None else prints[min(prints)]
    kinds = {_difference(reference, each) for each in prints.values()} - {""}
    if not kinds:
        return None
    odd = [rank for rank, each in sorted(prints.items()) if majority is None or _difference(majority, each)]
    sides = _sides(present, prints, reference)
    # A collective left out shows as another size where its neighbours have the same name.
    slip = "" if kinds == {"dtype"} else _slip(number, odd, sides, series)
    kind = "order" if slip else next(each for each in ("type", "dtype", "size") if each in kinds)
    text = slip or _text(kind, sides)
    passed = all(operation.completed for operations in present.values() for operation in operations)
    return Mismatch(kind, key, number, tuple(odd), sides, text, passed)


def _sides(
    present: Mapping[int, tuple[Operation, ...]], prints: Mapping[int, Fingerprint], reference: Fingerprint
) -> tuple[tuple[tuple[int, ...], Operation], ...]:
    by_print: dict[Fingerprint, list[int]] = {}
    for rank, each in sorted(prints.items()):
        by_print.setdefault(each, []).append(rank)
    ordered = sorted(by_print.items(), key=lambda item: (item[0] != reference, -len(item[1])))
    return tuple((tuple(ranks), present[ranks[0]][-1]) for _, ranks in ordered)


def _fingerprint(operations: Sequence[Operation]) -> Fingerprint:
    return tuple((operation.name, _sizes(operation), _dtypes(operation)) for operation in operations)


def _sizes(operation: Operation) -> object:
    name = operation.name
    given = elements(operation.input_sizes) if name in _EVEN_INPUT else None
    taken = elements(operation.output_sizes) if name in _EVEN_OUTPUT else None
    return (given, taken) if given is not None or taken is not None else None


def elements(sizes: tuple[tuple[int, ...], ...] | None) -> tuple[int, ...] | None:
    """Number of elements of each tensor."""
    return None if sizes is None else tuple(prod(dimensions) for dimensions in sizes)


def _dtypes(operation: Operation) -> object:
    # Only a root has both sides of these.
    if operation.name in ("scatter", "gather"):
        return None
    return tuple(sorted(set(operation.input_dtypes or operation.output_dtypes or ()))) or None


def _difference(left: Fingerprint, right: Fingerprint) -> str:
    """The first difference of two fingerprints; what one side does not tell is no difference."""
    for (name, sizes, dtypes), (other, other_sizes, other_dtypes) in zip(left, right, strict=True):
        if name != other:
            return "type"
        if dtypes != other_dtypes and dtypes is not None and other_dtypes is not None:
            return "dtype"
        if sizes != other_sizes and sizes is not None and other_sizes is not None:
            return "size"
    return ""


def _uneven_exchange(key: GroupKey, number: int, present: Mapping[int, tuple[Operation, ...]]) -> Mismatch | None:
    """An all-to-all in which more is sent than received: what goes in must come out."""
    operations = {rank: each[0] for rank, each in present.items() if len(each) == 1}
    if set(operations) != set(key.ranks) or any(each.name not in _EXCHANGE for each in operations.values()):
        return None
    sent, received = 0, 0
    for operation in operations.values():
        given, taken = elements(operation.input_sizes), elements(operation.output_sizes)
        if given is None or taken is None:
            return None
        sent, received = sent + sum(given), received + sum(taken)
    if sent == received:
        return None
    first = operations[min(operations)]
    text = f"the ranks send {sent:,} elements in all and receive {received:,}"
    passed = all(each.completed for each in operations.values())
    ranks = tuple(sorted(operations))
    return Mismatch("size", key, number, ranks, ((ranks, first),), text, passed)


def _slip(
    number: int,
    odd: Sequence[int],
    sides: tuple[tuple[tuple[int, ...], Operation], ...],
    series: Mapping[int, Mapping[int, tuple[Operation, ...]]],
) -> str:
    """Whether one rank left collectives out, or has some too many: what follows is then the others', shifted."""
    first, other = sides[0][0][0], sides[-1][0][0]
    reference, own = series[first], series[other]
    if len(sides) != 2 or (len(odd) != 1 and len(series) != 2) or _shifted(own, reference, number, 0):
        return ""
    for shift in range(1, _MAX_SLIP + 1):
        for left, right, verbs in ((own, reference, ("left out", "added")), (reference, own, ("added", "left out"))):
            if _shifted(left, right, number, shift):
                extra = right[number][0]
                what = f"{extra.name} {_size_text(extra)}" if shift == 1 else f"{shift} collectives"
                who = f"rank {other} {verbs[0]} {what}"
                who += f", or rank {first} {verbs[1]} it," if len(odd) > 1 else ""
                return f"{who} at sequence {number}: what follows is that of the others, shifted by {shift}"
    return ""


def _shifted(
    left: Mapping[int, Sequence[Operation]], right: Mapping[int, Sequence[Operation]], number: int, shift: int
) -> bool:
    """Whether what `left` did from `number` on is what `right` did `shift` later."""
    begin = number if shift else number + 1
    alike = [_alike(left[step], right[step + shift]) for step in left if step >= begin and step + shift in right]
    return bool(alike) and all(alike)


def _alike(left: Sequence[Operation], right: Sequence[Operation]) -> bool:
    return len(left) == len(right) and not _difference(_fingerprint(left), _fingerprint(right))


def _text(kind: str, sides: Sequence[tuple[tuple[int, ...], Operation]]) -> str:
    told = []
    for _, operation in sides[:4]:
        match kind:
            case "type":
                told.append(operation.name)
            case "dtype":
                told.append(f"{operation.name} of {'/'.join(operation.input_dtypes or operation.output_dtypes or ())}")
            case _:
                told.append(f"{operation.name} {_size_text(operation)}")
    return " against ".join(told)


def _size_text(operation: Operation) -> str:
    given, taken = operation.input_sizes, operation.output_sizes
    return f"{_shape_text(given)} -> {_shape_text(taken)}" if given != taken else _shape_text(given)


def _shape_text(sizes: tuple[tuple[int, ...], ...] | None) -> str:
    if not sizes:
        return "[]"
    shown = ", ".join("x".join(map(str, dimensions)) or "scalar" for dimensions in sizes[:3])
    return f"[{shown}{', ...' if len(sizes) > 3 else ''}]"
