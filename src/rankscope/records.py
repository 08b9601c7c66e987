"""What a rank says of itself: fixed-size records, one dataclass a kind, integers only.

Every field is a signed 64-bit integer in the order below; None travels as the smallest one. Times are nanoseconds of
CLOCK_MONOTONIC or durations in nanoseconds unless the name says otherwise. docs/ring.md documents the bytes.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Any, ClassVar

#: How None travels in a 64-bit field. No counter or duration reaches it.
MISSING = -(2**63)
#: No count and no time since a host started reaches it (2^62 ns are 146 years).
LARGEST = 2**62


class Phase(IntEnum):
    """Where in a step the training thread is. The values are part of the ring format."""

    NONE = 0
    DATA_WAIT = 1
    FORWARD = 2
    BACKWARD = 3
    COLLECTIVE_WAIT = 4
    OPTIMIZER = 5
    CHECKPOINT = 6
    EVALUATION = 7
    OTHER = 8
    ENDED = 9
    #: Copies of the batch to the device.
    H2D = 10
    #: The host was blocked until the device had caught up.
    SYNC = 11
    #: A pipeline stage waited for another stage's activations or gradients.
    BUBBLE = 12


class StepFlag(IntFlag):
    """What is peculiar about a step. The values are part of the ring format."""

    #: Among the first of the run, or compiled: no measure of the steady state.
    WARM_UP = 1
    #: No optimizer stepped (a gradient scaler met infinities).
    SKIPPED = 2
    #: Its bounds were said by the user and not inferred.
    EXPLICIT = 4


class GroupKind(IntEnum):
    """What a process group is for. The values are part of the ring format."""

    UNKNOWN = 0
    DATA = 1
    SHARD = 2
    TENSOR = 3
    PIPELINE = 4
    EXPERT = 5
    CONTEXT = 6


class RecordKind(IntEnum):
    """What a ring slot holds. The values are part of the ring format."""

    STEP = 1
    DEVICE = 2
    GROUP = 3
    PHASE = 4
    MARK = 5
    COLLECTIVE = 6
    SIGNAL = 7
    MEMORY = 8


class MarkKind(IntEnum):
    """Moments of a rank's life, told by the rank itself."""

    ATTACHED = 1
    PROCESS_GROUP = 2
    EXCEPTION = 3
    ENDED = 4
    DETACHED = 5
    DEGRADED = 6
    STEP_RULE = 7
    RECOMPILE = 8
    LOADER = 9
    NONFINITE = 10
    SNAPSHOT = 11
    WINDOW = 12


def _absent(values: Sequence[int]) -> Sequence[Any]:
    # Most records lack nothing: to look costs less than to build them anew.
    return [None if value == MISSING else value for value in values] if MISSING in values else values


class _Integers:
    """Packing shared by the records that are integers only.

    These come with every step of every rank, so they are not frozen: to make one that is takes four times as long.
    """

    __slots__ = ()
    kind: ClassVar[RecordKind]
    layout: ClassVar[struct.Struct]

    @classmethod
    def decode(cls, payload: bytes) -> Any:
        """The record in `payload`, whole integers long; fields that an older writer did not know are None."""
        return cls(*_absent(struct.unpack(f"<{len(payload) // 8}q", payload)))


