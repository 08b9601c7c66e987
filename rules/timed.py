"""Operations that the communication library timed on the device, one by one, joined over ranks.

A collective's kernel runs from the moment its own rank arrives until all have exchanged their parts. So in one
collective the rank with the shortest kernel came last, what the others' kernels last longer is their wait for it, and
the shortest kernel is the transfer alone: that one says what the links do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rankscope.rules.lateness import Meeting

#: Messages below this size are bound by latency: their bandwidth says nothing of a link.
LEAST_LINK_BYTES = 1 << 20
#: A communicator or pair this much below those of its kind, or below its own beginning, is slow: what NCCL reaches
#: on equal links of healthy nodes differs by far less.
SLOW_LINK = 0.7
#: Fewer exchanges of one kind say nothing of a link.
_LEAST_EXCHANGES = 5
#: Bytes that cross each rank's link for each byte of the operation's message (NCCL's "bus bandwidth" convention,
#: nccl-tests doc/PERFORMANCE.md): factor of the message, by n ranks.
_SHARED = frozenset(("AllGather", "AllGatherV", "ReduceScatter"))


@dataclass(frozen=True, slots=True)
class Process:
    """Who took part: a process on a host; `rank` is its global rank, where that is known."""

    host: str
    pid: int
    rank: int | None = None

    def __str__(self) -> str:
        name = f"process {self.pid}" if self.rank is None else f"rank {self.rank}"
        return f"{name} on {self.host}"


@dataclass(frozen=True, slots=True)
class TimedOperation:
    """One operation as one rank's library timed it. Ranks and peers are numbers within the communicator."""

    communicator: str
    #: As the framework called it; "" where it did not.
    name: str
    rank: int
    size: int
    hosts: int | None
    operation: str
    #: Counted by communicator and operation; the same on all ranks.
    sequence: int
    #: The other side of a send or receive.
    peer: int | None
    size_bytes: int
    duration_us: int
    #: "kernel_gpu": from the device's clock; else the host saw it begin and end.
    timing: str
    #: When the library wrote it down, wall clock, us: the operation had ended by then.
    written_us: int
    #: When the host enqueued it, and when its kernel was seen to begin and end, wall clock, us; verbose output only.
    enqueued_us: int | None
    host: str
    pid: int

    @property
    def on_device(self) -> bool:
        """Whether the duration is the device's."""
        return self.timing == "kernel_gpu"


def bus_bandwidth(operation: str, size: int, size_bytes: int, duration_us: float) -> float | None:
    """GB/s over each rank's link in NCCL's own convention; None where it has none for the operation, or no time."""
    if duration_us <= 0 or size < 1:
        return None
    if operation == "AllReduce":
        moved = size_bytes * 2 * (size - 1) / size
    elif operation in _SHARED:
        moved = float(size_bytes * (size - 1))
    else:
        moved = float(size_bytes)
    return moved / duration_us / 1e3


@dataclass(frozen=True, slots=True)
class Joined:
    """One collective over the ranks that were seen in it: duration in us by rank of the communicator."""

    communicator: str
    operation: str
    sequence: int
    size: int
    size_bytes: int
    durations_us: Mapping[int, int]

    @property
    def whole(self) -> bool:
        """Whether every member was seen: only then is the shortest kernel surely the last rank's."""
        return len(self.durations_us) == self.size


def join(operations: Iterable[TimedOperation]) -> list[Joined]:
    """Collectives of several ranks, by communicator, operation and number, in order."""
    found: dict[tuple[str, str, int], dict[int, TimedOperation]] = {}
    for each in operations:
        if each.peer is None:
            found.setdefault((each.communicator, each.operation, each.sequence), {})[each.rank] = each
    joined = []
    for (communicator, operation, sequence), ranks in sorted(found.items()):
        first = next(iter(ranks.values()))
        # Durations of different clocks cannot be compared.
        if len(ranks) > 1 and len({each.timing for each in ranks.values()}) == 1:
            durations = {rank: each.duration_us for rank, each in sorted(ranks.items())}
            size_bytes = max(each.size_bytes for each in ranks.values())
            joined.append(Joined(communicator, operation, sequence, first.size, size_bytes, durations))
    return joined


