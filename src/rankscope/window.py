"""The window of a job that rules look at: columns a rank, series a device, events. Plain data, no store behind it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.reading import Event
from rankscope.records import CollectiveRecord, MemoryRecord, SignalRecord


@dataclass(slots=True)
class Columns:
    """Records of one kind as columns of equal length: field name -> array('d'); a missing value is NaN."""

    columns: dict[str, array[float]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(slots=True)
class Series:
    """One metric of one device over time: CLOCK_MONOTONIC ns of that host, and values, in order."""

    times_ns: array[int]
    values: array[float]


@dataclass(frozen=True, slots=True)
class SeriesKey:
    """Which series: host, metric (metrics.METRICS), device ("" for the host itself)."""

    host: str
    metric: str
    device: str = ""


@dataclass(slots=True)
class RankWindow:
    """All that is known of one rank in the window."""

    identity: RankIdentity
    #: Fields of StepRecord, ordered by step.
    steps: Columns
    #: Fields of DeviceRecord, ordered by step; empty where there was no device clock.
    device: Columns
    #: Fields of GroupRecord but `group`, by process group.
    groups: dict[str, Columns] = field(default_factory=dict)
    #: Fields of PhaseRecord but `name`, by the user's name.
    phases: dict[str, Columns] = field(default_factory=dict)
    #: Global ranks of each process group, as ranges ("0-3,8").
    members: dict[str, str] = field(default_factory=dict)
    #: Operations that a source told one by one, by time.
    collectives: Sequence[CollectiveRecord] = ()
    #: Collectives that the communication library timed on the device, by (process group, operation), in order:
    #: step, sequence, size_bytes, ranks (of the group) and duration_ns.
    timed: Mapping[tuple[str, str], Columns] = field(default_factory=dict)
    #: What the training loop said of its progress, by step.
    signals: Sequence[SignalRecord] = ()
    #: Looks into the allocator, by time.
    memory: Sequence[MemoryRecord] = ()


@dataclass(slots=True)
class Attempt:
    """One launch of the job's ranks: a launcher that restarts them makes several in one run."""

    #: As the launcher counts.
    number: int
    #: Launches with the same number, in order: one command may launch a job twice.
    generation: int
    #: When the first rank attached and the last one was heard of.
    begin_ns: int
    end_ns: int
    ranks: int
    #: (host, pid) of each.
    processes: frozenset[tuple[str, int]]
    #: step, start_ns, end_ns, checkpoint_ns and evaluation_ns of one rank that went all the way: of those, the one that
    #: spent most on checkpoints.
    steps: Columns


@dataclass(frozen=True, slots=True)
class HostClock:
    """How a host's clock was joined to the first host's."""

    host: str
    #: How far it was ahead, besides what the wall clocks' own reading says; taken off its times.
    correction_ns: int
    #: Its times may be off by this still; None where nothing tells.
    error_ns: int | None
    #: They are surely off by no more than this; None where ranks did not meet, or not often enough.
    bound_ns: int | None
    #: "one kernel", "wall clocks" (as the kernel says they are disciplined), "collectives", or "steps" (their times in
    #: a store).
    source: str
    #: Operations in which ranks of both hosts met, that were looked at.
    operations: int


@dataclass(slots=True)
class Window:
    """One job over one stretch of time, from one or several hosts."""

    job: str
    ranks: dict[int, RankWindow]
    series: Mapping[SeriesKey, Series]
    events: Sequence[Event]
    #: Clock anchor of each host, to turn monotonic ns into wall time.
    anchors: Mapping[str, ClockAnchor]
    begin_ns: int
    end_ns: int
    world_size: int
    #: Sources that could not be read, one line each.
    not_seen: Sequence[str] = ()
    #: Exit status of the job as `run` saw it (128+n for a signal); None while it runs or where nobody saw it end.
    job_status: int | None = None
    #: GPUs seen by NVML on each host, by index.
    gpus: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: Every attempt in the recordings, in order; `ranks` holds the last in which a rank finished a step.
    attempts: Sequence[Attempt] = ()
    #: Clocks of the further hosts; all times of the window are on the first one's already.
    clocks: Sequence[HostClock] = ()
