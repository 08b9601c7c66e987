"""Flight-recorder dumps of collectives: one rank's dump, whatever version wrote it, as plain typed records.

The layout is that of PyTorch's FlightRecorder (torch/csrc/distributed/c10d/FlightRecorder.hpp): versions 1.x named the
sequence `seq_id` and had no groups, 2.x has `collective_seq_id`, `p2p_seq_id`, `pg_config` and `pg_status`, and JSON
spells numbers of `pg_status` as strings. A field that is absent or of another type is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from rankscope.errors import RankscopeError

_Part = TypeVar("_Part")
#: What a dump may hold at most: the recorder's buffer is 2,000 entries unless set otherwise.
MAX_ENTRIES = 1_000_000
_MAX_FRAMES = 64
_SEND = re.compile(r"^send (\d+)->(\d+)$")
_RECEIVE = re.compile(r"^recv (\d+)<-(\d+)$")
#: gloo never moves an entry on from "scheduled"; it retires the ones that are done.
_WITHOUT_STATES = frozenset({"gloo", "mpi", "ucc"})


class DumpError(RankscopeError):
    """Something that is not a flight-recorder dump, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One call of a stack, as recorded when the collective was enqueued."""

    function: str
    file: str
    line: int | None

    def __str__(self) -> str:
        return f"{self.file}:{'?' if self.line is None else self.line} {self.function}"


@dataclass(frozen=True, slots=True, order=True)
class GroupKey:
    """A process group over all ranks: its name and members. Members are () where the dump does not list them."""

    name: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One collective or point-to-point operation of one rank."""

    rank: int
    #: Place in this rank's order of enqueueing.
    order: int
    group: GroupKey
    name: str
    sequence: int
    #: Global rank of the other side of a send or receive.
    peer: int | None
    point_to_point: bool
    #: "scheduled", "started" or "completed" as recorded; completed too where a backend without states retired it.
    state: str
    input_sizes: tuple[tuple[int, ...], ...] | None
    output_sizes: tuple[tuple[int, ...], ...] | None
    input_dtypes: tuple[str, ...] | None
    output_dtypes: tuple[str, ...] | None
    created_ns: int | None
    #: Innermost call first.
    frames: tuple[Frame, ...]
    #: When its end was noticed: up to a watchdog's round, 0.1 s, after it came. Not on backends without states.
    ended_ns: int | None = None

    @property
    def completed(self) -> bool:
        """Whether this rank saw it end."""
        return self.state == "completed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one rank came in one group, by sequence number. None where it is not told."""

    enqueued: int | None
    completed: int | None


@dataclass(frozen=True, slots=True)
class RankFlight:
    """One rank's dump."""

    rank: int
    version: str
    groups: Mapping[GroupKey, str]
    operations: tuple[Operation, ...]
    #: By group. Sequences of groups with point-to-point traffic are not in here: they differ between ranks by nature.
    status: Mapping[GroupKey, Progress]
    source: str = ""
    #: Groups in `status` whose name was told by the order of creation, for want of an entry.
    inferred: frozenset[GroupKey] = field(default=frozenset())
    notes: tuple[str, ...] = ()


def parse_dump(document: object, rank: int, source: str = "") -> RankFlight:
    """A rank's dump from what its pickle or JSON holds. Raises DumpError where it is something else."""
    if isinstance(document, Sequence) and not isinstance(document, (str, bytes)):
        # The first versions were the list of entries alone.
        document = {"version": "1", "entries": document}
    if not isinstance(document, Mapping) or not ("entries" in document or "pg_status" in document):
        raise DumpError("not a flight-recorder dump (no entries)", where=source)
    raw = document.get("entries") or []
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise DumpError("not a flight-recorder dump (entries are no list)", where=source)
    configured = _groups(document.get("pg_config"))
    groups = dict(configured)
    entries = [entry for entry in raw[-MAX_ENTRIES:] if isinstance(entry, Mapping)]
    operations: list[Operation] = []
    names: dict[int, GroupKey] = {}
    # Thousands of entries come from a few calls: equal parts are kept once.
    known: dict[Any, Any] = {}
    for place, entry in enumerate(entries):
        operation, number = _operation(entry, rank, place, configured, known)
        if operation is not None:
            operations.append(operation)
            groups.setdefault(operation.group, _description(entry.get("process_group")))
            if number is not None:
                names[number] = operation.group
    operations = _settle_batches(sorted(operations, key=lambda each: each.order))
    notes = []
    if len(entries) < len(raw):
        notes.append(f"{len(raw) - len(entries)} of its entries are no records")
    if len(operations) < len(entries):
        notes.append(f"{len(entries) - len(operations)} of its entries have no operation or sequence")
    if len(entries) < len(raw) and not operations:
        raise DumpError("not a flight-recorder dump (no entry is a record)", where=source)
    if any(key.ranks and rank not in key.ranks for key in groups):
        notes.append("its process groups do not list this rank: is the file's name right?")
    status, inferred = _status(document.get("pg_status"), names, configured, operations)
    return RankFlight(
        rank=rank,
        version=str(document.get("version", "?"))[:32],
        groups=groups,
        operations=tuple(operations),
        status=status,
        source=source,
        inferred=inferred,
        notes=tuple(notes),
    )


