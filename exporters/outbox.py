"""The durable outbox: export batches that wait in the recording's own SQLite file until a receiver has them.

A batch is added in the transaction that records what it reports, so that neither exists without the other, and is
deleted when it is acknowledged. The accounts are written in the same transactions and always add up:

    produced = acknowledged + waiting + dropped        in batches, in points and in stored bytes

Whatever is dropped is booked with its reason and handed to the agent once, to be recorded as an event. Payloads are
stored as gzip without a time stamp: the same bytes each time they are sent, and a quota that holds ten times more.
"""

from __future__ import annotations

import gzip
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from rankscope.reading import Event, Severity

#: Stored bytes that may wait: days of a node's readings.
DEFAULT_QUOTA_BYTES = 512 * 1024 * 1024

#: Reasons of a drop that the outbox itself gives.
OVER_QUOTA = "over quota"
DAMAGED = "damaged in the outbox"
LARGER_THAN_QUOTA = "larger than the quota"

#: What zlib calls gzip with its header and checksum, and far more than any request has that the encoders make.
_GZIP = 31
_MOST_PAYLOAD_BYTES = 64_000_000
#: What no row of ours is.
_UNFIT = {
    "outbox_batch": "typeof(points) <> 'integer' OR typeof(bytes) <> 'integer' OR typeof(created_ns) <> 'integer'"
    " OR typeof(payload) <> 'blob' OR min(points, bytes) < 0",
    "outbox_account": "state NOT IN ('produced', 'acknowledged', 'dropped') OR typeof(batches) <> 'integer'"
    " OR typeof(points) <> 'integer' OR typeof(bytes) <> 'integer' OR typeof(reported_batches) <> 'integer'"
    " OR typeof(reported_points) <> 'integer' OR min(batches, points, bytes) < 0"
    " OR max(batches, points, bytes, reported_batches, reported_points) > 1 << 60",
}

