"""Tables in documents: written between two marks by the benchmark that made them, with what they were made on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Key = tuple[str, ...]


def machine() -> str:
    """The machine, the interpreter and the day, for the line above a table."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"


class Table:
    """What stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a document."""

    def __init__(self, document: Path, name: str) -> None:
        """Ends the program where the document or the marks are missing: before minutes of measuring, not after."""
        self._document = document
        self._begin, self._end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        self._around()

    def merge(
        self, made_on: str, head: Sequence[str], fresh: Mapping[Key, str], order: Callable[[Key], Any], what: str
    ) -> None:
        """Put rows in the place of those whose first cells (the key) are the same, and leave the others.

        Where those were made on something else, the line above says so; `what` names the fresh ones there.
        """
        keys = len(next(iter(fresh)))
        kept = {key: row for key, row in self._rows(keys).items() if key not in fresh}
        before = self._within().strip().partition("\n")[0].partition(" (")[0]
        if kept and before != made_on:
            made_on = f"{made_on} ({what}; the others: {before})"
        rows = kept | dict(fresh)
        self.write("\n".join([made_on, "", *head, *(rows[key] for key in sorted(rows, key=order))]))

    def _rows(self, keys: int) -> dict[Key, str]:
        lines = [line for line in self._within().splitlines() if line.startswith("| ")]
        return {tuple(cell.strip() for cell in line.split("|")[1 : keys + 1]): line for line in lines[1:]}

    def _within(self) -> str:
        head, tail = self._around()
        text = self._document.read_text()
        return text[len(head) + len(self._begin) : len(text) - len(tail) - len(self._end)]

    def _around(self) -> tuple[str, str]:
        try:
            text = self._document.read_text()
        except OSError as error:
            sys.exit(f"{self._document}: {error.strerror}; name a document that has the table")
        head, opened, rest = text.partition(self._begin)
        _, closed, tail = rest.partition(self._end)
        if not (opened and closed):
            sys.exit(f"{self._document}: no {self._begin} with its end; add the two marks where the table belongs")
        return head, tail

    def write(self, text: str) -> None:
        """Replace it."""
        head, tail = self._around()
        self._document.write_text(f"{head}{self._begin}\n{text}\n{self._end}{tail}")