def meetings(joined: Iterable[Joined], processes: Mapping[tuple[str, int], Process]) -> list[Meeting[Process]]:
    """Who came how much later than whom, told by durations alone: no clock is compared with another."""
    return [
        Meeting(
            each.communicator,
            {processes[each.communicator, rank]: -1e3 * value for rank, value in each.durations_us.items()},
        )
        for each in joined
        if each.whole
    ]


def processes_of(operations: Sequence[TimedOperation]) -> dict[tuple[str, int], Process]:
    """Who has which rank in which communicator.

    Global ranks are those of the one communicator that all processes are in; where there is none, nobody's is known.
    """
    members: dict[tuple[str, int], tuple[str, int]] = {}
    sizes: dict[str, int] = {}
    for each in operations:
        members[each.communicator, each.rank] = (each.host, each.pid)
        sizes[each.communicator] = each.size
    every = set(members.values())
    world = next((of for of, size in sorted(sizes.items()) if size == len(every)), None)
    ranks = {place: rank for (of, rank), place in members.items() if of == world}
    return {key: Process(*place, ranks.get(place)) for key, place in members.items()}


@dataclass(frozen=True, slots=True)
class SlowLink:
    """A communicator, or a pair of ranks, whose exchanges are slow against others of their kind or their own past."""

    communicator: str
    operation: str
    size_bytes: int
    #: Ranks of the communicator; the two of a pair.
    ranks: tuple[int, ...]
    bus_gbs: float
    usual_gbs: float
    #: "peers" or "past".
    against: str


def slow_links(joined: Sequence[Joined], operations: Sequence[TimedOperation]) -> list[SlowLink]:
    """Links that stand out, the slowest first. Transfers only: waiting for late ranks is not in them."""
    rates: dict[tuple[str, int, int], dict[tuple[str, tuple[int, ...]], list[float]]] = {}
    for each in joined:
        if each.whole and each.size_bytes >= LEAST_LINK_BYTES:
            rate = bus_bandwidth(each.operation, each.size, each.size_bytes, min(each.durations_us.values()))
            if rate is not None:
                kind = (each.operation, each.size, each.size_bytes)
                place = (each.communicator, tuple(each.durations_us))
                rates.setdefault(kind, {}).setdefault(place, []).append(rate)
    for key, values in _pairs(operations).items():
        communicator, operation, size_bytes, ranks = key
        rates.setdefault((operation, 2, size_bytes), {})[communicator, ranks] = values
    found = []
    for (operation, _, size_bytes), places in rates.items():
        usual = {place: median(values) for place, values in places.items() if len(values) >= _LEAST_EXCHANGES}
        for place, rate in usual.items():
            others = [value for other, value in usual.items() if other != place]
            values = places[place]
            before = median(values[: len(values) // 3] or values)
            after = median(values[-(len(values) // 3) :] or values)
            if len(others) > 1 and rate < SLOW_LINK * median(others):
                found.append(SlowLink(place[0], operation, size_bytes, place[1], rate, median(others), "peers"))
            elif len(values) >= 3 * _LEAST_EXCHANGES and after < SLOW_LINK * before:
                found.append(SlowLink(place[0], operation, size_bytes, place[1], after, before, "past"))
    return sorted(found, key=lambda each: each.bus_gbs / each.usual_gbs)


def _pairs(
    operations: Iterable[TimedOperation],
) -> dict[tuple[str, str, int, tuple[int, ...]], list[float]]:
    """Rates of point-to-point exchanges by pair, in order: of the two sides of one the faster, which waited less."""
    sides: dict[tuple[str, int, tuple[int, ...], int], float] = {}
    for each in operations:
        if each.peer is None or each.size_bytes < LEAST_LINK_BYTES:
            continue
        rate = bus_bandwidth(each.operation, each.size, each.size_bytes, each.duration_us)
        if rate is not None:
            sends = each.operation == "Send"
            pair = (each.rank, each.peer) if sends else (each.peer, each.rank)
            key = (each.communicator, each.size_bytes, pair, each.sequence)
            sides[key] = max(rate, sides.get(key, 0.0))
    found: dict[tuple[str, str, int, tuple[int, ...]], list[float]] = {}
    for (communicator, size_bytes, ranks, _), rate in sorted(sides.items()):
        found.setdefault((communicator, "SendRecv", size_bytes, ranks), []).append(rate)
    return found
