"""Rings as inputs: damage whose checksums are right, since any other is seen by its checksum alone."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence

from fuzz.mutate import mutated, number_bytes

from rankscope.ring import HEADER_BYTES, SLOT_BYTES, STATUS_OFFSET

#: The header's fields end where its checksum stands (docs/ring.md).
_HEADER_END = 340
_NUMBERS_BEGIN, _NUMBERS_END = 8, 96


def mutated_ring(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changed fields of header, status and slots, mostly with their checksums mended."""
    if draw.randrange(6) == 0:
        return mutated(draw, data, others)
    ring = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        which = draw.randrange(8)
        if which == 0:
            _put(draw, ring, _NUMBERS_BEGIN, _NUMBERS_END)
        elif which == 1:
            _put(draw, ring, _NUMBERS_END, _HEADER_END)
        elif which == 2:
            _put(draw, ring, STATUS_OFFSET, STATUS_OFFSET + 24)
        else:
            slots = (len(ring) - HEADER_BYTES) // SLOT_BYTES
            if slots > 0:
                _change_slot(draw, ring, HEADER_BYTES + draw.randrange(slots) * SLOT_BYTES)
    if draw.randrange(8):
        _mend(ring)
    return bytes(ring)


def _put(draw: random.Random, ring: bytearray, begin: int, end: int) -> None:
    """A number at a limit, or noise, on a field's place."""
    put = number_bytes(draw) if draw.randrange(3) else bytes(draw.randrange(256) for _ in range(8))
    at = min(begin + draw.randrange(max(1, (end - begin) // 4)) * 4, max(0, len(ring) - len(put)))
    ring[at : at + len(put)] = put


def _change_slot(draw: random.Random, ring: bytearray, start: int) -> None:
    match draw.randrange(5):
        case 0:
            ring[start + 4 : start + 6] = struct.pack("<H", draw.randrange(14))
        case 1:
            ring[start + 6 : start + 8] = struct.pack("<H", draw.choice((0, 8, 24, 88, 96, 200, 367, 368, 369, 65535)))
        case 2:
            _put(draw, ring, start + 8, start + 16)
        case _:
            _put(draw, ring, start + 16, start + 160)


def _mend(ring: bytearray) -> None:
    """Make every checksum right."""
    if len(ring) < HEADER_BYTES:
        return
    ring[_HEADER_END : _HEADER_END + 4] = struct.pack("<I", zlib.crc32(ring[:_HEADER_END]))
    first, second, _ = struct.unpack_from("<QQQ", ring, STATUS_OFFSET)
    struct.pack_into("<Q", ring, STATUS_OFFSET + 16, first ^ second)
    for start in range(HEADER_BYTES, len(ring) - SLOT_BYTES + 1, SLOT_BYTES):
        (length,) = struct.unpack_from("<H", ring, start + 6)
        end = start + 16 + length
        if length and end <= start + SLOT_BYTES:
            struct.pack_into("<I", ring, start, zlib.crc32(ring[start + 4 : end]))