# `reported_*` is what of a dropped account has been handed out by take_drops.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox_batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    signal TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    points INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_batch_order ON outbox_batch (signal, id);
CREATE TABLE IF NOT EXISTS outbox_account (
    signal TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    batches INTEGER NOT NULL,
    points INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    reported_batches INTEGER NOT NULL DEFAULT 0,
    reported_points INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (signal, state, reason)
) WITHOUT ROWID;
"""


class Signal(StrEnum):
    """Which OTLP service a batch is for."""

    METRICS = "metrics"
    LOGS = "logs"
    TRACES = "traces"


@dataclass(frozen=True, slots=True)
class Tally:
    """Batches, the points or log records in them, and their stored bytes."""

    batches: int = 0
    points: int = 0
    bytes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.batches + other.batches, self.points + other.points, self.bytes + other.bytes)

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.batches - other.batches, self.points - other.points, self.bytes - other.bytes)


@dataclass(frozen=True, slots=True)
class Drop:
    """What was given up of one signal for one reason."""

    signal: str
    reason: str
    batches: int
    points: int

    def event(self, time_ns: int) -> Event:
        """This drop as the event that the agent records."""
        text = f"{self.points} points of {self.signal} in {self.batches} batches were not delivered: {self.reason}"
        attributes: dict[str, str | int | float | None] = {
            "batches": self.batches,
            "points": self.points,
            "signal": self.signal,
            "reason": self.reason,
        }
        return Event("export-dropped", time_ns, text, Severity.WARNING, attributes=attributes)


@dataclass(frozen=True, slots=True)
class Balance:
    """The accounts at one moment. `waiting` is counted in the batches themselves, not derived from the rest."""

    produced: Tally
    acknowledged: Tally
    waiting: Tally
    dropped: Tally
    #: What was dropped, by signal and reason; a partial success drops points of a batch that is acknowledged.
    drops: tuple[Drop, ...]

    @property
    def holds(self) -> bool:
        """Whether the accounts add up."""
        return self.produced == self.acknowledged + self.waiting + self.dropped


@dataclass(frozen=True, slots=True)
class WaitingBatch:
    """One batch to be sent. `created_ns` is wall time."""

    id: int
    signal: str
    created_ns: int
    points: int
    #: The serialised request as gzip.
    compressed: bytes

    def payload(self) -> bytes:
        """The serialised request."""
        return gzip.decompress(self.compressed)

    @property
    def whole(self) -> bool:
        """Whether it is as it was put in: a disk may have changed it since, and no receiver is to be sent that."""
        unpacking = zlib.decompressobj(wbits=_GZIP)
        try:
            unpacking.decompress(self.compressed, _MOST_PAYLOAD_BYTES)
        except (zlib.error, TypeError):
            # TypeError: what stands there is no bytes at all.
            return False
        return unpacking.eof


class Outbox:
    """Batches and accounts behind one connection; as the connection, to be used by one thread.

    Several threads or processes may each have their own on the same file.
    """

    def __init__(self, connection: sqlite3.Connection, *, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        """Create the tables where they are missing. Commits nothing of the caller's."""
        self._connection = connection
        self._quota_bytes = quota_bytes
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox_account'").fetchone():
            with self._transaction():
                # One at a time: executescript would commit what the caller has open.
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)

    def begin_anew_if_damaged(self) -> int | None:
        """Give up accounts and batches that cannot be ours, with all the others: nothing would add up any more.

        Returns how many batches waited; None where nothing is wrong. Raises sqlite3.Error.
        """
        tables = [name for name, unfit in _UNFIT.items() if self._count(f"SELECT count(*) FROM {name} WHERE {unfit}")]
        if not tables and self.balance().holds:
            return None
        waiting = self._count("SELECT count(*) FROM outbox_batch")
        with self._transaction():
            for name in _UNFIT:
                self._connection.execute(f"DELETE FROM {name}")
        return waiting

    def _count(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    def add(self, signal: str, payload: bytes, points: int, created_ns: int) -> int | None:
        """Put a serialised request in, inside the caller's open transaction; returns its id.

        Where the quota is passed the oldest batches are dropped, of whatever signal. None: this one alone is larger.
        """
        stored = gzip.compress(payload, 1, mtime=0)
        size = Tally(1, points, len(stored))
        self._book(signal, "produced", size)
        if size.bytes > self._quota_bytes:
            self._book(signal, "dropped", size, LARGER_THAN_QUOTA)
            return None
        cursor = self._connection.execute(
            "INSERT INTO outbox_batch (signal, created_ns, points, bytes, payload) VALUES (?, ?, ?, ?, ?)",
            (signal, created_ns, points, size.bytes, stored),
        )
        excess = self._booked_as_waiting().bytes - self._quota_bytes
        if excess > 0:
            self._drop_oldest(excess)
        return cursor.lastrowid

    def _drop_oldest(self, excess: int) -> None:
        rows = self._connection.execute("SELECT id, signal, points, bytes FROM outbox_batch ORDER BY id")
        doomed: list[tuple[int, str, Tally]] = []
        for batch_id, signal, points, size in rows:
            if excess <= 0:
                break
            doomed.append((batch_id, signal, Tally(1, points, size)))
            excess -= size
        rows.close()
        for batch_id, signal, tally in doomed:
            self._connection.execute("DELETE FROM outbox_batch WHERE id = ?", (batch_id,))
            self._book(signal, "dropped", tally, OVER_QUOTA)

    def oldest(self, signal: str) -> WaitingBatch | None:
        """The batch to be sent next."""
        row = self._connection.execute(
            "SELECT id, signal, created_ns, points, payload FROM outbox_batch WHERE signal = ? ORDER BY id LIMIT 1",
            (signal,),
        ).fetchone()
        return None if row is None else WaitingBatch(*row)

    def signals(self) -> frozenset[str]:
        """Signals of which a batch waits."""
        return frozenset(signal for (signal,) in self._connection.execute("SELECT DISTINCT signal FROM outbox_batch"))

    def acknowledge(self, batch_id: int, rejected: int = 0, reason: str = "") -> bool:
        """The receiver has the batch, less `rejected` points for `reason`. Commits, unless inside a transaction.

        False where the batch is no longer there: the quota took it while it was under way. It stays booked as
        dropped, though it may have arrived: what is said to be lost can only be too much.
        """
        with self._transaction():
            taken = self._take(batch_id)
            if taken is None:
                return False
            signal, tally = taken
            lost = min(rejected, tally.points)
            self._book(signal, "acknowledged", Tally(1, tally.points - lost, tally.bytes))
            if lost:
                self._book(signal, "dropped", Tally(0, lost, 0), reason)
        return True

    def drop(self, batch_id: int, reason: str) -> bool:
        """Give a batch up for `reason` (of a bounded set). Commits, unless inside a transaction.

        False where it is gone already.
        """
        with self._transaction():
            taken = self._take(batch_id)
            if taken is None:
                return False
            signal, tally = taken
            self._book(signal, "dropped", tally, reason)
        return True

    def take_drops(self) -> tuple[Drop, ...]:
        """Everything dropped since the last call, by whichever thread.

        Call it in the transaction that records the events: then each drop is said once, whatever is killed when.
        """
        rows = self._connection.execute(
            "SELECT signal, reason, batches - reported_batches, points - reported_points FROM outbox_account"
            " WHERE state = 'dropped' AND (batches > reported_batches OR points > reported_points)"
        ).fetchall()
        if rows:
            self._connection.execute(
                "UPDATE outbox_account SET reported_batches = batches, reported_points = points WHERE state = 'dropped'"
            )
        return tuple(Drop(*row) for row in rows)

    def balance(self) -> Balance:
        """The accounts now, all from one snapshot."""
        with self._transaction("DEFERRED"):
            accounts = self._connection.execute(
                "SELECT signal, state, reason, batches, points, bytes FROM outbox_account"
            ).fetchall()
            waiting = self._connection.execute(
                "SELECT count(*), coalesce(sum(points), 0), coalesce(sum(bytes), 0) FROM outbox_batch"
            ).fetchone()
        totals = {"produced": Tally(), "acknowledged": Tally(), "dropped": Tally()}
        drops: list[Drop] = []
        for signal, state, reason, batches, points, size in accounts:
            totals[state] += Tally(batches, points, size)
            if state == "dropped":
                drops.append(Drop(signal, reason, batches, points))
        return Balance(totals["produced"], totals["acknowledged"], Tally(*waiting), totals["dropped"], tuple(drops))

    def _take(self, batch_id: int) -> tuple[str, Tally] | None:
        row = self._connection.execute(
            "DELETE FROM outbox_batch WHERE id = ? RETURNING signal, points, bytes", (batch_id,)
        ).fetchone()
        return None if row is None else (row[0], Tally(1, row[1], row[2]))

    def _booked_as_waiting(self) -> Tally:
        row = self._connection.execute(
            "SELECT coalesce(sum(iif(state = 'produced', batches, -batches)), 0),"
            " coalesce(sum(iif(state = 'produced', points, -points)), 0),"
            " coalesce(sum(iif(state = 'produced', bytes, -bytes)), 0) FROM outbox_account"
        ).fetchone()
        return Tally(*row)

    def _book(self, signal: str, state: str, tally: Tally, reason: str = "") -> None:
        self._connection.execute(
            "INSERT INTO outbox_account (signal, state, reason, batches, points, bytes) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET batches = batches + excluded.batches, points = points + excluded.points,"
            " bytes = bytes + excluded.bytes",
            (signal, state, reason, tally.batches, tally.points, tally.bytes),
        )

    @contextmanager
    def _transaction(self, mode: str = "IMMEDIATE") -> Iterator[None]:
        """A transaction of our own, or the caller's where one is open."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute(f"BEGIN {mode}")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
