"""The recording: what one host saw of one run, appended to a SQLite file in one transaction a tick.

What a tick says commits together: rows, how far each ring was read, and the export batch that reports them. So an
agent that dies between two ticks neither loses nor repeats anything that is still in a ring.
"""

from __future__ import annotations

import json
import operator
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from rankscope.agent.anchors import LATER_KEY, anchors_of, later_anchors
from rankscope.agent.recording_file import check_format, connect, limit
from rankscope.agent.schema import (
    COLLECTIVE_FIELDS,
    DEVICE_FIELDS,
    GROUP_FIELDS,
    INSERTS,
    STEP_FIELDS,
    create_tables,
)
from rankscope.agent.thinning import thin
from rankscope.clock import PARTED_NS, Clock, ClockAnchor, PartedClocks, SystemClock
from rankscope.errors import RecordingError
from rankscope.finding import Finding
from rankscope.reading import Event, Outcome, Reading, Severity
from rankscope.records import (
    CollectiveRecord,
    DeviceRecord,
    GroupRecord,
    MarkRecord,
    MemoryRecord,
    PhaseRecord,
    RingRecord,
    SignalRecord,
    StepRecord,
)
from rankscope.redact import without_secrets
from rankscope.ring import RingHeader

DEFAULT_MAX_BYTES = 2_000_000_000
#: Rows kept in memory while the file cannot be written (some 10 MB); older ones are then lost and counted.
PENDING_ROWS = 50_000
#: A file that could not be written is tried again after so long at the latest.
_TRY_AGAIN_NS = 60 * 10**9
#: Tables whose rows may be given up; the others are few and name what the rows belong to.
_BULK = ("readings", "collectives", "memory", "signals", "groups", "phases", "device_steps", "steps")

#: What goes only where nothing else is left to go: an agent that can write nothing for days still has much to say.
_SAID = ("findings", "marks", "events")

# What goes into the columns, in their order; for every step of every rank, so at the least cost.
_step_values = operator.attrgetter(*STEP_FIELDS)
_device_values = operator.attrgetter(*DEVICE_FIELDS)
_group_values = operator.attrgetter(*GROUP_FIELDS)
_collective_values = operator.attrgetter(*COLLECTIVE_FIELDS)


