"""The ring: one file a rank, one writer, no lock, readable after the writer was killed.

Layout (little-endian, documented with golden bytes in docs/ring.md):

    0     header    magic, version, geometry, identity, clock anchor, CRC-32 of the header
    2048  status    what the training thread is doing now; rewritten at every boundary, with a check of its own
    4096  slots     SLOT_BYTES each: CRC-32, kind, length, sequence number, payload

A slot is valid where its checksum holds and its sequence number is the one its place in the file expects. So a torn,
overwritten or damaged slot is recognised without any ordering promise of the processor.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rankscope.clock import ClockAnchor
from rankscope.errors import RingError
from rankscope.identity import RankIdentity
from rankscope.records import (
    LARGEST,
    Phase,
    RecordKind,
    RingRecord,
    believable,
    decode,
    encode,
    text_bytes,
    text_field,
)

MAGIC = b"RKSCOPE\0"
VERSION = 2
#: Versions a reader accepts: jobs run for weeks beside an agent that was upgraded.
READABLE_VERSIONS = range(max(1, VERSION - 2), VERSION + 1)
HEADER_BYTES = 4096
STATUS_OFFSET = 2048
SLOT_BYTES = 384
#: Slots of each version: 256 bytes had no room for the phases of version 2.
_SLOT_BYTES_OF = {1: 256, 2: SLOT_BYTES}
#: 3 MiB a rank: about ten seconds of the fastest loop (5 ms steps, several records each) between two reads.
DEFAULT_SLOTS = 8192
MAX_SLOTS = 1 << 20
SUFFIX = ".ring"
#: A lapped reader skips this share of the ring (1/16) beyond the oldest record: the writer goes on meanwhile.
_LAP_MARGIN = 16

_HEADER = struct.Struct("<8sHHIIqqqqqqqqq40s64s64s64s16s")
_PREFIX = struct.Struct("<HHQ")
_CRC = struct.Struct("<I")
_STATUS = struct.Struct("<QQQ")
_STATUS_V1 = struct.Struct("<Qqqqq")
#: Low bits of the status's second word are the phase, then the depth of backward, then the step.
_PHASE_BITS = 8
_PAYLOAD_OFFSET = _CRC.size + _PREFIX.size
MAX_PAYLOAD_BYTES = SLOT_BYTES - _PAYLOAD_OFFSET


@dataclass(frozen=True, slots=True)
class RankStatus:
    """What a training thread is doing: `phase` of `step` since `since_ns`; `updates` changes with every boundary."""

    updates: int
    since_ns: int
    step: int
    phase: Phase
    backward_depth: int


@dataclass(frozen=True, slots=True)
class RingHeader:
    """Whose ring this is, and how to read it."""

    identity: RankIdentity
    anchor: ClockAnchor
    slots: int
    version: int
    slot_bytes: int = SLOT_BYTES


def ring_path(directory: Path, identity: RankIdentity) -> Path:
    """Where a rank's ring lies: named by process id and start time, so that no two processes ever share one."""
    name = f"{identity.job}.{identity.rank}.{identity.pid}.{identity.start_ticks}{SUFFIX}"
    return directory / name


