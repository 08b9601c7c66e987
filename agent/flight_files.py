"""Reading flight-recorder dumps from files: pickles by an unpickler that admits plain types only, or JSON."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rankscope.rules.flight import DumpError, RankFlight, parse_dump, sole_rank

#: A dump of 2,000 entries with stacks takes about 2 MB; buffers of 100,000 are in use.
MAX_BYTES = 512 * 1024 * 1024
_MAX_FILES = 100_000
_NAMED_RANK = re.compile(r"rank[_\-. ]?(\d{1,7})(?!\d)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(\d{1,7})\D*$")
_SUFFIXES = (".gz", ".json", ".pickle", ".pkl", ".bin", ".dump", ".txt")


@dataclass(frozen=True, slots=True)
class DumpFiles:
    """Dumps that were read, and what is to be said of files that were not."""

    dumps: tuple[RankFlight, ...]
    notes: tuple[str, ...]


class _PlainUnpickler(pickle.Unpickler):
    """Admits what a dump consists of: numbers, text, lists, dicts, tuples. A pickle that names any class is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse, whatever the class."""
        raise DumpError(f"a pickle that wants {module[:80]}.{name[:80]}: refused, dumps hold plain types only")

    def persistent_load(self, pid: object) -> NoReturn:  # noqa: ARG002 - pickle gives it
        """Refuse, whatever it refers to."""
        raise DumpError("a pickle with references to the outside: refused, dumps hold plain types only")


def read_dumps(paths: Sequence[Path]) -> DumpFiles:
    """Every dump among files and directories. Raises DumpError where there is none.

    In a directory, what is no dump is passed over, and said; a file that is named has to be one.
    """
    notes: list[str] = []
    found: dict[int, tuple[RankFlight, int]] = {}
    twice: set[Path] = set()
    for path in paths:
        for file, named in _files(path):
            try:
                dump = read_dump(file)
            except DumpError as error:
                if named:
                    raise
                if len(notes) < 50:
                    notes.append(str(error))
                continue
            last = max((operation.created_ns or 0 for operation in dump.operations), default=0)
            if dump.rank in found:
                other = found[dump.rank]
                if file.parent != Path(other[0].source).parent:
                    twice |= {file.parent, Path(other[0].source).parent}
                kept = max((dump, last), other, key=lambda each: each[1])
                notes.append(f"two dumps of rank {dump.rank}: the later one is taken ({kept[0].source})")
                found[dump.rank] = kept
            else:
                found[dump.rank] = (dump, last)
    if not found:
        what = f"no flight-recorder dump in it ({notes[0]})" if notes else "no flight-recorder dump in it"
        todo = "name the files that TORCH_FR_DUMP_TEMP_FILE (or TORCH_NCCL_DEBUG_INFO_TEMP_FILE) had written"
        raise DumpError(what, where=", ".join(map(str, paths))[:300], todo=todo)
    if len(twice) > 1:
        sets = ", ".join(sorted(map(str, twice)))[:300]
        raise DumpError(
            f"dumps of the same ranks in several directories ({sets})", todo="name the directory of one job"
        )
    return DumpFiles(tuple(dump for _, (dump, _) in sorted(found.items())), tuple(notes))


def _files(path: Path) -> list[tuple[Path, bool]]:
    if not path.is_dir():
        return [(path, True)]
    found = [
        Path(directory, name)
        for directory, names, files in os.walk(path, followlinks=False)
        if names.sort() is None
        for name in sorted(files)
        if not name.startswith(".")
    ]
    if len(found) > _MAX_FILES:
        raise DumpError(f"more than {_MAX_FILES} files", where=str(path), todo="name the directory of the dumps")
    return [(file, False) for file in found]


def read_dump(path: Path) -> RankFlight:
    """One file. Raises DumpError: unreadable, cut off, another format, hostile, or of no known rank."""
    document = parse_document(_bytes(path), str(path))
    rank = rank_of(path.name)
    if rank is None:
        rank = sole_rank(document)
    dump = parse_dump(document, -1 if rank is None else rank, str(path))
    if rank is None:
        raise DumpError("neither its name nor its groups say which rank it is of", where=str(path))
    return dump


def rank_of(name: str) -> int | None:
    """The rank in a file's name: `rank_3`, `nccl_trace_rank_3`, `dump-3.pickle`, `comm_lib_trace_rank_3.json.gz`."""
    while name.lower().endswith(_SUFFIXES):
        name = name[: name.rindex(".")]
    found = _NAMED_RANK.findall(name)
    if found:
        return int(found[-1])
    last = _LAST_NUMBER.search(name)
    return int(last[1]) if last else None


def _bytes(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DumpError("not a regular file", where=str(path))
            if found.st_size > MAX_BYTES:
                raise DumpError(f"larger than {MAX_BYTES // 1024**2} MiB: not a dump", where=str(path))
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DumpError(f"cannot be read ({error.strerror})", where=str(path)) from error
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            data = packed.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DumpError(f"not a whole gzip file ({error})", where=str(path)) from error
    if len(data) > MAX_BYTES:
        raise DumpError(f"unpacks to more than {MAX_BYTES // 1024**2} MiB: not a dump", where=str(path))
    return data


def parse_document(data: bytes, where: str = "") -> object:
    """What a dump's bytes hold, as plain types. Raises DumpError."""
    if not data:
        raise DumpError("empty: the rank could not write its dump", where=where)
    head = data[:64].lstrip()
    try:
        if head[:1] in (b"{", b"["):
            return json.loads(data)
        if data[:1] == b"\x80":
            return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except DumpError as error:
        raise DumpError(error.what, where=where) from error
    except RecursionError as error:
        raise DumpError("nested too deeply: not a dump", where=where) from error
    except MemoryError as error:
        raise DumpError("asks for more memory than there is: not a dump", where=where) from error
    # A pickle that is cut off or damaged raises whatever its operations do.
    except Exception as error:
        why = "".join(each if each.isprintable() else "?" for each in str(error)[:120])
        raise DumpError(f"damaged or cut off ({type(error).__name__}: {why})", where=where) from error
    raise DumpError("neither a pickle nor JSON", where=where)
