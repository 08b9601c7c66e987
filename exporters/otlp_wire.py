"""Data points of OTLP as the bytes that protobuf would make of them.

Of a series' points only times and values differ, at fixed width: everything else is encoded once. That costs an eighth
of building the messages, for what is most of an export. Field numbers are those of opentelemetry/proto/metrics/v1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

#: NumberDataPoint: start_time_unix_nano (2), time_unix_nano (3) and as_double (4), each of 8 bytes behind its tag.
_SINCE = struct.Struct("<BQBQBd")
_AT = struct.Struct("<BQBd")
_START, _TIME, _DOUBLE = 2 << 3 | 1, 3 << 3 | 1, 4 << 3 | 1
#: Fields of submessages and texts (wire type 2).
_DATA_POINTS = 1
_ATTRIBUTES = 7
_NAME, _DESCRIPTION, _UNIT, _GAUGE, _SUM = 1, 2, 3, 5, 7
#: Sum: aggregation_temporality (2) and is_monotonic (3) are numbers (wire type 0).
_TEMPORALITY, _MONOTONIC = 2 << 3, 3 << 3
#: The numbers of one byte.
_SINGLE = tuple(bytes((number,)) for number in range(0x80))


def varint(number: int) -> bytes:
    """A number that is not negative, seven bits a byte."""
    if number < 0x80:
        return _SINGLE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


class PointWriter:
    """Writes the points of one series, as elements of a gauge's or a sum's `data_points`."""

    __slots__ = ("_attributes", "_head")

    def __init__(self, attributes: Iterable[KeyValue], *, since: bool) -> None:
        """`since`: each point says from when on it counts."""
        self._attributes = b"".join(field(_ATTRIBUTES, each.SerializeToString()) for each in attributes)
        size = (_SINCE if since else _AT).size + len(self._attributes)
        self._head = varint(_DATA_POINTS << 3 | 2) + varint(size)

    def at(self, time_ns: int, value: float) -> bytes:
        """A point of a gauge, or of a sum of which it is not known since when."""
        return self._head + _AT.pack(_TIME, time_ns, _DOUBLE, value) + self._attributes

    def since(self, start_ns: int, time_ns: int, value: float) -> bytes:
        """A point of a counter."""
        return self._head + _SINCE.pack(_START, start_ns, _TIME, time_ns, _DOUBLE, value) + self._attributes


def metric_head(name: str, description: str, unit: str) -> bytes:
    """What every message of one metric begins with; `gauge` or `total` follows."""
    texts = ((_NAME, name), (_DESCRIPTION, description), (_UNIT, unit))
    return b"".join(field(number, text.encode()) for number, text in texts if text)


def gauge(points: bytes) -> bytes:
    """Points of values as they are."""
    return field(_GAUGE, points)


def total(points: bytes, temporality: int, *, monotonic: bool) -> bytes:
    """Points of a sum."""
    facts = bytes((_TEMPORALITY, temporality, *((_MONOTONIC, 1) if monotonic else ())))
    return field(_SUM, points + facts)
