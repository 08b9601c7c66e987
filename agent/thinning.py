"""What goes first from a nearly full recording: the old thins out by age, what surrounds a trigger stays."""

from __future__ import annotations

import sqlite3

from rankscope.agent.schema import THINNED

#: Triggers whose surroundings are spared when old rows are thinned.
MAX_KEPT_WINDOWS = 64
#: Readings that are thinned by one statement: some minutes' worth.
_STRETCH_ROWS = 100_000


def thin(connection: sqlite3.Connection, max_bytes: int) -> tuple[int, str]:
    """Where the file is nearly full, drop every second row of the older half of the least needed bulk table.

    Returns (rows that went, their table). Called again and again, the old thins out by age and steps stay longest. What
    lies around a trigger ("burst" events) is spared while anything else can go.
    """
    if used_bytes(connection) < 0.9 * max_bytes:
        return 0, ""
    windows = _kept_windows(connection)
    gone, table = _thin_one(connection, windows)
    if not gone and windows:
        gone, table = _thin_one(connection, [])
    return gone, table


def _thin_one(connection: sqlite3.Connection, windows: list[tuple[int, int]]) -> tuple[int, str]:
    """(rows dropped, table) of the first table that has any to drop outside the windows (ns)."""
    for table, key, order in THINNED:
        low, high, count = connection.execute(f"SELECT min({order}), max({order}), count(*) FROM {table}").fetchone()
        if count < 2_000:
            continue
        if table == "readings":
            gone = _thin_readings(connection, low, low + (high - low) // 2, windows)
            if gone:
                return gone, table
            continue
        gone = 0
        for (owner,) in connection.execute(f"SELECT DISTINCT {key} FROM {table}").fetchall():
            old = f"{key} = ?1 AND {order} < ?2"
            for begin, end in _in_order_of(connection, order, owner, windows):
                old += f" AND {order} NOT BETWEEN {int(begin)} AND {int(end)}"
            gone += connection.execute(
                f"DELETE FROM {table} WHERE {key} = ?1 AND {order} IN (SELECT {order} FROM (SELECT {order}, "
                f"row_number() OVER (ORDER BY {order}) AS n FROM {table} WHERE {old}) WHERE n % 2 = 0)",
                (owner, low + (high - low) // 2),
            ).rowcount
        if gone:
            return gone, table
    return 0, ""


def _thin_readings(connection: sqlite3.Connection, low: int, until: int, windows: list[tuple[int, int]]) -> int:
    """Drop every second reading of each series, stretch by stretch of what lies before a time; returns how many went.

    They lie by time, series beside series: a stretch is sorted by series in memory.
    """
    old = "time_ns >= ?1 AND time_ns < ?2"
    for begin, end in windows:
        old += f" AND time_ns NOT BETWEEN {int(begin)} AND {int(end)}"
    gone = 0
    while low < until:
        row = connection.execute(
            "SELECT time_ns FROM readings WHERE time_ns >= ? ORDER BY time_ns LIMIT 1 OFFSET ?", (low, _STRETCH_ROWS)
        ).fetchone()
        end = until if row is None else min(until, max(row[0], low + 1))
        gone += connection.execute(
            "DELETE FROM readings WHERE (time_ns, series_id) IN (SELECT time_ns, series_id FROM (SELECT time_ns, "
            "series_id, row_number() OVER (PARTITION BY series_id ORDER BY time_ns) AS n FROM readings "
            f"WHERE {old}) WHERE n % 2 = 0)",
            (low, end),
        ).rowcount
        low = end
    return gone


def _kept_windows(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    """Stretches of time around triggers, the newest MAX_KEPT_WINDOWS, merged where they overlap, ns."""
    found = connection.execute(
        "SELECT json_extract(attributes, '$.begin_ns'), json_extract(attributes, '$.end_ns') FROM events "
        "WHERE kind = 'burst' ORDER BY id DESC LIMIT ?",
        (MAX_KEPT_WINDOWS,),
    ).fetchall()
    merged: list[tuple[int, int]] = []
    for begin, end in sorted((int(begin), int(end)) for begin, end in found):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def _in_order_of(
    connection: sqlite3.Connection, order: str, owner: int, windows: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The windows as ranges of the column that a table lies in the order of: times, or the steps they held."""
    if order != "step":
        return windows
    ranges = []
    for begin, end in windows:
        first, last = connection.execute(
            "SELECT min(step), max(step) FROM steps WHERE rank_id = ? AND end_ns >= ? AND start_ns <= ?",
            (owner, begin, end),
        ).fetchone()
        if first is not None:
            ranges.append((first, last))
    return ranges


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
