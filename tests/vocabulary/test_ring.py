"""The ring: a reader never sees a torn or invented record, whatever happens to the writer or the file."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope import ring
from rankscope.clock import ClockAnchor
from rankscope.errors import RingError
from rankscope.identity import RankIdentity
from rankscope.records import (
    CollectiveRecord,
    DeviceRecord,
    GroupRecord,
    MarkRecord,
    Phase,
    PhaseRecord,
    RecordKind,
    StepRecord,
    decode,
    encode,
)
from rankscope.ring import RingReader, RingWriter

IDENTITY = RankIdentity(
    job="job", attempt=1, rank=2, world_size=4, local_rank=2, host="node1", pid=4711, start_ticks=99,
    boot_id="b", gpu_uuid="GPU-1", device_clock="async",
)  # fmt: skip
ANCHOR = ClockAnchor(10, 20)
integers = st.integers(-(2**62), 2**62)
optional = st.none() | integers


def phase(number: int) -> PhaseRecord:
    """A record that says its own number three times."""
    return PhaseRecord(number, number * 3, number * 5, f"p{number}")


def is_whole(record: object) -> bool:
    """Whether a record is exactly as some `phase(n)` was."""
    return isinstance(record, PhaseRecord) and record == phase(record.step)


@given(st.lists(integers, min_size=10, max_size=10), st.lists(optional, min_size=28, max_size=28))
def test_step_records_survive_the_trip(required: list[int], rest: list[int | None]) -> None:
    """Every field of a step comes back as it was, missing ones included."""
    record = StepRecord(*required, *rest)  # type: ignore[arg-type]
    assert decode(RecordKind.STEP, encode(record)) == record


@given(integers, integers, st.lists(optional, min_size=18, max_size=18), st.text(max_size=300))
def test_other_records_survive_the_trip(a: int, b: int, rest: list[int | None], text: str) -> None:
    """Device, group and mark records come back; text is cut, never invented, and always printable."""
    device = DeviceRecord(a, b, *rest)
    assert decode(RecordKind.DEVICE, encode(device)) == device
    group = GroupRecord(a, 4, 1, rest[0], rest[1], 1, "dp", *rest[2:8], "0-3,8")
    assert decode(RecordKind.GROUP, encode(group)) == group
    operation = CollectiveRecord(a, rest[0], b, *rest[1:6], 1, 2, "allreduce", "dp")
    assert decode(RecordKind.COLLECTIVE, encode(operation)) == operation
    mark = decode(RecordKind.MARK, encode(MarkRecord(a, b, 1, text)))
    assert isinstance(mark, MarkRecord)
    assert mark.text.isprintable()
    if text.isprintable() and len(text.encode("utf-8", "replace")) <= 192:
        assert mark.text == text


@given(written=st.integers(1, 40), slots=st.integers(2, 9), reads=st.sets(st.integers(1, 40), max_size=5))
@settings(deadline=None)
def test_lapped_reader_counts_what_it_missed(
    tmp_path_factory: pytest.TempPathFactory, written: int, slots: int, reads: set[int]
) -> None:
    """Records come in order; read + overwritten = written, wherever the reader stood when the writer lapped it."""
    path = tmp_path_factory.mktemp("r") / "a.ring"
    writer = RingWriter(path, IDENTITY, ANCHOR, slots)
    reader = RingReader(path)
    seen, lost = [], 0
    for number in range(1, written + 1):
        writer.append_record(phase(number))
        if number in reads or number == written:
            batch = reader.read()
            seen += batch.records
            lost += batch.overwritten
            assert batch.damaged == 0
    assert all(is_whole(record) for record in seen)
    assert [r.step for r in seen] == sorted({r.step for r in seen})  # type: ignore[union-attr]
    assert len(seen) + lost == written
    assert seen[-1] == phase(written)


@given(before=st.integers(0, 12), cut=st.integers(0, ring.SLOT_BYTES), crc_written=st.booleans())
@settings(deadline=None)
def test_writer_stopped_at_any_byte(
    tmp_path_factory: pytest.TempPathFactory, before: int, cut: int, crc_written: bool
) -> None:
    """A record of which only the first bytes were stored is never read, and the ones before it are."""
    slots = 5
    path = tmp_path_factory.mktemp("r") / "a.ring"
    writer = RingWriter(path, IDENTITY, ANCHOR, slots)
    for number in range(1, before + 1):
        writer.append_record(phase(number))
    place = ring.HEADER_BYTES + before % slots * ring.SLOT_BYTES
    old = path.read_bytes()[place : place + ring.SLOT_BYTES]
    writer.append_record(phase(before + 1))
    new = path.read_bytes()[place : place + ring.SLOT_BYTES]
    torn = new[:cut] + old[cut:] if crc_written else old[:4] + new[4 : max(4, cut)] + old[max(4, cut) :]
    with path.open("r+b") as file:
        file.seek(place)
        file.write(torn)
    batch = RingReader(path).read()
    assert all(is_whole(record) for record in batch.records)
    steps = [record.step for record in batch.records]  # type: ignore[union-attr]
    expected = list(range(max(1, before + 1 - slots + 1), before + 1))
    assert steps in (expected, [*expected, before + 1]) or before >= slots
    if before + 1 in steps:
        used = ring._PAYLOAD_OFFSET + ring._PREFIX.size * 0 + PhaseRecord.layout.size
        assert torn[:used] == new[:used]


@given(
    place=st.integers(ring.HEADER_BYTES, ring.HEADER_BYTES + 8 * ring.SLOT_BYTES - 1),
    noise=st.binary(min_size=1, max_size=600),
)
@settings(deadline=None)
def test_noise_in_the_slots_is_counted_not_believed(
    tmp_path_factory: pytest.TempPathFactory, place: int, noise: bytes
) -> None:
    """Random bytes anywhere in the slots damage records; none is invented and later ones are still read."""
    path = tmp_path_factory.mktemp("r") / "a.ring"
    writer = RingWriter(path, IDENTITY, ANCHOR, 8)
    for number in range(1, 8):
        writer.append_record(phase(number))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(place)
        file.write(noise[: size - place])
    batch = RingReader(path).read()
    assert all(is_whole(record) for record in batch.records)
    assert len(batch.records) + batch.damaged <= 7


@given(st.binary(max_size=ring.HEADER_BYTES + 100))
@settings(deadline=None)
def test_a_file_of_noise_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    """Whatever a file holds, opening it as a ring says what and where, and nothing else is raised."""
    path = tmp_path_factory.mktemp("r") / "a.ring"
    path.write_bytes(noise)
    with pytest.raises(RingError) as error:
        RingReader(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_header_of_another_version_is_named(tmp_path: Path) -> None:
    """A ring of a later version says which version it is and what to do."""
    path = tmp_path / "a.ring"
    RingWriter(path, IDENTITY, ANCHOR, 4)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, 8, 9)
    body = bytes(raw[: ring._HEADER.size])
    struct.pack_into("<I", raw, ring._HEADER.size, zlib.crc32(body))
    path.write_bytes(raw)
    with pytest.raises(RingError, match="ring version 9"):
        RingReader(path)


def test_golden_bytes(tmp_path: Path) -> None:
    """The bytes of docs/ring.md: readers of other releases rely on them."""
    path = tmp_path / "a.ring"
    writer = RingWriter(path, IDENTITY, ANCHOR, 4)
    writer.append_record(GroupRecord(7, 4, 1, 1000, None, 1, "dp"))
    writer.set_status(123, 7, Phase.BACKWARD, 1)
    raw = path.read_bytes()
    assert raw[:24].hex() == "524b53434f504500" + "0200" + "0010" + "80010000" + "04000000" + "67120000"
    slot = raw[ring.HEADER_BYTES : ring.HEADER_BYTES + 16 + 224]
    assert slot[4:16].hex() == "0300" + "e000" + "0100000000000000"
    assert slot[16:64].hex() == "".join(
        value.to_bytes(8, "little", signed=True).hex() for value in (7, 4, 1, 1000, -(2**63), 1)
    )
    assert slot[64:112] == b"dp".ljust(48, b"\0")
    assert int.from_bytes(slot[:4], "little") == zlib.crc32(slot[4:])
    doing = 7 << 16 | 1 << 8 | 3
    status = raw[2048 : 2048 + 24]
    assert status.hex() == "".join(value.to_bytes(8, "little").hex() for value in (123, doing, 123 ^ doing))


def version_1_ring(path: Path, payloads: list[tuple[int, bytes]], status: tuple[int, ...]) -> None:
    """A ring as the first release wrote it: slots of 256 bytes, a status of five numbers."""
    raw = bytearray(ring.HEADER_BYTES + 4 * 256)
    RingWriter(path, IDENTITY, ANCHOR, 4)
    raw[: ring._HEADER.size] = path.read_bytes()[: ring._HEADER.size]
    struct.pack_into("<HHI", raw, 8, 1, ring.HEADER_BYTES, 256)
    struct.pack_into("<I", raw, ring._HEADER.size, zlib.crc32(bytes(raw[: ring._HEADER.size])))
    body = struct.pack("<Qqqqq", *status)
    raw[2048 : 2048 + 44] = struct.pack("<I", zlib.crc32(body)) + body
    for place, (kind, payload) in enumerate(payloads):
        body = struct.pack("<HHQ", kind, len(payload), place + 1) + payload
        start = ring.HEADER_BYTES + 256 * place
        raw[start : start + 4 + len(body)] = struct.pack("<I", zlib.crc32(body)) + body
    path.write_bytes(raw)


def test_rings_of_the_first_version_are_read(tmp_path: Path) -> None:
    """A job that was started before an upgrade is read on: what it did not know is missing, phases still add up."""
    step = struct.pack("<27q", 5, 100, 200, 10, 20, 40, 15, 5, 5, 5, 30, *range(7, 23))
    device = struct.pack("<12q", 5, 100, *range(10))
    group = struct.pack("<6q48s", 5, 4, 1, -(2**63), 9, 1, b"default")
    path = tmp_path / "old.ring"
    version_1_ring(path, [(1, step), (2, device), (3, group)], (17, 123, 7, 3, 1))
    reader = RingReader(path)
    records = reader.read().records
    assert isinstance(records[0], StepRecord)
    assert (records[0].step, records[0].backward_count, records[0].h2d_ns) == (5, 22, None)
    assert sum(records[0].phases_ns().values()) == 100
    assert records[1] == DeviceRecord(5, 100, *range(10))
    assert records[2] == GroupRecord(5, 4, 1, None, 9, 1, "default")
    assert reader.status() == ring.RankStatus(17, 123, 7, Phase.BACKWARD, 1)


def test_status_says_what_the_rank_does(tmp_path: Path) -> None:
    """The status is the last one written, and None before the first."""
    path = tmp_path / "a.ring"
    writer = RingWriter(path, IDENTITY, ANCHOR, 4)
    reader = RingReader(path)
    assert reader.status() is None
    writer.set_status(5, 1, Phase.FORWARD)
    writer.set_status(9, 2, Phase.COLLECTIVE_WAIT)
    status = reader.status()
    assert status is not None
    assert (status.updates, status.since_ns, status.step, status.phase) == (9, 9, 2, Phase.COLLECTIVE_WAIT)


def test_file_truncated_under_the_reader(tmp_path: Path) -> None:
    """Where the file is cut while it is read, the reader gives what is left and never dies of SIGBUS."""
    path = tmp_path / "a.ring"
    writer = RingWriter(path, IDENTITY, ANCHOR, 8)
    for number in range(1, 6):
        writer.append_record(phase(number))
    reader = RingReader(path)
    os.truncate(path, ring.HEADER_BYTES + 2 * ring.SLOT_BYTES)
    assert [r.step for r in reader.read().records] == [1, 2]  # type: ignore[union-attr]
    os.truncate(path, 100)
    assert reader.read().records == []
    assert reader.status() is None


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    """A symbolic link, a FIFO and another user's file in the ring directory are not opened as rings."""
    path = tmp_path / "a.ring"
    RingWriter(path, IDENTITY, ANCHOR, 4)
    link, pipe = tmp_path / "b.ring", tmp_path / "c.ring"
    link.symlink_to(path)
    os.mkfifo(pipe)
    for bad in (link, pipe):
        with pytest.raises(RingError):
            RingReader(bad)
    with pytest.raises(RingError, match="owned by user"):
        RingReader(path, owners=frozenset({os.getuid() + 1}))


