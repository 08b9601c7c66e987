"""Latencies out of streams and logs of any length, in memory that does not grow with them."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from typing import Any

from rankscope.errors import ConfigurationError

#: Seconds in a unit.
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_CHUNK_BYTES = 1 << 20
#: A line longer than this holds no latency that anybody could read.
MAX_LINE_BYTES = 1 << 20
_CUT = b" [cut]"
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([a-zµ]*)\s*$")

#: Text of a latency in a line, or None where the line has none.
Extract = Callable[[str], str | None]


def whole_line() -> Extract:
    """The line is the latency."""
    return lambda line: line or None


def by_pattern(pattern: str) -> Extract:
    """First group of a regular expression. Raises ConfigurationError."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"not a regular expression ({error})", where="--pattern") from error
    if not compiled.groups:
        raise ConfigurationError("has no group", where="--pattern", todo='put the latency in (), as in "took (.*)$"')

    def extract(line: str) -> str | None:
        found = compiled.search(line)
        return found.group(1) if found else None

    return extract


def by_field(name: str) -> Extract:
    """A field of JSON lines (dots go into objects) or of logfmt (`name=12ms`)."""
    logfmt = re.compile(rf'(?:^|[\s,;])"?{re.escape(name)}"?=\s*"?([^"\s,;]+)')
    path = name.split(".")

    def extract(line: str) -> str | None:
        if not line.startswith("{"):
            found = logfmt.search(line)
            return found.group(1) if found else None
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if name in value:
            return _text(value[name])
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return _text(value)

    return extract


def by_column(name: str, header: str, where: str) -> Extract:
    """A column of comma-separated lines under `header`. Raises ConfigurationError where it has no such column."""
    columns = [column.strip() for column in next(csv.reader([header]), [])]
    if name not in columns:
        raise ConfigurationError(f'no column "{name}"; there are {", ".join(columns)}', where=where)
    place = columns.index(name)

    def extract(line: str) -> str | None:
        row = next(csv.reader([line]), [])
        return row[place] if place < len(row) else None

    return extract


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, (bool, dict, list)) else str(value)


class Reader:
    """Turns texts into numbers: seconds where they carry a unit (or `unit` says which), else as they are."""

    def __init__(self, unit: str = "") -> None:
        self._factor = UNITS[unit] if unit else 1.0
        self._told = bool(unit)
        self._bare: bool | None = None
        #: Lines without a latency, and an example of them.
        self.unread = 0
        self.example = ""

    @property
    def unit(self) -> str:
        """Of the numbers given: "s", or "" where none was named."""
        return "s" if self._told or self._bare is False else ""

    def values(self, lines: list[str], extract: Extract, where: str) -> list[float]:
        """The latencies in `lines`; what is not one is counted. Raises ConfigurationError where units are mixed."""
        found = []
        for line in lines:
            text = extract(line)
            match = _NUMBER.match(text) if text is not None else None
            value = self._value(match, where) if match else None
            if value is not None:
                found.append(value)
            elif line:
                self.unread += 1
                self.example = self.example or line[:80]
        return found

    def _value(self, match: re.Match[str], where: str) -> float | None:
        number, unit = float(match.group(1)), match.group(2)
        if unit and unit not in UNITS:
            return None
        if not 0 <= number < float("inf"):
            return None
        if not self._told:
            bare = not unit
            if self._bare is None:
                self._bare = bare
            elif self._bare != bare:
                raise ConfigurationError(
                    "some latencies carry a unit and some do not", where=where, todo="name theirs with --unit"
                )
        return number * (UNITS[unit] if unit else self._factor)


def open_stream(path: Path) -> BufferedIOBase:
    """A file or pipe, or standard input ("-"), gzipped or not. Raises ConfigurationError."""
    try:
        stream = BufferedReader(FileIO(sys.stdin.fileno() if str(path) == "-" else path, closefd=str(path) != "-"))
        gzipped = stream.peek(2)[:2] == b"\x1f\x8b"
    except OSError as error:
        raise ConfigurationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    return gzip.open(stream) if gzipped else stream


def blocks(stream: BufferedIOBase, where: str) -> Iterator[list[str]]:
    """The stream's lines, a megabyte at a time; a line beyond MAX_LINE_BYTES is cut so that it cannot be a number.

    Raises ConfigurationError where the stream breaks off.
    """
    rest, overlong = b"", False
    while True:
        try:
            chunk = stream.read1(_CHUNK_BYTES)
        except (OSError, EOFError) as error:
            raise ConfigurationError(f"breaks off ({error})", where=where) from error
        if not chunk:
            break
        *whole, rest = (rest + chunk).split(b"\n")
        if overlong and whole:
            whole[0], overlong = whole[0][:80] + _CUT, False
        if len(rest) > MAX_LINE_BYTES:
            rest, overlong = rest[:80], True
        yield [line.decode("utf-8", "replace").strip() for line in whole]
    if rest:
        rest += _CUT if overlong else b""
        yield [rest.decode("utf-8", "replace").strip()]
