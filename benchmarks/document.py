"""Tables in documents: written between two marks by the benchmark that made them, with what they were made on."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path


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
