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


def write_table(document: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; ends the program where these are missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        head, opened, rest = document.read_text().partition(begin)
    except OSError as error:
        sys.exit(f"{document}: {error.strerror}; name a document that has the table")
    _, closed, tail = rest.partition(end)
    if not (opened and closed):
        sys.exit(f"{document}: no {begin} with its end; add the two marks where the table belongs")
    document.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
