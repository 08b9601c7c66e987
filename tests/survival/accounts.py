"""Whether everything adds up after a fault: rings with the recording, the recording with the outbox, the outbox with
what the collector has."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from rankscope.agent.anchors import anchors_of
from rankscope.agent.load import load_window
from rankscope.exporters.otlp_encode import OtlpEncoder
from rankscope.exporters.outbox import Balance
from rankscope.reading import Reading
from rankscope.ring import RingReader

#: Tables that hold the records of rings, one row a record.
RECORD_TABLES = ("steps", "device_steps", "groups", "collectives", "phases", "signals", "memory", "marks")


def say(balance: Balance | None) -> str:
    """The accounts in a line, in batches."""
    if balance is None:
        return "no outbox yet"
    accounts = (balance.acknowledged, balance.waiting, balance.dropped)
    delivered, waiting, dropped = (each.batches for each in accounts)
    return f"produced {balance.produced.batches} = delivered {delivered} + waiting {waiting} + dropped {dropped}"


@dataclass(frozen=True, slots=True)
class RingAccount:
    """Records of all rings: written by the ranks, recorded, and said to be lost."""

    rings: int
    written: int
    recorded: int
    said_lost: int

    @property
    def holds(self) -> bool:
        """Whether none is missing and none is there twice."""
        return self.written == self.recorded + self.said_lost

    def __str__(self) -> str:
        return f"{self.rings} rings: written {self.written} = recorded {self.recorded} + said lost {self.said_lost}"


def ring_account(recording: Path, rings: Path) -> RingAccount:
    """Compare the rings that lie there, read by a reader of its own, with what was recorded of them."""
    connection = sqlite3.connect(recording)
    written = recorded = 0
    found = sorted(rings.glob("*.ring"))
    for path in found:
        reader = RingReader(path)
        reader.read()
        written += reader.position
        reader.close()
        for table in RECORD_TABLES:
            query = f"SELECT count(*) FROM {table} JOIN ranks ON ranks.id = rank_id WHERE ring = ?"
            recorded += connection.execute(query, (path.name,)).fetchone()[0]
    lost = connection.execute(
        "SELECT coalesce(sum(json_extract(attributes, '$.count')), 0) FROM events"
        " WHERE kind IN ('ring-overwritten', 'ring-damaged', 'recording-lost')"
    ).fetchone()[0]
    connection.close()
    return RingAccount(len(found), written, recorded, lost)


def count(recording: Path, query: str) -> int:
    """One number from a recording; 0 before its tables are there."""
    connection = sqlite3.connect(recording, timeout=30)
    try:
        return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def opens(recording: Path) -> str:
    """Why the recording does not open as a whole one, "" where it does."""
    connection = sqlite3.connect(recording)
    try:
        (told,) = connection.execute("PRAGMA integrity_check").fetchone()
    finally:
        connection.close()
    if told != "ok":
        return str(told)
    window = load_window([recording])
    return "" if window.ranks else "no rank in it"


def missing_points(recording: Path, requests: Iterable[tuple[str, bytes]]) -> int:
    """Readings of the recording that a collector has not got, each looked for by name, attributes, time and value."""
    connection = sqlite3.connect(recording)
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    rows = connection.execute(
        "SELECT metric, value, time_ns, device FROM readings JOIN series ON series.id = series_id ORDER BY time_ns"
    )
    anchor, _ = anchors_of(meta)
    encoder = OtlpEncoder(job=meta["job"], host=meta["host"], anchor=anchor)
    wanted = _points(batch.payload for batch in encoder.readings(Reading(*row) for row in rows))
    connection.close()
    return len(wanted - _points(body for signal, body in requests if signal == "metrics"))


def _points(payloads: Iterable[bytes]) -> set[tuple[object, ...]]:
    found: set[tuple[object, ...]] = set()
    for payload in payloads:
        for message in _messages(payload):
            points = message.sum.data_points if message.WhichOneof("data") == "sum" else message.gauge.data_points
            for point in points:
                attributes = b"".join(each.SerializeToString() for each in point.attributes)
                found.add((message.name, attributes, point.time_unix_nano, point.as_double))
    return found


def _messages(payload: bytes) -> list:
    request = ExportMetricsServiceRequest.FromString(payload)
    return [
        message
        for of_resource in request.resource_metrics
        for of_scope in of_resource.scope_metrics
        for message in of_scope.metrics
    ]


def counted_steps(requests: Iterable[tuple[str, bytes]]) -> Counter[int]:
    """Steps of each rank that the collector's histograms count: each cumulative series at its highest."""
    highest: dict[tuple[int, int], int] = {}
    for signal, payload in requests:
        if signal != "metrics":
            continue
        for message in _messages(payload):
            if message.name != "rankscope.step.duration":
                continue
            for point in message.exponential_histogram.data_points:
                rank = next(each.value.int_value for each in point.attributes if each.key == "rankscope.rank")
                key = (rank, point.start_time_unix_nano)
                highest[key] = max(highest.get(key, 0), point.count)
    counts: Counter[int] = Counter()
    for (rank, _), count in highest.items():
        counts[rank] += count
    return counts


def parted_ns(recording: Path) -> tuple[int, int]:
    """By how much the wall clock was set, and how long the host slept, as events say it, ns."""
    keys = ("$.set_ns", "$.slept_ns")
    query = "SELECT coalesce(sum(json_extract(attributes, '{}')), 0) FROM events WHERE kind = 'clock-parted'"
    return count(recording, query.format(keys[0])), count(recording, query.format(keys[1]))


def steps_so_far(recording: Path) -> int | None:
    """Steps in the recording; None where it cannot be read now: on a full disk a second reader may not begin."""
    try:
        return recorded_steps(recording).total()
    except sqlite3.OperationalError:
        return None


def recorded_steps(recording: Path) -> Counter[int]:
    """Steps of each rank in the recording."""
    connection = sqlite3.connect(recording, timeout=30)
    rows = connection.execute("SELECT rank, count(*) FROM steps JOIN ranks ON ranks.id = rank_id GROUP BY rank")
    counts = Counter(dict(rows.fetchall()))
    connection.close()
    return counts