@dataclass(slots=True, unsafe_hash=True)
class StepRecord(_Integers):
    """One training step on the host's clock, written when the step ends.

    `phases_ns` splits end - start without a rest. GC and compile time lie inside phases; so did sync time in rings of
    version 1. backward_ns is backward_own_ns and the wait for other ranks at its end.
    """

    kind: ClassVar[RecordKind] = RecordKind.STEP
    step: int
    start_ns: int
    end_ns: int
    data_wait_ns: int
    forward_ns: int
    backward_ns: int
    optimizer_ns: int
    checkpoint_ns: int
    evaluation_ns: int
    other_ns: int
    #: Host time from the begin of backward to the end of its own work (waiting for peers excluded).
    backward_own_ns: int | None = None
    #: Host time blocked until the device had caught up (.item(), synchronize()): a phase of its own.
    sync_ns: int | None = None
    sync_count: int | None = None
    gc_ns: int | None = None
    gc_count: int | None = None
    compile_ns: int | None = None
    #: CPU time of the training thread.
    cpu_ns: int | None = None
    #: Time the training thread was runnable but waited for a core.
    runqueue_ns: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    peak_bytes: int | None = None
    alloc_retries: int | None = None
    #: Size of the batch in the loader's own units (first dimension of the first tensor).
    work: int | None = None
    #: Batches the loader's workers had ready when this one was asked for.
    loader_ready: int | None = None
    loader_workers: int | None = None
    #: Time the hooks themselves spent in a step, as last measured (one step in 16 is).
    hook_ns: int | None = None
    #: Backward passes in this step (gradient accumulation).
    backward_count: int | None = None
    # From version 2 on.
    #: Part of forward_ns: copies of the batch to the device, in the steps in which they were looked at (one in 16).
    h2d_ns: int | None = None
    #: Host time waiting for other ranks, the end of backward included.
    collective_wait_ns: int | None = None
    #: Host time a pipeline stage waited for other stages.
    bubble_ns: int | None = None
    #: Of the wait for data, where the loader runs in the training process: reading samples, and collating them.
    fetch_ns: int | None = None
    collate_ns: int | None = None
    #: CPU time of the loader's workers, and their time blocked in block I/O, since they were last looked at.
    loader_cpu_ns: int | None = None
    loader_io_ns: int | None = None
    #: Compilations that replaced an earlier one because a guard failed.
    recompiles: int | None = None
    #: Bits of StepFlag.
    flags: int | None = None
    #: Forward passes of pipeline microbatches.
    microbatches: int | None = None
    #: Collectives and point-to-point operations issued from Python.
    collectives: int | None = None

    def phases_ns(self) -> dict[str, int]:
        """The step by phase, in the order of a step; the values sum to end_ns - start_ns."""
        backward_wait = 0 if self.backward_own_ns is None else self.backward_ns - self.backward_own_ns
        wait = backward_wait if self.collective_wait_ns is None else self.collective_wait_ns
        # Rings of version 1 counted it inside the other phases.
        sync = 0 if self.flags is None else self.sync_ns or 0
        return {
            "data_wait": self.data_wait_ns,
            "h2d": self.h2d_ns or 0,
            "forward": self.forward_ns - (self.h2d_ns or 0),
            "backward": self.backward_ns - backward_wait,
            "collective_wait": wait,
            "bubble": self.bubble_ns or 0,
            "optimizer": self.optimizer_ns,
            "checkpoint": self.checkpoint_ns,
            "evaluation": self.evaluation_ns,
            "sync": sync,
            "other": self.other_ns,
        }