def sole_rank(document: object) -> int | None:
    """The rank a dump is of, where its process groups leave only one: for files whose names do not say."""
    if not isinstance(document, Mapping):
        return None
    members = [set(key.ranks) for key in _groups(document.get("pg_config")) if key.ranks]
    common = set.intersection(*members) if members else set()
    return common.pop() if len(common) == 1 else None


def _groups(config: object) -> dict[GroupKey, str]:
    """Description by group. `ranks` is a list written as text in most versions."""
    groups: dict[GroupKey, str] = {}
    if isinstance(config, Mapping):
        for key, value in config.items():
            if isinstance(value, Mapping) and (name := str(value.get("name", key))[:256]):
                ranks = _ranks(value.get("ranks"))
                groups[GroupKey(name, ranks)] = str(value.get("desc", ""))[:256]
    return groups


def _ranks(value: object) -> tuple[int, ...]:
    if isinstance(value, str):
        return tuple(sorted({int(number) for number in re.findall(r"\d{1,9}", value)}))
    if isinstance(value, Sequence):
        return tuple(sorted({number for number in map(_integer, value) if number is not None and number >= 0}))
    return ()


def _operation(
    entry: Mapping[Any, Any], rank: int, place: int, groups: Mapping[GroupKey, str], known: dict[Any, Any]
) -> tuple[Operation | None, int | None]:
    """One entry, and the rank-local number of its group."""
    backend, _, name = str(entry.get("profiling_name", "")).rpartition(":")
    sequence = _integer(entry.get("collective_seq_id", entry.get("seq_id")))
    if not name or sequence is None:
        return None, None
    number = _integer(entry.get("pg_id"))
    group = _group_of(entry.get("process_group"), number, groups)
    peer, point_to_point = None, bool(entry.get("is_p2p", False))
    for pattern in (_SEND, _RECEIVE):
        if found := pattern.match(name):
            # Numbers are places in the group; the own one comes first in both.
            other = int(found[2])
            peer = group.ranks[other] if other < len(group.ranks) else None if group.ranks else other
            name, point_to_point = name[:4], True
    if point_to_point and (number_p2p := _integer(entry.get("p2p_seq_id"))):
        sequence = number_p2p
    state = str(entry.get("state", "scheduled"))
    if backend in _WITHOUT_STATES and entry.get("retired") is True:
        state = "completed"
    order = _integer(entry.get("record_id"))
    operation = Operation(
        rank=rank,
        order=place if order is None else order,
        group=group,
        name=name[:128],
        sequence=sequence,
        peer=peer,
        point_to_point=point_to_point,
        state=state if state in ("scheduled", "started", "completed") else "scheduled",
        input_sizes=_one(_sizes(entry.get("input_sizes")), known),
        output_sizes=_one(_sizes(entry.get("output_sizes")), known),
        input_dtypes=_one(_texts(entry.get("input_dtypes")), known),
        output_dtypes=_one(_texts(entry.get("output_dtypes")), known),
        created_ns=_integer(entry.get("time_created_ns")),
        frames=_one(_frames(entry.get("frames"), known), known),
        ended_ns=_integer(entry.get("time_discovered_completed_ns")),
    )
    return operation, number


def _settle_batches(operations: Sequence[Operation]) -> list[Operation]:
    """Operations of one coalesced batch get the state of the entry that ends it: the recorder updates that one alone.

    A batch that lacks its end in a dump of unfinished entries only has ended, unless it is the group's latest.
    """
    batches: dict[tuple[GroupKey, bool, int], list[int]] = {}
    latest: dict[tuple[GroupKey, bool], int] = {}
    for place, each in enumerate(operations):
        kind = (each.group, each.point_to_point)
        batches.setdefault((*kind, each.sequence), []).append(place)
        latest[kind] = max(latest.get(kind, -1), each.sequence)
    settled = list(operations)
    for (group, point_to_point, sequence), places in batches.items():
        if len(places) > 1:
            end = operations[places[-1]]
            state = end.state if end.name.endswith("coalesced") else ""
            if not state and sequence < latest[group, point_to_point]:
                state = "completed"
            for place in places if state else ():
                settled[place] = replace(operations[place], state=state)
    return settled


