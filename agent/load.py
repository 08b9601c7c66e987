"""The reading end of recordings: one or several hosts' files become one `Window`."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain, islice, starmap
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rankscope.agent.anchors import anchors_of
from rankscope.agent.brevity import brief
from rankscope.agent.host_clocks import host_clock
from rankscope.agent.kept_readings import KeptReadings
from rankscope.agent.parts import Part, join, latest
from rankscope.agent.plausible import counts, event_of, plausible, texts
from rankscope.agent.recording_file import check_format
from rankscope.agent.schema import (
    CLOCK_ERROR_KEY,
    COLLECTIVE_FIELDS,
    DEVICE_FIELDS,
    GROUP_FIELDS,
    PHASE_FIELDS,
    STEP_FIELDS,
    TIMED_FIELDS,
)
from rankscope.errors import RecordingError
from rankscope.identity import RankIdentity
from rankscope.reading import Outcome
from rankscope.records import LARGEST, SIZE_CLASSES, CollectiveRecord, MemoryRecord, SignalRecord, field_names
from rankscope.window import Columns, HostClock, RankWindow, Series, SeriesKey, Window

#: Latest steps of each rank that a window holds unless told otherwise (some 10 MB a rank).
DEFAULT_MAX_STEPS = 50_000
_IDENTITY = tuple(field.name for field in fields(RankIdentity))
_SIGNALS = field_names(SignalRecord)
_MEMORY = field_names(MemoryRecord)
_NAN = float("nan")
#: Rows that are read at a time.
_ROWS_AT_ONCE = 20_000
#: Operations of one rank that a window takes in: the latest steps' worth, some 40 MB at 64 ranks.
MAX_COLLECTIVES = 4_000
#: Collectives of one rank timed by its communication library that a window takes in: the latest, 40 bytes each.
MAX_TIMED = 200_000


def load_window(
    paths: Sequence[Path],
    *,
    since_ns: int | None = None,
    max_steps: int = DEFAULT_MAX_STEPS,
    kept: KeptReadings | None = None,
) -> Window:
    """The run that `paths` recorded, one file a host (a directory stands for the recordings in it).

    Of a job that was restarted the window holds the last attempt in which a rank finished a step. `since_ns` leaves
    out what ended before (CLOCK_MONOTONIC of the first host). Times of further hosts are moved onto the first host's
    clock: by their wall clocks, and by the steps in which ranks met where those disagree (`clocks` says how well). A
    file that was cut short gives what can be read, and the window's `not_seen` says so; RecordingError where nothing
    can. `kept` is for one who reads one file again and again; its window is good until the next.
    """
    files = recordings(paths)
    if not files:
        raise RecordingError("no recording named", todo="name a .db file that `rankscope run` wrote")
    parts: list[Part] = []
    clocks: dict[str, HostClock] = {}
    for file in files:
        first = parts[0] if parts else None
        part = _read(file, since_ns, max_steps, first, kept=kept)
        if first is not None and part.host != first.host:
            clock = clocks.get(part.host)
            if clock is None:
                clock = host_clock(first.told, part.told, latest(first), latest(part))
                clocks[part.host] = clock
            if clock.correction_ns:
                part = _read(file, since_ns, max_steps, first, ahead_ns=clock.correction_ns)
        parts.append(part)
    return join(parts, tuple(clocks.values()))


def recordings(paths: Sequence[Path]) -> list[Path]:
    """The recordings that `paths` name; a directory stands for those in it."""
    return [file for path in paths for file in _files(path)]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.db"))
    return [path]


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection to a recording, finished or being written. Raises RecordingError."""
    if not path.is_file():
        raise RecordingError("no such recording", where=str(path))
    if path.with_name(path.name + "-wal").exists():
        _fold_in(path)
    for mode in ("mode=ro", "immutable=1"):
        # Immutable is for a directory that may not be written, where a reader cannot make its side file.
        connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None, timeout=5.0)
        # Lets a file be read that is shorter than its header says: what is missing fails when it is reached.
        connection.execute("PRAGMA writable_schema = ON")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            check_format(connection, path)
        except sqlite3.OperationalError as error:
            connection.close()
            reason = str(error)
            continue
        except sqlite3.DatabaseError as error:
            connection.close()
            raise RecordingError(f"not a recording, or damaged ({error})", where=str(path)) from error
        except RecordingError:
            connection.close()
            raise
        return connection
    raise RecordingError(f"cannot open the recording ({reason})", where=str(path))