@dataclass(slots=True, unsafe_hash=True)
class DeviceRecord(_Integers):
    """One training step on the device's clock, written one or two steps later, when its events are done.

    Durations are between events on the compute stream. data_wait, forward, backward_own, backward_wait, inner_wait,
    bubble, optimizer and other sum to step; h2d is part of forward, checkpoint and evaluation are parts of other. lead
    is how far the device ran behind the host at that boundary: near zero, the device was starved; large, the host ran
    ahead.
    """

    kind: ClassVar[RecordKind] = RecordKind.DEVICE
    step: int
    step_ns: int
    data_wait_ns: int | None
    forward_ns: int | None
    #: Backward up to the last of this rank's own kernels: what a slow GPU stretches.
    backward_own_ns: int | None
    #: From there to the end of backward: exposed communication, waiting for late ranks included.
    backward_wait_ns: int | None
    optimizer_ns: int | None
    other_ns: int | None
    lead_forward_ns: int | None = None
    lead_backward_ns: int | None = None
    lead_optimizer_ns: int | None = None
    lead_end_ns: int | None = None
    # From version 2 on.
    h2d_ns: int | None = None
    #: Exposed communication outside the end of backward: the compute stream waited for a collective.
    inner_wait_ns: int | None = None
    bubble_ns: int | None = None
    checkpoint_ns: int | None = None
    evaluation_ns: int | None = None
    #: Boundaries passed, and those at which the device had already worked off all before (a starved device).
    boundaries: int | None = None
    drained: int | None = None
    #: 1 where ranks may have waited for each other inside the "own" phases, unseen: then those say little.
    contaminated: int | None = None


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """Own time and wait of one process group in one step: the late rank is the one with the smallest wait."""

    kind: ClassVar[RecordKind] = RecordKind.GROUP
    layout: ClassVar[struct.Struct] = struct.Struct("<6q48s6q80s")
    step: int
    size: int
    count: int
    own_ns: int | None
    wait_ns: int | None
    #: 0 host clock, 1 device clock (events), 2 collectives timed by the communication library.
    on_device: int
    group: str
    # From version 2 on.
    #: One of GroupKind.
    group_kind: int | None = None
    #: All communication of the group in this step as the communication library timed it, and the part of it that
    #: computing hid, where the rank has one group and every wait of its compute stream was seen. None elsewhere.
    comm_ns: int | None = None
    overlap_ns: int | None = None
    #: 1 where waits for this or another group may lie inside own_ns, unseen.
    contaminated: int | None = None
    #: Told in one step of 16: sequence numbers in this group of the first and last operation since they were last told.
    first_sequence: int | None = None
    last_sequence: int | None = None
    #: Global ranks of the group, as ranges ("0-3,8"), cut to 80 bytes.
    members: str = ""

    @classmethod
    def decode(cls, payload: bytes) -> GroupRecord:
        if len(payload) == _GROUP_V1.size:
            *values, group = _GROUP_V1.unpack(payload)
            rest: list[Any] = []
        else:
            unpacked = cls.layout.unpack(payload)
            values, group = list(unpacked[:6]), unpacked[6]
            rest = [*_absent(unpacked[7:13]), text_field(unpacked[13])]
        return cls(*[*_absent(values), text_field(group), *rest])


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """A phase that the user named (`with scope.phase("name")`)."""

    kind: ClassVar[RecordKind] = RecordKind.PHASE
    layout: ClassVar[struct.Struct] = struct.Struct("<3q64s")
    step: int
    start_ns: int
    end_ns: int
    name: str

    @classmethod
    def decode(cls, payload: bytes) -> PhaseRecord:
        step, start, end, name = cls.layout.unpack(payload)
        return cls(step, start, end, text_field(name))


@dataclass(frozen=True, slots=True)
class MarkRecord:
    """A moment in the rank's life, with up to 192 bytes of text."""

    kind: ClassVar[RecordKind] = RecordKind.MARK
    layout: ClassVar[struct.Struct] = struct.Struct("<3q192s")
    time_ns: int
    step: int
    mark: int
    text: str

    @classmethod
    def decode(cls, payload: bytes) -> MarkRecord:
        time_ns, step, mark, text = cls.layout.unpack(payload)
        return cls(time_ns, step, mark, text_field(text))


@dataclass(frozen=True, slots=True)
class CollectiveRecord:
    """One collective or point-to-point operation, where a source tells them one by one."""

    kind: ClassVar[RecordKind] = RecordKind.COLLECTIVE
    layout: ClassVar[struct.Struct] = struct.Struct("<10q24s48s")
    step: int
    #: Number within its group, the same on every rank; None for a point-to-point operation.
    sequence: int | None
    #: When the host enqueued it, and when it began and ended where the source says so.
    enqueued_ns: int
    started_ns: int | None
    ended_ns: int | None
    #: How long this rank waited for it (host or device, as `on_device` says).
    wait_ns: int | None
    size_bytes: int | None
    #: The other rank of a point-to-point operation.
    peer: int | None
    #: As in GroupRecord.
    on_device: int
    group_kind: int
    #: The operation: "allreduce", "recv", ...
    operation: str
    group: str

    @classmethod
    def decode(cls, payload: bytes) -> CollectiveRecord:
        *values, operation, group = cls.layout.unpack(payload)
        return cls(*[*_absent(values), text_field(operation), text_field(group)])