def test_no_room_fails_at_attach(tmp_path: Path) -> None:
    """A file system without room refuses the ring when it is made, in one line, and leaves nothing behind."""
    program = (
        "import resource, sys; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from rankscope.ring import RingWriter; from rankscope.errors import RingError\n"
        "from tests.vocabulary.test_ring import IDENTITY, ANCHOR\n"
        "try: RingWriter(Path(sys.argv[1]) / 'a.ring', IDENTITY, ANCHOR)\n"
        "except RingError as error: print(error); sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 7, done.stderr
    assert "RANKSCOPE_DIR" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_last_records_of_a_killed_writer_are_readable(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing leaves an unbroken run of whole records."""
    program = (
        "import sys; from pathlib import Path; from rankscope.ring import RingWriter\n"
        "from tests.vocabulary.test_ring import IDENTITY, ANCHOR, phase\n"
        "writer = RingWriter(Path(sys.argv[1]), IDENTITY, ANCHOR, 64)\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    writer.append_record(phase(number))\n"
        "    if number == 1000: print('go', flush=True)\n"
    )
    path = tmp_path / "a.ring"
    for _ in range(3):
        path.unlink(missing_ok=True)
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"go\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        batch = RingReader(path).read()
        steps = [record.step for record in batch.records]  # type: ignore[union-attr]
        assert all(is_whole(record) for record in batch.records)
        assert len(steps) >= 64 - 64 // 16 - 1
        assert steps == list(range(steps[0], steps[-1] + 1))


def test_a_long_stretch_of_damage_is_passed_by_a_reader_that_only_glances(tmp_path: Path) -> None:
    """A reader that looks a few slots ahead at most reads still comes past damage longer than that, and counts it."""
    path = tmp_path / "a.ring"
    writer = RingWriter(path, IDENTITY, ANCHOR, 512)
    reader = RingReader(path)
    writer.append_record(phase(1))
    assert len(reader.read().records) == 1
    stretch = 3 * RingReader.GLANCE
    for number in range(2, 2 + stretch + 1):
        writer.append_record(phase(number))
    with path.open("r+b") as file:
        file.seek(ring.HEADER_BYTES + ring.SLOT_BYTES)
        file.write(b"\xa5" * (ring.SLOT_BYTES * stretch))
    batches = [reader.read() for _ in range(RingReader.FULL_LOOK)]
    assert sum(batch.damaged for batch in batches) == stretch
    assert [record.step for batch in batches for record in batch.records] == [stretch + 2]  # type: ignore[union-attr]
    assert reader.position == stretch + 2
    reader.close()