class RingWriter:
    """The training thread's end. `append` is a few stores into a mapped file: no lock, no system call."""

    def __init__(self, path: Path, identity: RankIdentity, anchor: ClockAnchor, slots: int = DEFAULT_SLOTS) -> None:
        """Create the file, allocate it in full and publish it under `path`.

        Raises RingError where the directory cannot be written or has no room: the only moment at which it may fail.
        """
        size = HEADER_BYTES + slots * SLOT_BYTES
        hidden = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(hidden, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
                # Populated: the first touch of a page would be a fault inside a training step.
                self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
                self._map[: _HEADER.size + _CRC.size] = header_bytes(identity, anchor, slots)
                hidden.rename(path)
            except BaseException:
                hidden.unlink()
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise RingError(
                f"cannot create a ring of {size} bytes ({error.strerror})",
                where=str(path.parent),
                todo="free space there or set RANKSCOPE_DIR to a directory in memory that you may write",
            ) from error
        self.path = path
        self._slots = slots
        self._views: list[memoryview] = []
        #: Sequence number of the next record, where compiled writers in the training thread find it too.
        self.counter = array("q", [1])

    @property
    def written(self) -> int:
        """Records written so far."""
        return self.counter[0] - 1

    @property
    def mapped(self) -> mmap.mmap:
        """The mapped file, for a writer of its own in the training thread: `counter` says where its record goes."""
        return self._map

    @property
    def slots(self) -> int:
        """Records that the ring holds."""
        return self._slots

    def take(self) -> int:
        """Sequence number of a record that the caller writes now."""
        sequence = self.counter[0]
        self.counter[0] = sequence + 1
        return sequence

    def append(self, kind: RecordKind, payload: bytes) -> None:
        """Write one record over the oldest."""
        sequence = self.counter[0]
        start = HEADER_BYTES + (sequence - 1) % self._slots * SLOT_BYTES
        body = _PREFIX.pack(kind, len(payload), sequence) + payload
        self._map[start + 4 : start + 4 + len(body)] = body
        _CRC.pack_into(self._map, start, zlib.crc32(body))
        self.counter[0] = sequence + 1

    def append_record(self, record: RingRecord) -> None:
        """Write one record given as its dataclass (the hot path packs its own payload)."""
        self.append(record.kind, encode(record))

    def appender(self, kind: RecordKind, layout: struct.Struct) -> Callable[..., None]:
        """A function that appends a record of `layout` given as its values, with the least work: the hot path."""
        slots, mapped, view, crc32, counter = self._slots, self._map, memoryview(self._map), zlib.crc32, self.counter
        whole = struct.Struct(f"{_PREFIX.format}{layout.format.removeprefix('<')}")
        pack_into, pack_crc_into, length = whole.pack_into, _CRC.pack_into, layout.size
        end_of_body = 4 + whole.size
        self._views.append(view)

        def append(*values: int | bytes) -> None:
            sequence = counter[0]
            start = HEADER_BYTES + (sequence - 1) % slots * SLOT_BYTES
            pack_into(mapped, start + 4, kind, length, sequence, *values)
            pack_crc_into(mapped, start, crc32(view[start + 4 : start + end_of_body]))
            counter[0] = sequence + 1

        return append

    def set_status(self, time_ns: int, step: int, phase: int, depth: int = 0) -> None:
        """Say what the training thread does from `time_ns` on."""
        doing = step << 16 | depth << _PHASE_BITS | phase
        _STATUS.pack_into(self._map, STATUS_OFFSET, time_ns, doing, time_ns ^ doing)

    def close(self) -> None:
        """Unmap; the file stays for the agent."""
        for view in self._views:
            view.release()
        self._map.close()


@dataclass(frozen=True, slots=True)
class RingBatch:
    """Records read, in order, and what could not be: overwritten before it was read, or damaged."""

    records: list[RingRecord]
    overwritten: int = 0
    damaged: int = 0


class RingReader:
    """The agent's end. Uses `pread` only (a map would die with a truncated file) and believes nothing unchecked."""

    #: Slots asked for in one read.
    CHUNK = 512
    #: Slots asked for first: most reads find few, and looking at empty ones is what a read costs.
    GLANCE = 16
    #: One read in so many looks a whole chunk ahead at once, to get past a stretch of damage.
    FULL_LOOK = 32

    def __init__(self, path: Path, *, owners: frozenset[int] | None = None, after: int = 0) -> None:
        """Open and check the header. Raises RingError.

        `owners` limits whose files are accepted; `after` is the position another reader of this ring had reached.
        """
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            self._check_file(owners)
            self.header = parse_header(os.pread(self._descriptor, HEADER_BYTES, 0), str(path))
            if os.fstat(self._descriptor).st_size != HEADER_BYTES + self.header.slots * self.header.slot_bytes:
                raise RingError("file size contradicts its header", where=str(path), todo="remove it")
        except OSError as error:
            self.close()
            raise RingError(f"cannot open ring ({error.strerror})", where=str(path)) from error
        except RingError:
            self.close()
            raise
        self._expected = after + 1
        self._reads = 0
        #: The status as it was last read: a rank that waits says the same each time.
        self._raw_status = b""
        self._status: RankStatus | None = None

    @property
    def position(self) -> int:
        """Sequence number of the last record passed, lost ones included: where a later reader goes on."""
        return self._expected - 1

    def _check_file(self, owners: frozenset[int] | None) -> None:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RingError("not a regular file", where=str(self.path), todo="remove it")
        if owners is not None and status.st_uid not in owners:
            raise RingError(f"owned by user {status.st_uid}, refused", where=str(self.path))
        if status.st_size > HEADER_BYTES + MAX_SLOTS * SLOT_BYTES:
            raise RingError(f"{status.st_size} bytes is larger than any ring", where=str(self.path), todo="remove it")

    def read(self) -> RingBatch:
        """Every record written since the last call."""
        records: list[RingRecord] = []
        overwritten = damaged = 0
        slots, slot_bytes = self.header.slots, self.header.slot_bytes
        size = self.GLANCE if self._reads % self.FULL_LOOK else self.CHUNK
        self._reads += 1
        if size == self.GLANCE and self._is_idle():
            return RingBatch(records, 0, 0)
        # Bounded by two laps: a writer faster than the reader cannot keep it here for ever.
        for _ in range(2 * slots // self.CHUNK + 4):
            place = (self._expected - 1) % slots
            count = min(size, slots - place)
            size = self.CHUNK
            chunk = os.pread(self._descriptor, count * slot_bytes, HEADER_BYTES + place * slot_bytes)
            taken, bad, lapped = self._take(chunk, records)
            damaged += bad
            if lapped:
                oldest = self._newest() - slots + 1 + slots // _LAP_MARGIN
                overwritten += oldest - self._expected
                self._expected = oldest
            elif taken < count:
                break
        return RingBatch(records, overwritten, damaged)

    def _is_idle(self) -> bool:
        """Whether the next slot still holds what it did a lap ago, by its number alone."""
        place = (self._expected - 1) % self.header.slots
        at = HEADER_BYTES + place * self.header.slot_bytes + _CRC.size
        head = os.pread(self._descriptor, _PREFIX.size, at)
        return len(head) == _PREFIX.size and _PREFIX.unpack(head)[2] == max(0, self._expected - self.header.slots)

    def _newest(self) -> int:
        """The highest sequence number in the file that stands in its own place."""
        slots, slot_bytes, newest = self.header.slots, self.header.slot_bytes, self._expected
        for place in range(0, slots, self.CHUNK):
            size = min(self.CHUNK, slots - place) * slot_bytes
            chunk = os.pread(self._descriptor, size, HEADER_BYTES + place * slot_bytes)
            for start in range(0, len(chunk) - slot_bytes + 1, slot_bytes):
                parsed = parse_slot(chunk[start : start + slot_bytes])
                if parsed is not None and (parsed[0] - 1) % slots == place + start // slot_bytes:
                    newest = max(newest, parsed[0])
        return newest

    def _take(self, chunk: bytes, records: list[RingRecord]) -> tuple[int, int, bool]:
        """Take what follows on; returns (slots passed, damaged among them, whether the writer has lapped us)."""
        passed = damaged = pending = 0
        slot_bytes = self.header.slot_bytes
        # Of a ring that was not yet full most of what is read ahead is blank.
        written = min(len(chunk) - slot_bytes + 1, _written_bytes(chunk))
        for start in range(0, written, slot_bytes):
            parsed = parse_slot(chunk[start : start + slot_bytes])
            if parsed is None:
                pending += 1
                continue
            sequence, record = parsed
            if sequence == self._expected + pending:
                records.append(record)
                # A later slot is whole, so the ones before it were not being written: they are damaged.
                damaged += pending
                passed += pending + 1
                self._expected = sequence + 1
                pending = 0
            elif sequence > self._expected + pending and (sequence - self._expected - pending) % self.header.slots == 0:
                return passed, damaged, True
            else:
                break
        return passed, damaged, False

    def status(self) -> RankStatus | None:
        """What the rank is doing now, or None before its first boundary."""
        for _ in range(4):
            raw = os.pread(self._descriptor, _CRC.size + _STATUS_V1.size, STATUS_OFFSET)
            if len(raw) < _CRC.size + _STATUS_V1.size:
                return None
            if raw == self._raw_status:
                return self._status
            status = _status_v1(raw) if self.header.version == 1 else _status(raw)
            if status is not None:
                self._raw_status, self._status = raw, status if status.updates else None
                return self._status
        return None

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _written_bytes(chunk: bytes) -> int:
    """Bytes before the blank end of a chunk, or a few more: by halves, which compares where stripping would walk."""
    end, half = len(chunk), len(chunk) // 2
    while half >= _PAYLOAD_OFFSET:
        blank = bytes(half)
        while end >= half and chunk.endswith(blank, 0, end):
            end -= half
        half //= 2
    return end


def header_bytes(identity: RankIdentity, anchor: ClockAnchor, slots: int) -> bytes:
    """The header with its checksum."""
    body = _HEADER.pack(
        MAGIC,
        VERSION,
        HEADER_BYTES,
        SLOT_BYTES,
        slots,
        identity.pid,
        identity.start_ticks,
        anchor.monotonic_ns,
        anchor.wall_ns,
        identity.attempt,
        identity.rank,
        identity.world_size,
        identity.local_rank,
        os.getuid(),
        text_bytes(identity.boot_id, 40),
        text_bytes(identity.job, 64),
        text_bytes(identity.host, 64),
        text_bytes(identity.gpu_uuid or "", 64),
        text_bytes(identity.device_clock, 16),
    )
    return body + _CRC.pack(zlib.crc32(body))


def parse_header(raw: bytes, where: str) -> RingHeader:
    """The header in `raw`; raises RingError with the reason where it is not one of ours."""
    if len(raw) < HEADER_BYTES or raw[: len(MAGIC)] != MAGIC:
        raise RingError("not a Rankscope ring", where=where, todo="remove it from the ring directory")
    (_, version, header_size, slot_size, slots, pid, ticks, monotonic, wall, *rest) = _HEADER.unpack_from(raw)
    if version not in READABLE_VERSIONS:
        raise RingError(
            f"ring version {version}, this reader knows {READABLE_VERSIONS.start} to {READABLE_VERSIONS.stop - 1}",
            where=where,
            todo="run the agent and the training job with releases at most two ring versions apart",
        )
    if zlib.crc32(raw[: _HEADER.size]) != _CRC.unpack_from(raw, _HEADER.size)[0]:
        raise RingError("header checksum does not hold", where=where, todo="remove it")
    attempt, rank, world_size, local_rank, _uid, boot, job, host, gpu, device_clock = rest
    sane = (
        header_size == HEADER_BYTES
        and slot_size == _SLOT_BYTES_OF[version]
        and 1 <= slots <= MAX_SLOTS
        and 0 < pid < 2**31
        and 0 <= rank < world_size < 2**31
        and 0 <= local_rank < 2**20
        and 0 <= attempt < 2**31
        and 0 <= ticks <= LARGEST
        and 0 <= monotonic <= LARGEST
        and 0 <= wall <= LARGEST
    )
    if not sane:
        raise RingError("header contradicts itself", where=where, todo="remove it")
    identity = RankIdentity(
        job=text_field(job),
        attempt=attempt,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        host=text_field(host),
        pid=pid,
        start_ticks=ticks,
        boot_id=text_field(boot),
        gpu_uuid=text_field(gpu) or None,
        device_clock=text_field(device_clock),
    )
    return RingHeader(identity, ClockAnchor(monotonic, wall), slots, version, slot_size)


def _status(raw: bytes) -> RankStatus | None:
    """The status in `raw`, or None where it was being written or says what no writer would."""
    time_ns, doing, check = _STATUS.unpack_from(raw)
    phase = doing & 0xFF
    if time_ns ^ doing != check or phase not in Phase._value2member_map_:
        return None
    return RankStatus(time_ns, time_ns, doing >> 16, Phase(phase), doing >> _PHASE_BITS & 0xFF)


def _status_v1(raw: bytes) -> RankStatus | None:
    body = raw[_CRC.size :]
    if zlib.crc32(body) != _CRC.unpack_from(raw)[0]:
        return None
    updates, since_ns, step, phase, depth = _STATUS_V1.unpack(body)
    if phase not in Phase._value2member_map_:
        return None
    return RankStatus(updates, since_ns, step, Phase(phase), depth)


def parse_slot(slot: bytes) -> tuple[int, RingRecord] | None:
    """(sequence number, record) of a whole slot, or None."""
    kind, length, sequence = _PREFIX.unpack_from(slot, _CRC.size)
    if length > MAX_PAYLOAD_BYTES or not 0 < sequence <= LARGEST:
        return None
    end = _PAYLOAD_OFFSET + length
    if zlib.crc32(slot[_CRC.size : end]) != _CRC.unpack_from(slot)[0]:
        return None
    record = decode(kind, slot[_PAYLOAD_OFFSET:end])
    return None if record is None or not believable(record) else (sequence, record)