class NonFinite(IntFlag):
    """Which training signal was NaN or infinite. The values are part of the ring format."""

    LOSS = 1
    GRADIENT_NORM = 2


@dataclass(frozen=True, slots=True)
class SignalRecord:
    """What the training loop says of its own progress in one step, on this rank alone."""

    kind: ClassVar[RecordKind] = RecordKind.SIGNAL
    layout: ClassVar[struct.Struct] = struct.Struct("<2q2d5q")
    step: int
    time_ns: int
    #: None where it was not said, or is not finite (`nonfinite` tells which).
    loss: float | None = None
    gradient_norm: float | None = None
    #: Bits of NonFinite.
    nonfinite: int = 0
    samples: int | None = None
    tokens: int | None = None
    #: Floating-point operations of the model in this step, forward and backward.
    flops: int | None = None
    #: Fastest dense rate of this rank's device, operations a second, where the user named it.
    peak_flops: int | None = None

    @classmethod
    def decode(cls, payload: bytes) -> SignalRecord:
        step, time_ns, loss, norm, nonfinite, *counts = cls.layout.unpack(payload)
        return cls(step, time_ns, _finite(loss), _finite(norm), nonfinite, *_absent(counts))


#: Classes of block sizes in a MemoryRecord: class i holds sizes up to 512 << i bytes, the last one all above.
SIZE_CLASSES = 28


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A look into the caching allocator: taken now and then, since it walks every block."""

    kind: ClassVar[RecordKind] = RecordKind.MEMORY
    layout: ClassVar[struct.Struct] = struct.Struct(f"<8q{2 * SIZE_CLASSES}I")
    step: int
    time_ns: int
    allocated_bytes: int
    reserved_bytes: int
    #: Free, but in segments that other blocks hold: what fragmentation costs.
    split_bytes: int
    largest_free_bytes: int
    #: Out-of-memory errors, and allocations that only succeeded after the cache was flushed, since the process began.
    ooms: int
    retries: int
    #: Number of blocks in use, and of free ones, by class of size.
    blocks: tuple[int, ...]
    free_blocks: tuple[int, ...]

    @classmethod
    def decode(cls, payload: bytes) -> MemoryRecord:
        values = cls.layout.unpack(payload)
        return cls(*[*values[:8], values[8 : 8 + SIZE_CLASSES], values[8 + SIZE_CLASSES :]])


RingRecord = (
    StepRecord | DeviceRecord | GroupRecord | PhaseRecord | MarkRecord | CollectiveRecord | SignalRecord | MemoryRecord
)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def text_field(raw: bytes) -> str:
    """Text of a zero-padded field: printable, never raising, whatever the bytes are."""
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def text_bytes(text: str, size: int) -> bytes:
    """UTF-8 of `text` cut to `size` bytes on a character boundary."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode()


