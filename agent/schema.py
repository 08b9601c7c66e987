"""The recording's tables: one SQLite file a host and run, readable by any SQLite client."""

from __future__ import annotations

import sqlite3

from rankscope.records import CollectiveRecord, DeviceRecord, GroupRecord, StepRecord, field_names

#: "RKSC": tells a recording from any other SQLite file (PRAGMA application_id).
APPLICATION_ID = 0x524B5343
#: PRAGMA user_version. A reader opens its own version only.
SCHEMA_VERSION = 2

STEP_FIELDS = field_names(StepRecord)
DEVICE_FIELDS = field_names(DeviceRecord)
#: Numbers of a group's record; its members are a column of their own.
GROUP_FIELDS = tuple(name for name in field_names(GroupRecord) if name not in ("group", "members"))
COLLECTIVE_FIELDS = tuple(name for name in field_names(CollectiveRecord) if name not in ("operation", "group"))
PHASE_FIELDS = ("step", "start_ns", "end_ns")
#: What a window holds of collectives that the communication library timed.
TIMED_FIELDS = ("step", "sequence", "size_bytes", "ranks", "duration_ns")


def _columns(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} INTEGER" for name in names)


# Rows of ranks lie in the order in which they are read back, by rank and step. Readings lie by time, as they come: by
# series each would be written to another page, and hundreds come every second. A row that comes twice (an agent that
# died between reading a ring and saying so) replaces nothing.
_TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE ranks (
    id INTEGER PRIMARY KEY, ring TEXT, job TEXT, attempt INTEGER, rank INTEGER, world_size INTEGER,
    local_rank INTEGER, host TEXT, pid INTEGER, start_ticks INTEGER, boot_id TEXT, gpu_uuid TEXT, device_clock TEXT,
    anchor_monotonic_ns INTEGER, anchor_wall_ns INTEGER, position INTEGER NOT NULL DEFAULT 0);
CREATE TABLE steps (rank_id INTEGER, {_columns(STEP_FIELDS)}, PRIMARY KEY (rank_id, step)) WITHOUT ROWID;
CREATE TABLE device_steps (rank_id INTEGER, {_columns(DEVICE_FIELDS)}, PRIMARY KEY (rank_id, step)) WITHOUT ROWID;
CREATE TABLE groups (
    rank_id INTEGER, name TEXT, {_columns(GROUP_FIELDS)}, members TEXT,
    PRIMARY KEY (rank_id, name, step, on_device)) WITHOUT ROWID;
CREATE TABLE collectives (
    rank_id INTEGER, name TEXT, operation TEXT, {_columns(COLLECTIVE_FIELDS)},
    PRIMARY KEY (rank_id, enqueued_ns, operation, name)) WITHOUT ROWID;
CREATE TABLE phases (
    rank_id INTEGER, name TEXT, {_columns(PHASE_FIELDS)}, PRIMARY KEY (rank_id, name, start_ns)) WITHOUT ROWID;
CREATE TABLE signals (
    rank_id INTEGER, step INTEGER, time_ns INTEGER, loss REAL, gradient_norm REAL, nonfinite INTEGER, samples INTEGER,
    tokens INTEGER, flops INTEGER, peak_flops INTEGER, PRIMARY KEY (rank_id, step, time_ns)) WITHOUT ROWID;
CREATE TABLE memory (
    rank_id INTEGER, step INTEGER, time_ns INTEGER, allocated_bytes INTEGER, reserved_bytes INTEGER,
    split_bytes INTEGER, largest_free_bytes INTEGER, ooms INTEGER, retries INTEGER, blocks TEXT, free_blocks TEXT,
    PRIMARY KEY (rank_id, time_ns)) WITHOUT ROWID;
CREATE TABLE marks (rank_id INTEGER, time_ns INTEGER, step INTEGER, mark INTEGER, text TEXT);
CREATE TABLE series (id INTEGER PRIMARY KEY, metric TEXT, device TEXT);
CREATE TABLE readings (
    series_id INTEGER, time_ns INTEGER, value REAL, PRIMARY KEY (time_ns, series_id)) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY, kind TEXT, time_ns INTEGER, text TEXT, severity TEXT, device TEXT, rank INTEGER,
    attributes TEXT);
CREATE TABLE sources (
    probe TEXT, probe_group TEXT, device TEXT, time_ns INTEGER, outcome TEXT, reason TEXT,
    PRIMARY KEY (probe, probe_group, device, reason)) WITHOUT ROWID;
CREATE TABLE findings (id INTEGER PRIMARY KEY, time_ns INTEGER, class TEXT, side TEXT, rank INTEGER, body TEXT);
CREATE TABLE verdict (time_ns INTEGER, body TEXT);
"""

#: Bulk tables in the order in which they are thinned: what explains a step goes before the step itself.
THINNED = (
    ("readings", "series_id", "time_ns"),
    ("collectives", "rank_id", "enqueued_ns"),
    ("phases", "rank_id", "start_ns"),
    ("memory", "rank_id", "time_ns"),
    ("signals", "rank_id", "step"),
    ("groups", "rank_id", "step"),
    ("device_steps", "rank_id", "step"),
    ("steps", "rank_id", "step"),
)

#: Key of the meta table: largest error of the host's wall clock as the kernel says it, ns.
CLOCK_ERROR_KEY = "wall_clock_error_ns"

#: Statement of each kind of row, by table.
INSERTS = {
    "ranks": f"INSERT INTO ranks VALUES ({', '.join('?' * 15)}, 0)",
    "series": "INSERT INTO series VALUES (?, ?, ?)",
    "steps": f"INSERT OR IGNORE INTO steps VALUES ({', '.join('?' * (len(STEP_FIELDS) + 1))})",
    "device_steps": f"INSERT OR IGNORE INTO device_steps VALUES ({', '.join('?' * (len(DEVICE_FIELDS) + 1))})",
    "groups": f"INSERT OR IGNORE INTO groups VALUES ({', '.join('?' * (len(GROUP_FIELDS) + 3))})",
    "collectives": f"INSERT OR IGNORE INTO collectives VALUES ({', '.join('?' * (len(COLLECTIVE_FIELDS) + 3))})",
    "phases": f"INSERT OR IGNORE INTO phases VALUES ({', '.join('?' * (len(PHASE_FIELDS) + 2))})",
    "signals": f"INSERT OR IGNORE INTO signals VALUES ({', '.join('?' * 10)})",
    "memory": f"INSERT OR IGNORE INTO memory VALUES ({', '.join('?' * 11)})",
    "marks": "INSERT INTO marks VALUES (?, ?, ?, ?, ?)",
    "readings": "INSERT OR IGNORE INTO readings VALUES (?, ?, ?)",
    "events": "INSERT INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
    "sources_cleared": "DELETE FROM sources WHERE probe = ? AND probe_group = ? AND device = ?",
    "sources": "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?)",
    "findings": "INSERT INTO findings VALUES (NULL, ?, ?, ?, ?, ?)",
    "meta": "INSERT OR REPLACE INTO meta VALUES (?, ?)",
    "positions": "UPDATE ranks SET position = ? WHERE id = ?",
}


def create_tables(connection: sqlite3.Connection) -> None:
    """Lay out an empty recording, as a whole or not at all."""
    connection.executescript(
        f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; {_TABLES} COMMIT;"
    )
