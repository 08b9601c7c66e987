"""Recordings as inputs: a database as it is, or a script of changes to a committed one, which is small and can be read.

-- recording/base.db
UPDATE OR REPLACE marks SET step = NULL WHERE (rowid) IN (SELECT rowid FROM marks LIMIT 1 OFFSET 3)
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fuzz.engine import CORPUS
from fuzz.mutate import NUMBERS, mutated

_MARK = b"-- "
#: What no writer of ours puts there, as SQL.
_VALUES = (
    *(str(number) for number in NUMBERS if -(2**63) <= number < 2**63),
    "NULL",
    "1e308",
    "-1e308",
    "9e999",
    "0.5",
    "''",
    "'text'",
    "'12'",
    "'nan'",
    "x'00ff'",
    "'{}'",
    "'[]'",
    "'null'",
    "'[1, \"a\", null]'",
    '\'{"count": "a", "pid": [1], "number": 1e999, "begin_ns": {}}\'',
    '\'{"pid": NaN, "step": -1, "source": null, "signal": "9"}\'',
    "'" + "[" * 2000 + "'",
    "printf('%.*c', 100000, 'a')",
    "zeroblob(1000000)",
    "char(0) || char(27) || char(0x202e) || '<script>'",
)


def placed(path: Path) -> Path:
    """The recording that an input is, beside it."""
    data, made = path.read_bytes(), path.with_name("a.db")
    if not data.startswith(_MARK):
        made.write_bytes(data)
        return made
    first, *statements = data.decode().splitlines()
    made.write_bytes((CORPUS / first.removeprefix("-- ")).read_bytes())
    connection = sqlite3.connect(made, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")
        for statement in statements:
            try:
                connection.execute(statement)
            except sqlite3.Error:
                # Two changes may exclude each other.
                continue
    finally:
        connection.close()
    return made


@cache
def _tables(base: str) -> dict[str, tuple[list[str], list[str], int]]:
    """Table -> columns, columns of its key, rows."""
    connection = sqlite3.connect(CORPUS / base)
    found = {}
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        info = connection.execute(f"PRAGMA table_info({table})").fetchall()
        key = [name for _, name, *_, place in info if place] or ["rowid"]
        (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        found[table] = ([name for _, name, *_ in info], key, rows)
    connection.close()
    return found


def _statement(draw: random.Random, base: str) -> str:
    tables = {name: of for name, of in _tables(base).items() if of[2]}
    table = draw.choice(list(tables))
    columns, key, rows = tables[table]
    keys = ", ".join(key)
    some = f"LIMIT {draw.choice((1, 1, 3, 1000))} OFFSET {draw.randrange(rows)}"
    where = f"WHERE ({keys}) IN (SELECT {keys} FROM {table} {some})"
    match draw.randrange(12):
        case 0:
            return f"DELETE FROM {table} {where}"
        case 1:
            return f"DROP TABLE {table}" if draw.randrange(4) == 0 else f"DELETE FROM {table}"
        case 2:
            return (
                f"ALTER TABLE {table} RENAME COLUMN {draw.choice(columns)} TO other" if draw.randrange(4) == 0 else ""
            )
        case 3 if table == "meta":
            return f"UPDATE meta SET value = {draw.choice(_VALUES)}"
        case _:
            return f"UPDATE OR REPLACE {table} SET {draw.choice(columns)} = {draw.choice(_VALUES)} {where}"


def mutated_recording(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to the file, or changes to what stands in it."""
    if data.startswith(_MARK):
        first, *statements = data.decode().splitlines()
    elif draw.randrange(2):
        return mutated(draw, data, [other for other in others if not other.startswith(_MARK)])
    else:
        base = next(
            path for path in sorted(CORPUS.glob("*/*.db")) if path.read_bytes() == data or path.name == "base.db"
        )
        first, statements = f"-- {base.relative_to(CORPUS)}", []
    base_name = first.removeprefix("-- ")
    for _ in range(draw.randrange(1, 4)):
        if statements and draw.randrange(3) == 0:
            del statements[draw.randrange(len(statements))]
        else:
            statements.append(_statement(draw, base_name))
    return "\n".join([first, *(each for each in statements[-12:] if each)]).encode()