class Recording:
    """The writing end. One process, one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection, clock: Clock) -> None:
        self.path = path
        #: For the outbox, whose rows commit with the tick that they report.
        self.connection = connection
        self._clock = clock
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        #: What turns its times into wall times.
        self.anchor, asleep_ns = anchors_of(meta)
        self._parted = PartedClocks(clock, asleep_ns)
        self._pending: dict[str, list[Sequence[Any]]] = {}
        #: Rows of which the last of its key counts, by table: however long nothing can be written, they do not grow.
        self._latest: dict[str, dict[Any, Sequence[Any]]] = {"meta": {}, "sources": {}, "sources_cleared": {}}
        self._positions: dict[int, int] = {}
        self._series = {
            (metric, device): number
            for number, metric, device in connection.execute("SELECT id, metric, device FROM series")
        }
        self._next_rank = 1 + (connection.execute("SELECT max(id) FROM ranks").fetchone()[0] or 0)
        self._unwritten = 0
        #: Rows that could not be written and are gone.
        self.lost_rows = 0
        self._lost_unsaid = 0
        #: Why the last commit failed; "" while all is well.
        self.trouble = ""
        #: When it failed, and what room there was.
        self._failed: tuple[int, tuple[int, int]] | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        job: str,
        host: str,
        max_bytes: int = DEFAULT_MAX_BYTES,
        reserve_bytes: int = 0,
        clock: Clock | None = None,
    ) -> Recording:
        """Begin a recording in `path` (empty or absent). `reserve_bytes` is what the outbox may take on top."""
        clock = clock or SystemClock()
        connection = connect(path)
        try:
            create_tables(connection)
            anchor = ClockAnchor.take(clock)
            connection.executemany(
                INSERTS["meta"],
                [
                    ("job", job),
                    ("host", host),
                    ("anchor_monotonic_ns", anchor.monotonic_ns),
                    ("anchor_wall_ns", anchor.wall_ns),
                    (LATER_KEY, later_anchors(anchor, clock.asleep_ns())),
                    ("max_bytes", max_bytes),
                    ("reserve_bytes", reserve_bytes),
                ],
            )
        except sqlite3.Error as error:
            connection.close()
            raise RecordingError(
                f"cannot begin a recording ({error})", where=str(path), todo="free space there"
            ) from error
        limit(connection, max_bytes + reserve_bytes)
        return cls(path, connection, clock)

    @classmethod
    def open(cls, path: Path, *, clock: Clock | None = None) -> Recording:
        """Go on with a recording whose agent died."""
        connection = connect(path)
        try:
            check_format(connection, path)
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            limit(connection, int(meta["max_bytes"]) + int(meta["reserve_bytes"]))
            return cls(path, connection, clock or SystemClock())
        except (sqlite3.Error, KeyError, TypeError, ValueError, OverflowError) as error:
            connection.close()
            raise RecordingError(f"cannot go on with it ({error})", where=str(path)) from error
        except RecordingError:
            connection.close()
            raise

    def look_at_clocks(self) -> Event | None:
        """Take another anchor where the wall clock was set or the host slept since the last; the event that says so."""
        parted = self._parted.look(self.anchor.newest)
        if parted is None:
            return None
        taken, set_ns, slept_ns = parted
        self.anchor = self.anchor.replaced_by(taken)
        self.set_meta(LATER_KEY, later_anchors(self.anchor, self._parted.asleep_ns))
        said = [f"this host slept for {slept_ns / 1e9:.3f} s"] if slept_ns else []
        if abs(set_ns) >= PARTED_NS:
            said.append(f"the wall clock was set {'forward' if set_ns > 0 else 'back'} by {abs(set_ns) / 1e9:.3f} s")
        attributes: dict[str, str | int | float | None] = {"set_ns": set_ns, "slept_ns": slept_ns}
        text = f"{' and '.join(said)}; durations are as they were, and times from here on are by the clock as it is now"
        return Event("clock-parted", taken.monotonic_ns, text, Severity.WARNING, attributes=attributes)

    def add_rank(self, ring: str, header: RingHeader) -> tuple[int, int]:
        """(row id, records of this ring that are recorded already) of a rank, old or new."""
        identity, anchor = header.identity, header.anchor
        known = self.connection.execute(
            "SELECT id, position FROM ranks WHERE ring = ? AND anchor_monotonic_ns = ?", (ring, anchor.monotonic_ns)
        ).fetchone()
        if known:
            return int(known[0]), int(known[1])
        number = self._next_rank
        self._next_rank += 1
        self._add("ranks", (number, ring, *asdict(identity).values(), anchor.monotonic_ns, anchor.wall_ns))
        return number, 0

    def set_gpu(self, rank_id: int, gpu_uuid: str) -> None:
        """Name the GPU of a rank that did not know it when its ring was made."""
        self._execute("UPDATE ranks SET gpu_uuid = ? WHERE id = ?", (gpu_uuid, rank_id))

    def add_records(self, rank_id: int, records: Iterable[RingRecord], position: int) -> None:
        """Add what a ring held up to `position`."""
        for record in records:
            if isinstance(record, StepRecord):
                self._add("steps", (rank_id, *_step_values(record)))
            elif isinstance(record, DeviceRecord):
                self._add("device_steps", (rank_id, *_device_values(record)))
            elif isinstance(record, GroupRecord):
                self._add(
                    "groups",
                    (rank_id, record.group, *_group_values(record), record.members),
                )
            elif isinstance(record, CollectiveRecord):
                self._add("collectives", (rank_id, record.group, record.operation, *_collective_values(record)))
            elif isinstance(record, PhaseRecord):
                self._add("phases", (rank_id, record.name, record.step, record.start_ns, record.end_ns))
            elif isinstance(record, SignalRecord):
                self._add("signals", (rank_id, *astuple(record)))
            elif isinstance(record, MemoryRecord):
                *values, blocks, free_blocks = astuple(record)
                self._add("memory", (rank_id, *values, json.dumps(blocks), json.dumps(free_blocks)))
            elif isinstance(record, MarkRecord):
                # Hooks take secrets out of what they write; a ring may be of another version, or of no hooks at all.
                said = without_secrets(record.text)
                self._add("marks", (rank_id, record.time_ns, record.step, record.mark, said))
        self._positions[rank_id] = position

    def holds(self, rank_id: int) -> bool:
        """Whether all that was added of a rank is in the file."""
        return rank_id not in self._positions

    def add_readings(self, readings: Iterable[Reading]) -> None:
        """Add values of series."""
        rows = self._pending.setdefault("readings", [])
        before = len(rows)
        numbers = self._series
        for metric, value, time_ns, device in readings:
            key = (metric, device)
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = len(numbers) + 1
                self._add("series", (number, *key))
            # A counter of 64 bits may be larger than the largest whole number of a database.
            rows.append((number, time_ns, float(value)))
        self._unwritten += len(rows) - before

    def add_events(self, events: Iterable[Event]) -> None:
        """Add events of this host."""
        for event in events:
            attributes = json.dumps(event.attributes)
            self._add(
                "events",
                (event.kind, event.time_ns, event.text, event.severity, event.device, event.rank, attributes),
            )

    def set_outcome(self, probe: str, group: str, device: str, time_ns: int, outcome: Outcome, reason: str) -> None:
        """Say how a source answers: OK takes back all that was said of it, anything else adds to it."""
        key = (probe, group, device)
        sources = self._latest["sources"]
        if outcome is Outcome.OK:
            self._latest["sources"] = sources = {each: row for each, row in sources.items() if each[:3] != key}
            self._latest["sources_cleared"][key] = key
        sources[*key, reason] = (*key, time_ns, outcome, reason)

    def add_findings(self, findings: Iterable[Finding], time_ns: int) -> None:
        """Add findings as they were made live."""
        for finding in findings:
            body = json.dumps(asdict(finding))
            self._add("findings", (time_ns, finding.class_slug, finding.side, finding.where.rank, body))

    def set_meta(self, key: str, value: str | float | None) -> None:
        """Keep one fact about the run."""
        self._latest["meta"][key] = (key, value)

    def _add(self, table: str, row: Sequence[Any]) -> None:
        self._pending.setdefault(table, []).append(row)
        self._unwritten += 1

    def commit(self, also: Callable[[], None] | None = None, *, final: bool = False) -> bool:
        """Write what was added, and what `also` executes on the same connection, as one transaction.

        False where the disk is full or the limit reached: then everything is kept for the next call, up to
        PENDING_ROWS (ranks, series and the latest facts come on top); what is beyond is dropped, the oldest first and
        events last, counted in `lost_rows` and said by an event once there is room. While there is none it is tried
        again once a minute, and at once where there is more room than when it failed, or for the `final` time.
        """
        if not (final or self._may_have_room()):
            self._drop_old_rows()
            return False
        if self._lost_unsaid:
            pending = self._pending | {"events": [*self._pending.get("events", ()), self._loss_row()]}
        else:
            pending = self._pending
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            # In the order of INSERTS: a series before its readings, a rank before its position.
            for table, statement in INSERTS.items():
                if rows := pending.get(table) or list(self._latest.get(table, {}).values()):
                    self.connection.executemany(statement, rows)
            self.connection.executemany(
                INSERTS["positions"], [(position, rank) for rank, position in self._positions.items()]
            )
            if also is not None:
                also()
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.trouble = str(error)
            self._failed = (self._clock.monotonic_ns(), self._room())
            self._drop_old_rows()
            return False
        self._pending.clear()
        for rows in self._latest.values():
            rows.clear()
        self._positions.clear()
        self._unwritten = 0
        self.trouble = ""
        self._failed = None
        self._lost_unsaid = 0
        return True

    def _may_have_room(self) -> bool:
        """Whether to try: what waits may be many rows, and to write them in vain every few seconds costs too much."""
        if self._failed is None:
            return True
        failed_ns, room = self._failed
        waited_ns = self._clock.monotonic_ns() - failed_ns
        return waited_ns >= _TRY_AGAIN_NS or any(now > then for now, then in zip(self._room(), room, strict=True))

    def _room(self) -> tuple[int, int]:
        """Bytes that are free where the file lies, and pages that it may have."""
        try:
            found = os.statvfs(self.path.parent)
            (pages,) = self._execute("PRAGMA max_page_count").fetchone()
        except (OSError, sqlite3.Error):
            return (0, 0)
        return found.f_bavail * found.f_frsize, int(pages)

    def _loss_row(self) -> Sequence[Any]:
        text = f"{self._lost_unsaid} rows could not be written: {self.trouble}"
        attributes = json.dumps({"count": self._lost_unsaid})
        return ("recording-lost", self._clock.monotonic_ns(), text, Severity.WARNING, "", None, attributes)

    def _drop_old_rows(self) -> None:
        for table in (*_BULK, *_SAID):
            rows = self._pending.get(table, [])
            surplus = min(len(rows), self._unwritten - PENDING_ROWS)
            if surplus > 0:
                del rows[:surplus]
                self._unwritten -= surplus
                self.lost_rows += surplus
                self._lost_unsaid += surplus

    def thin(self, max_bytes: int) -> int:
        """Where the file is nearly full, drop older rows of the least needed bulk table; returns how many went."""
        gone, table = thin(self.connection, max_bytes)
        if gone:
            text = f"dropped {gone} older rows of {table} to stay below {max_bytes} bytes"
            event = Event("readings-thinned", self._clock.monotonic_ns(), text, attributes={"count": gone})
            self.add_events([event])
        return gone

    def _execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.connection.execute(statement, parameters)

    def close(self) -> None:
        """Write what is left and leave one file without side files."""
        self.commit(final=True)
        try:
            self._execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            # A reader holds it open, or the disk is full: the side file stays and readers take it in.
            pass
        self.connection.close()
