"""A ring whose bytes change under the reader: nothing false comes out, and what is gone is counted."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from rankscope.clock import ClockAnchor
from rankscope.errors import RingError
from rankscope.identity import RankIdentity
from rankscope.records import Phase, PhaseRecord
from rankscope.ring import RankStatus, RingReader, RingWriter

_IDENTITY = RankIdentity("job", 0, 0, 1, 0, "node", 4711, 99, "boot", None, "host")


@dataclass
class Corrupted:
    """One ring: records written and read, and bytes changed meanwhile."""

    seed: int
    written: int = 0
    read: int = 0
    overwritten: int = 0
    damaged: int = 0
    changes: int = 0
    broken: str = ""

    def __str__(self) -> str:
        counted = f"written {self.written} = read {self.read} + overwritten {self.overwritten} + damaged {self.damaged}"
        return f"seed {self.seed}: {self.changes} changes; {counted}"


def record(number: int) -> PhaseRecord:
    """A record that says its own number in every field."""
    return PhaseRecord(number, number * 3, number * 5, f"p{number}")


def corrupt(place: Path, seed: int) -> Corrupted:
    """Write, change bytes anywhere in the file, and read, in an order that the seed draws."""
    chance = random.Random(seed)
    told = Corrupted(seed)
    path = place / f"{seed}.ring"
    slots = chance.randrange(4, 300)
    writer = RingWriter(path, _IDENTITY, ClockAnchor(1, 2), slots)
    reader = RingReader(path)
    said: set[RankStatus | None] = {None}
    descriptor = os.open(path, os.O_RDWR)
    size = os.fstat(descriptor).st_size
    try:
        for _ in range(chance.randrange(10, 60)):
            for _ in range(chance.randrange(slots // 2 + 2)):
                told.written += 1
                writer.append_record(record(told.written))
                writer.set_status(told.written, told.written, Phase.FORWARD)
                said.add(RankStatus(told.written, told.written, told.written, Phase.FORWARD, 0))
            for _ in range(chance.choice((0, 0, 1, 1, 5))):
                told.changes += 1
                noise = chance.randbytes(chance.choice((1, 1, 8, 400, 4000)))
                at = chance.randrange(size)
                os.pwrite(descriptor, noise[: size - at], at)
            if chance.random() < 0.7:
                _read(reader, told, said)
            _open_again(path)
        # Whole records enough to see past the last damage.
        for _ in range(slots):
            told.written += 1
            writer.append_record(record(told.written))
            if chance.random() < 0.02:
                _read(reader, told, said)
        for _ in range(RingReader.FULL_LOOK + 1):
            _read(reader, told, said)
        if told.written != told.read + told.overwritten + told.damaged and not told.broken:
            told.broken = f"{told}: it does not add up"
    finally:
        os.close(descriptor)
        reader.close()
        writer.close()
        path.unlink()
    return told


def _read(reader: RingReader, told: Corrupted, said: set[RankStatus | None]) -> None:
    batch = reader.read()
    numbers = []
    for each in batch.records:
        if not isinstance(each, PhaseRecord) or each != record(each.step):
            told.broken = f"seed {told.seed}: a record that nobody wrote: {each}"
            return
        numbers.append(each.step)
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] > told.written):
        told.broken = f"seed {told.seed}: records out of order: {numbers[:9]}..."
    if reader.status() not in said:
        told.broken = f"seed {told.seed}: a status that nobody wrote: {reader.status()}"
    told.read += len(batch.records)
    told.overwritten += batch.overwritten
    told.damaged += batch.damaged


def _open_again(path: Path) -> None:
    """A reader that comes now sees a ring, or refuses it as none."""
    try:
        other = RingReader(path)
    except RingError:
        return
    other.read()
    other.status()
    other.close()