def _fold_in(path: Path) -> None:
    """Take in the side file that a killed agent left; where its owner lives, this does nothing."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error:
        pass
    finally:
        connection.close()


def _read(
    path: Path,
    since_ns: int | None,
    max_steps: int,
    first: Part | None,
    *,
    ahead_ns: int = 0,
    kept: KeptReadings | None = None,
) -> Part:
    connection = open_reader(path)
    try:
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        anchor, _ = anchors_of(meta)
        part = Part(str(meta["job"]), str(meta["host"]), str(meta.get("boot_id", "")), anchor)
        part.job_status = _whole(meta.get("job_status"))
        part.gpus = texts(meta.get("gpus", "[]"))
        part.wall_error_ns = _whole(meta.get(CLOCK_ERROR_KEY))
        shift = _shift(part, first) - ahead_ns
        since = None if since_ns is None else since_ns - shift
        reader = _Reader(connection, part, since, max_steps, shift, path)
        reader.ranks()
        reader.series(kept or KeptReadings())
        reader.events()
        reader.sources()
        return part
    except (sqlite3.Error, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RecordingError(f"damaged beyond reading ({error})", where=str(path)) from error
    finally:
        connection.close()


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and abs(value) <= LARGEST else None


def _shift(part: Part, first: Part | None) -> int:
    """Nanoseconds to add to this host's times to have them on the first host's clock."""
    if first is None or (part.boot_id and part.boot_id == first.boot_id):
        return 0
    # By the clocks as they were at last: one that was set is right since.
    return part.anchor.newest.ahead_ns - first.anchor.newest.ahead_ns


class _Reader:
    """Reads one file's tables into its part, as far as each can be read."""

    def __init__(
        self, connection: sqlite3.Connection, part: Part, since: int | None, max_steps: int, shift: int, path: Path
    ) -> None:
        self._connection = connection
        self._part = part
        self._since = -(2**62) if since is None else since
        self._max_steps = max_steps
        self._shift = shift
        self._path = path
        self._broken = False

    def _rows(self, names: Sequence[str], source: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Rows of these columns, as far as the file can be read and holds what an agent writes."""
        return list(chain.from_iterable(self._chunks(names, source, parameters)))

    def _chunks(self, names: Sequence[str], source: str, parameters: Sequence[Any] = ()) -> Iterator[list[Any]]:
        """The same, so many at a time as cost little memory."""
        table = source.split(maxsplit=1)[0]
        cursor: Iterator[Any] | None = None
        full = True
        while full:
            rows: list[Any] = []
            try:
                if cursor is None:
                    cursor = iter(self._connection.execute(f"SELECT {', '.join(names)} FROM {source}", parameters))
                rows.extend(islice(cursor, _ROWS_AT_ONCE))
            except sqlite3.DatabaseError as error:
                self._broken = True
                self._say(f"damaged or cut short, read as far as it goes ({error})")
            full = len(rows) == _ROWS_AT_ONCE
            kept = plausible(names, rows, table)
            self._leave_out(len(rows) - len(kept), table)
            yield kept

    def _leave_out(self, count: int, table: str) -> None:
        if count:
            self._say(f"{count} rows of {table} hold what no agent writes, and were left out")

    def _say(self, what: str) -> None:
        line = f"recording {self._path.name}: {what}"
        if line not in self._part.not_seen:
            self._part.not_seen.append(line)

    def ranks(self) -> None:
        generations: dict[tuple[int, int], int] = {}
        names = ("id", *_IDENTITY, "anchor_monotonic_ns")
        for number, *named, attached_ns in self._rows(names, "ranks ORDER BY anchor_monotonic_ns, id"):
            identity = RankIdentity(*named)
            if not 0 <= identity.rank < identity.world_size:
                self._leave_out(1, "ranks")
                continue
            # A rank that comes twice in one attempt belongs to a second launch by the same command.
            place = (identity.attempt, identity.rank)
            generation = generations[place] = generations.get(place, -1) + 1
            self._part.ranks[identity.attempt, generation, identity.rank] = self._rank(number, identity)
            self._part.attached_ns[identity.attempt, generation, identity.rank] = attached_ns + self._shift

    def _rank(self, number: int, identity: RankIdentity) -> RankWindow:
        rows = self._latest_steps(number)
        if len(rows) > self._max_steps:
            del rows[0]
            self._part.not_seen.append(f"rank {identity.rank}: only its last {self._max_steps} steps were looked at")
        steps = _columns(STEP_FIELDS, rows, self._shift)
        begin = rows[0][0] if rows else (0 if self._since < 0 else 2**62)
        of_rank = (number, begin)
        device = self._rows(DEVICE_FIELDS, "device_steps WHERE rank_id = ? AND step >= ? ORDER BY step", of_rank)
        groups = self._rows(
            ("name", *GROUP_FIELDS), "groups WHERE rank_id = ? AND step >= ? ORDER BY name, step", of_rank
        )
        phases = self._rows(
            ("name", *PHASE_FIELDS), "phases WHERE rank_id = ? AND step >= ? ORDER BY name, start_ns", of_rank
        )
        return RankWindow(
            identity,
            steps,
            _columns(DEVICE_FIELDS, device),
            {name: _columns(GROUP_FIELDS, rows) for name, rows in _by_first(groups).items()},
            {name: _columns(PHASE_FIELDS, rows, self._shift) for name, rows in _by_first(phases).items()},
            dict(self._rows(("name", "max(members) AS members"), "groups WHERE rank_id = ? GROUP BY name", (number,))),
            self._collectives(number, begin),
            self._timed(number, begin),
            [
                replace(record, time_ns=record.time_ns + self._shift)
                for record in starmap(
                    SignalRecord,
                    self._rows(_SIGNALS, "signals WHERE rank_id = ? AND step >= ? ORDER BY step", of_rank),
                )
            ],
            self._memory(number, begin),
        )

    def _memory(self, number: int, begin: int) -> list[MemoryRecord]:
        source = "memory WHERE rank_id = ? AND step >= ? ORDER BY time_ns"
        found = []
        for step, time_ns, *values, blocks, free_blocks in self._rows(_MEMORY, source, (number, begin)):
            sizes = [counts(blocks, SIZE_CLASSES), counts(free_blocks, SIZE_CLASSES)]
            if None in sizes:
                self._leave_out(1, "memory")
            else:
                found.append(MemoryRecord(*[step, time_ns + self._shift, *values, *sizes]))
        return found

    def _collectives(self, number: int, begin: int) -> list[CollectiveRecord]:
        source = "collectives WHERE rank_id = ? AND step >= ? AND on_device < 2 ORDER BY enqueued_ns DESC LIMIT ?"
        names = (*COLLECTIVE_FIELDS, "operation", "name")
        found = []
        for row in reversed(self._rows(names, source, (number, begin, MAX_COLLECTIVES))):
            record = CollectiveRecord(*row)
            times = (record.enqueued_ns + self._shift, _moved(record.started_ns, self._shift))
            found.append(
                replace(
                    record, enqueued_ns=times[0], started_ns=times[1], ended_ns=_moved(record.ended_ns, self._shift)
                )
            )
        return found

    def _timed(self, number: int, begin: int) -> dict[tuple[str, str], Columns]:
        """What the communication library timed, less what goes between two ranks only."""
        names = ("c.name", "c.operation", "c.step", "c.sequence", "c.size_bytes", "g.size", "c.ended_ns - c.started_ns")
        source = (
            "(SELECT * FROM collectives WHERE rank_id = ?1 AND step >= ?2 AND on_device = 2 "
            "AND sequence IS NOT NULL ORDER BY enqueued_ns DESC LIMIT ?3) c "
            "JOIN (SELECT name, max(size) AS size FROM groups WHERE rank_id = ?1 AND on_device = 2 GROUP BY name) g "
            "ON g.name = c.name ORDER BY c.name, c.operation, c.sequence"
        )
        found: dict[tuple[str, str], list[Any]] = {}
        for name, operation, *values in self._rows(names, source, (number, begin, MAX_TIMED)):
            found.setdefault((name, operation), []).append(values)
        return {key: _columns(TIMED_FIELDS, rows) for key, rows in found.items()}

    def _latest_steps(self, number: int) -> list[Any]:
        """At most one more than the window holds, in order."""
        source = "steps WHERE rank_id = ? AND end_ns >= ? ORDER BY step"
        self._broken = False
        rows = self._rows(STEP_FIELDS, f"{source} DESC LIMIT ?", (number, self._since, self._max_steps + 1))
        if self._broken:
            # The end is what a file that was cut short has lost: then from the begin, as far as it goes.
            rows = self._rows(STEP_FIELDS, source, (number, self._since))[-self._max_steps :]
        else:
            rows.reverse()
        return rows

    def series(self, kept: KeptReadings) -> None:
        keys = {
            number: SeriesKey(self._part.host, metric, device)
            for number, metric, device in self._rows(("id", "metric", "device"), "series ORDER BY id")
        }
        since = kept.missing_since(self._since)
        kept.move_on(self._since)
        self._read_readings(keys, since, kept)
        for number, series in kept.window():
            moved = array("q", [time + self._shift for time in series.times_ns]) if self._shift else series.times_ns
            self._part.series[keys[number]] = Series(moved, series.values)

    def _read_readings(self, numbers: Collection[int], since: int, kept: KeptReadings) -> None:
        """Readings of known series, in the order in which they lie: of each series that is the order of time."""
        for rows in self._chunks(("series_id", "time_ns", "value"), "readings WHERE time_ns >= ?", (since,)):
            found: dict[int, tuple[list[int], list[float]]] = {}
            for number, time_ns, value in rows:
                columns = found.get(number)
                if columns is None:
                    columns = found[number] = [], []
                columns[0].append(time_ns)
                columns[1].append(value)
            for number, (times, values) in found.items():
                if number in numbers:
                    kept.add(number, times, values)

    def events(self) -> None:
        names = ("kind", "time_ns", "text", "severity", "device", "rank AS told_rank", "attributes")
        rows = self._rows(names, "events WHERE time_ns >= ? ORDER BY time_ns, id", (self._since,))
        found = [event_of(row, self._part.host, self._shift) for row in rows]
        self._part.events += [event for event in found if event is not None]
        self._leave_out(found.count(None), "events")

    def sources(self) -> None:
        names = ("probe", "device", "outcome", "reason")
        source = f"sources WHERE outcome NOT IN (?, ?) GROUP BY {', '.join(names)}"
        rows = self._rows(names, source, (Outcome.OK, Outcome.NO_DATA))
        # Eight GPUs of one kind lack the same: one line for them all.
        devices: dict[tuple[str, str, str], list[str]] = {}
        for probe, device, outcome, reason in rows:
            devices.setdefault((probe, outcome, reason), []).append(device)
        for (probe, outcome, reason), found in devices.items():
            place = f"{probe} {found[0]}".strip() if len(found) == 1 else f"{probe}, {len(found)} devices"
            self._part.not_seen.append(f"{place}: {outcome}" + (f" ({brief(reason)})" if reason else ""))


def _moved(time_ns: int | None, shift: int) -> int | None:
    return None if time_ns is None else time_ns + shift


def _by_first(rows: Iterable[Any]) -> dict[str, list[Any]]:
    split: dict[str, list[Any]] = {}
    for name, *row in rows:
        split.setdefault(name, []).append(row)
    return split


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]], shift: int = 0) -> Columns:
    columns: dict[str, array[float]] = {}
    for name, column in zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True):
        moved = shift if name in ("start_ns", "end_ns") else 0
        if moved or None in column:
            columns[name] = array("d", [_NAN if value is None else value + moved for value in column])
        else:
            columns[name] = array("d", column)
    return Columns(columns)
