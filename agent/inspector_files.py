"""Reading the directories that NCCL's Inspector leaves: one file a process, plain or gzip, its latest operations."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankscope.agent.inspector_text import VERSIONS, InspectorReader
from rankscope.errors import TraceError
from rankscope.rules.timed import TimedOperation

#: Operations of one process that are compared: the latest ones, some 15 MB.
MAX_OPERATIONS = 50_000
_BLOCK_BYTES = 1 << 20
_SUFFIXES = (".log", ".jsonl", ".log.gz", ".jsonl.gz")
_MAX_FILES = 100_000
_MARK = b'"inspector_output_format_version"'


@dataclass(frozen=True, slots=True)
class InspectorFiles:
    """Operations of all processes, and what is to be said of what was not read."""

    operations: tuple[TimedOperation, ...]
    versions: tuple[str, ...]
    files: int
    notes: tuple[str, ...]


def is_inspector_output(path: Path) -> bool:
    """Whether a file, or one in a directory, begins as the Inspector's do. What cannot be read is none."""
    for file in _files(path):
        try:
            if _MARK in next(_blocks(file), b"")[:65536]:
                return True
        except TraceError:
            continue
    return False


def read_inspector(paths: Sequence[Path]) -> InspectorFiles:
    """Read every file named and those in directories named. Raises TraceError where none holds an operation."""
    operations: list[TimedOperation] = []
    versions: set[str] = set()
    notes: list[str] = []
    foreign: set[str] = set()
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    for file in files:
        reader = InspectorReader()
        kept: deque[TimedOperation] = deque(maxlen=MAX_OPERATIONS)
        seen = 0
        for block in _blocks(file):
            for operation in reader.feed(block):
                seen += 1
                kept.append(operation)
        operations += kept
        versions |= reader.versions
        foreign |= reader.counts.foreign.keys()
        notes += _notes(file, reader, seen)
    if not operations:
        where = ", ".join(map(str, paths))[:300]
        if foreign:
            what = f"written in format {', '.join(sorted(foreign))[:80]}, which is not known"
            raise TraceError(what, where=where, todo=f"known are {', '.join(VERSIONS)}")
        raise TraceError(
            "no operation that NCCL's Inspector timed", where=where, todo="name what NCCL_INSPECTOR_DUMP_DIR names"
        )
    return InspectorFiles(tuple(operations), tuple(sorted(versions)), len(files), tuple(notes))


def _notes(file: Path, reader: InspectorReader, seen: int) -> list[str]:
    counts = reader.counts
    found = [
        (counts.damaged, "lines are damaged"),
        (
            sum(counts.foreign.values()),
            f"lines are of a format that is not known ({', '.join(sorted(counts.foreign))[:80]})",
        ),
        (counts.untimed, "operations have no time"),
        (counts.dropped, "operations were lost by the Inspector before it wrote them"),
        (seen - MAX_OPERATIONS, f"older operations were left out: the latest {MAX_OPERATIONS} are compared"),
    ]
    return [f"{file.name}: {count} {what}" for count, what in found if count > 0]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        found = sorted(each for each in path.iterdir() if each.name.endswith(_SUFFIXES) and each.is_file())
    except OSError as error:
        raise TraceError(error.strerror or "cannot be read", where=str(path)) from None
    if len(found) > _MAX_FILES:
        raise TraceError(f"more than {_MAX_FILES} files", where=str(path))
    return found


def _blocks(path: Path) -> Iterator[bytes]:
    """The file's text, piece by piece. Raises TraceError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TraceError("not a regular file", where=str(path))
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else file as plain:
                while block := plain.read(_BLOCK_BYTES):
                    yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"not a whole gzip file ({error})", where=str(path)) from None
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror})", where=str(path)) from None