def encode(record: RingRecord) -> bytes:
    """The payload bytes of a record."""
    if isinstance(record, (StepRecord, DeviceRecord)):
        return record.layout.pack(*_present(_values(record)))
    if isinstance(record, GroupRecord):
        first = (record.step, record.size, record.count, record.own_ns, record.wait_ns, record.on_device)
        told = (record.group_kind, record.comm_ns, record.overlap_ns, record.contaminated)
        rest = (*told, record.first_sequence, record.last_sequence)
        group, members = text_bytes(record.group, 48), text_bytes(record.members, 80)
        return record.layout.pack(*_present(first), group, *_present(rest), members)
    if isinstance(record, CollectiveRecord):
        *values, operation, group = (getattr(record, field.name) for field in fields(record))
        return record.layout.pack(*_present(values), text_bytes(operation, 24), text_bytes(group, 48))
    if isinstance(record, PhaseRecord):
        return record.layout.pack(record.step, record.start_ns, record.end_ns, text_bytes(record.name, 64))
    if isinstance(record, SignalRecord):
        # A finite number needs all 64 bits of its field: what is missing travels as NaN, and `nonfinite` says the rest.
        loss, norm = (math.nan if value is None else value for value in (record.loss, record.gradient_norm))
        counts = _present((record.samples, record.tokens, record.flops, record.peak_flops))
        return record.layout.pack(record.step, record.time_ns, loss, norm, record.nonfinite, *counts)
    if isinstance(record, MemoryRecord):
        *values, blocks, free_blocks = (getattr(record, field.name) for field in fields(record))
        return record.layout.pack(*values, *blocks, *free_blocks)
    return record.layout.pack(record.time_ns, record.step, record.mark, text_bytes(record.text, 192))


def _present(values: Iterable[int | None]) -> list[int]:
    return [MISSING if value is None else value for value in values]


def decode(kind: int, payload: bytes) -> RingRecord | None:
    """The record of a slot's payload, or None where the kind or length is not one of ours."""
    record = _KINDS.get(kind)
    if record is None or len(payload) not in (record.layout.size, _V1_BYTES.get(kind)):
        return None
    decoded: RingRecord = record.decode(payload)
    return decoded


def believable(record: RingRecord) -> bool:
    """Whether nothing is missing that every record has, and its step and its times are any that a rank can have:
    beyond them sums and clocks would overflow."""
    if None in _REQUIRED[record.kind](record) or not -1 <= record.step <= LARGEST:
        return False
    if isinstance(record, StepRecord | PhaseRecord):
        return 0 <= record.start_ns <= record.end_ns <= LARGEST
    if isinstance(record, CollectiveRecord):
        times = (record.enqueued_ns, record.started_ns, record.ended_ns)
        return all(time_ns is None or 0 <= time_ns <= LARGEST for time_ns in times)
    if isinstance(record, MarkRecord | SignalRecord | MemoryRecord):
        return 0 <= record.time_ns <= LARGEST
    return True


def field_names(record: type[RingRecord]) -> tuple[str, ...]:
    """Fields in the order they travel."""
    return tuple(field.name for field in fields(record))


def required_names(record: type[RingRecord]) -> tuple[str, ...]:
    """Fields that no record of this kind goes without."""
    return tuple(field.name for field in fields(record) if "None" not in str(field.type))


StepRecord.layout = struct.Struct(f"<{len(field_names(StepRecord))}q")
DeviceRecord.layout = struct.Struct(f"<{len(field_names(DeviceRecord))}q")

_step_values = operator.attrgetter(*field_names(StepRecord))
_device_values = operator.attrgetter(*field_names(DeviceRecord))


def _values(record: StepRecord | DeviceRecord) -> tuple[int | None, ...]:
    values: tuple[int | None, ...] = _step_values(record) if isinstance(record, StepRecord) else _device_values(record)
    return values


_KINDS: dict[int, Any] = {
    record.kind: record
    for record in (
        StepRecord,
        DeviceRecord,
        GroupRecord,
        PhaseRecord,
        MarkRecord,
        CollectiveRecord,
        SignalRecord,
        MemoryRecord,
    )
}
_REQUIRED: dict[int, Any] = {kind: operator.attrgetter(*required_names(record)) for kind, record in _KINDS.items()}
_GROUP_V1 = struct.Struct("<6q48s")
#: Payload lengths of rings of version 1, where another: jobs started before an upgrade go on writing them.
_V1_BYTES: dict[int, int] = {RecordKind.STEP: 27 * 8, RecordKind.DEVICE: 12 * 8, RecordKind.GROUP: _GROUP_V1.size}