def _group_of(value: object, number: int | None, groups: Mapping[GroupKey, str]) -> GroupKey:
    """The group of an entry: (name, description), a name, or only the rank's own number of it."""
    name = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
    if name is None or isinstance(name, (list, tuple)):
        name = "" if number is None else str(number)
    name = str(name)[:256]
    return next((key for key in groups if key.name == name), GroupKey(name))


def _description(value: object) -> str:
    return str(value[1])[:256] if isinstance(value, (list, tuple)) and len(value) > 1 else ""


def _status(
    value: object,
    names: Mapping[int, GroupKey],
    groups: Mapping[GroupKey, str],
    operations: Sequence[Operation],
) -> tuple[dict[GroupKey, Progress], frozenset[GroupKey]]:
    """Progress by group from pg_status, whose keys are this rank's own numbers of its groups.

    A number is tied to a group by an entry that names both. Numbers and (numeric) names are both given out in the order
    of creation, so between two that are tied the rest follows wherever as many numbers as names are left.
    """
    if not isinstance(value, Mapping):
        return {}, frozenset()
    found: dict[int, Progress] = {}
    for key, raw in value.items():
        number = _integer(key)
        if number is not None and isinstance(raw, Mapping):
            enqueued, completed = (_integer(raw.get(f"last_{what}_collective")) for what in ("enqueued", "completed"))
            found[number] = Progress(enqueued, completed)
    tied = {number: names[number] for number in found if number in names}
    inferred = _by_order(sorted(found), tied, groups)
    mixed = {operation.group for operation in operations if operation.point_to_point}
    last: dict[GroupKey, int] = {}
    for operation in operations:
        last[operation.group] = max(last.get(operation.group, -1), operation.sequence)
    status: dict[GroupKey, Progress] = {}
    for number, key in (tied | inferred).items():
        progress = found[number]
        # Counted another way than the entries (sends are counted too): not comparable.
        other = key in last and progress.enqueued is not None and abs(progress.enqueued - last[key]) > 1
        if key not in mixed and not other:
            status[key] = progress
    return status, frozenset(inferred.values()) & frozenset(status)


def _by_order(
    numbers: Sequence[int], tied: Mapping[int, GroupKey], groups: Mapping[GroupKey, str]
) -> dict[int, GroupKey]:
    if not all(key.name.isdecimal() for key in groups) or len({key.name for key in groups}) != len(groups):
        return {}
    ordered = sorted(groups, key=lambda key: int(key.name))
    places = {key: place for place, key in enumerate(ordered)}
    inferred: dict[int, GroupKey] = {}
    begin_number, begin_group = 0, 0
    stops = [(place, number) for place, number in enumerate(numbers) if number in tied and tied[number] in places]
    for place, stop in [*((place, places[tied[number]]) for place, number in stops), (len(numbers), len(ordered))]:
        if stop < begin_group:
            return {}
        if place - begin_number == stop - begin_group:
            inferred |= dict(zip(numbers[begin_number:place], ordered[begin_group:stop], strict=True))
        begin_number, begin_group = place + 1, stop + 1
    return inferred


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    return None


def _texts(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    return tuple(str(each)[:64] for each in value)


def _sizes(value: object) -> tuple[tuple[int, ...], ...] | None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    sizes = []
    for dimensions in value:
        if not isinstance(dimensions, Sequence) or isinstance(dimensions, str):
            return None
        numbers = tuple(map(_integer, dimensions))
        if any(number is None or number < 0 for number in numbers):
            return None
        sizes.append(tuple(number for number in numbers if number is not None))
    return tuple(sizes)


def _one(value: _Part, known: dict[Any, Any]) -> _Part:
    """The one of its kind."""
    kept: _Part = known.setdefault(value, value)
    return kept


def _frames(value: object, known: dict[Any, Any]) -> tuple[Frame, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    found = []
    for frame in value[:_MAX_FRAMES]:
        if isinstance(frame, Mapping):
            parts = (
                str(frame.get("name", "?"))[:256],
                str(frame.get("filename", "?"))[:512],
                _integer(frame.get("line")),
            )
            kept = known.get(parts)
            if kept is None:
                kept = known[parts] = Frame(*parts)
            found.append(kept)
    return tuple(found)
