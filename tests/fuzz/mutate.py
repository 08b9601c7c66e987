"""Damage to bytes, drawn from a seed: the same generator gives the same inputs on every machine."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Sequence

#: Whole numbers at which parsers break: the limits of 8 to 64 bits, and their neighbours.
NUMBERS = tuple(
    sorted(
        {
            sign * (1 << bits) + more
            for bits in (0, 7, 8, 15, 16, 31, 32, 53, 62, 63)
            for sign in (1, -1)
            for more in (-1, 0, 1)
        }
    )
)
#: The same as text, and what else stands where a number, a name or a sentence is expected.
WORDS = (
    *(str(number).encode() for number in NUMBERS),
    b"",
    b"9" * 25,
    b"1e999",
    b"nan",
    b"inf",
    b"\xd9\xa3",  # an Arabic digit
    b"\xc2\xb2",  # a superscript
    b"\xff\xfe",
    b"\x00",
    b"\n",
    b'"',
    b"\\",
    b"../../",
    b"[" * 600,
    b"{" * 600,
    b"a" * 5000,
)
_TOKEN = re.compile(rb"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")
#: No input grows beyond this many bytes.
MOST_BYTES = 1 << 18


def number_bytes(draw: random.Random) -> bytes:
    """A number at a limit, as 1, 2, 4 or 8 bytes."""
    size = draw.choice((1, 2, 4, 8))
    return struct.pack("<Q", draw.choice(NUMBERS) & (2**64 - 1))[:size]


def mutated(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with up to five kinds of damage: cuts, repeats, flipped bits, numbers and words put over or between, in
    place of words, and pieces of others."""
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 4, 8, 40, 400)))
        match draw.randrange(10):
            case 0:
                data = data[:at] + data[end:]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[at:end] * draw.randrange(2, 8) + data[end:]
            case 3:
                flipped = bytes(byte ^ (1 << draw.randrange(8)) for byte in data[at : at + draw.choice((1, 8))])
                data = data[:at] + flipped + data[at + len(flipped) :]
            case 4 | 5:
                put = number_bytes(draw)
                data = data[:at] + put + data[at + len(put) :]
            case 6:
                put = draw.choice(WORDS)
                data = data[:at] + put + data[at + draw.choice((0, len(put))) :]
            case 7:
                other = draw.choice(others)
                begin = draw.randrange(len(other) + 1)
                data = data[:at] + other[begin : begin + draw.choice((8, 64, 512))] + data[end:]
            case 8:
                token = _TOKEN.search(data, at)
                if token is not None:
                    data = data[: token.start()] + draw.choice(WORDS) + data[token.end() :]
            case _:
                data = data[:at] + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9))) + data[end:]
    return data[:MOST_BYTES]
