"""Files of operations and of spans, as others recorded them: Parquet, CSV, JSON lines, OTLP; gzip or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.agent.otlp_spans import is_otlp_json, is_otlp_protobuf, spans_of_json, spans_of_protobuf
from rankscope.errors import RankscopeError
from rankscope.rules.whatif_operations import CHUNKS, OPTIONAL, REQUIRED, OperationsError, check_columns
from rankscope.rules.whatif_spans import Span

Columns = dict[str, NDArray[Any]]

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
#: Uncompressed bytes of one file that are read at most: what is larger is not for one machine's memory.
MAX_BYTES = 4 << 30


@dataclass(slots=True)
class Recorded:
    """What the files hold together: operations by column, or spans."""

    columns: Columns = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)


def read_recorded(paths: Sequence[Path]) -> Recorded:
    """Everything that these files hold, of one kind. Raises RankscopeError where they cannot be read or differ."""
    parts: list[Columns] = []
    spans: list[Span] = []
    for path in paths:
        found = _read(path)
        if isinstance(found, dict):
            parts.append(found)
        else:
            spans += found
    if parts and spans:
        raise RankscopeError("some of these files hold operations and some spans", todo="give one kind at a time")
    return Recorded(_joined(parts) if parts else {}, spans)


def _read(path: Path) -> Columns | list[Span]:
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = unpacked.read(MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RankscopeError(f"cannot be read ({reason})", where=str(path)) from error
    if len(data) > MAX_BYTES:
        raise RankscopeError(f"holds more than {MAX_BYTES} bytes", where=str(path), todo="give fewer steps")
    try:
        if is_otlp_protobuf(data):
            return spans_of_protobuf(data)
        found = _parquet(data) if data.startswith(_PARQUET) else parse_text(data.decode("utf-8"))
        if isinstance(found, dict):
            check_columns(found)
        return found
    except UnicodeDecodeError:
        todo = "expected Parquet, CSV, JSON lines, or OTLP spans as JSON lines or protobuf"
        raise RankscopeError("is of no format that is known here", where=str(path), todo=todo) from None
    except RankscopeError as error:
        where = f"{path}: {error.where}" if error.where else str(path)
        raise type(error)(error.what, where=where, todo=error.todo) from None


def parse_text(text: str) -> Columns | list[Span]:
    """Operations or spans of a text: CSV with a head line, JSON lines, or one JSON array or object."""
    begin = text.lstrip("\ufeff \t\r\n")
    if not begin:
        raise OperationsError("is empty")
    if begin[0] not in "[{":
        return parse_csv(begin)
    documents = _documents(begin)
    if any(is_otlp_json(document) for document in documents):
        return spans_of_json(documents)
    return _table(documents)


def _documents(text: str) -> list[Any]:
    try:
        whole = json.loads(text)
    except ValueError:
        pass
    else:
        return whole if isinstance(whole, list) else [whole]
    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                documents.append(json.loads(line))
            except ValueError as error:
                raise OperationsError(f"is no JSON ({error})", where=f"line {number}") from None
    return documents


def _table(documents: Sequence[Any]) -> Columns:
    """Columns of objects, one an operation; what only some of them have counts as absent there."""
    for number, document in enumerate(documents, 1):
        if not isinstance(document, dict):
            raise OperationsError(f"object {number} is {type(document).__name__}, not an operation with named columns")
    names = list(dict.fromkeys(name for document in documents for name in document))
    if len(documents) == 1 and all(isinstance(value, list) for value in documents[0].values()):
        lengths = {len(value) for value in documents[0].values()}
        if len(lengths) == 1:
            return {name: np.array(values) for name, values in documents[0].items()}
    columns: Columns = {}
    for name in names:
        if name not in REQUIRED + OPTIONAL:
            columns[name] = np.array([], dtype=object)
            continue
        values = [document.get(name) for document in documents]
        if None in values and name not in CHUNKS:
            raise OperationsError(f"has no value in object {values.index(None) + 1}", where=f"column {name}")
        columns[name] = np.array(values, dtype=np.float64 if None in values else None)
    return columns


def parse_csv(text: str) -> Columns:
    """Columns of a CSV with a head line; comma, semicolon or tabulator between."""
    head = text.splitlines()[0]
    separator = max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    except csv.Error as error:
        raise OperationsError(f"is no CSV ({error})") from None
    names = [name.strip() for name in rows[0]]
    if len(names) < len(REQUIRED):
        check_columns(dict.fromkeys(names))
    filled = [row for row in rows[1:] if row]
    for number, row in enumerate(filled, 2):
        if len(row) != len(names):
            raise OperationsError(f"has {len(row)} fields where the head line has {len(names)}", where=f"line {number}")
    values = list(zip(*filled, strict=True)) if filled else [()] * len(names)
    return {name: np.array(column) for name, column in zip(names, values, strict=True)}


def _parquet(data: bytes) -> Columns:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise RankscopeError(
            "is Parquet, which needs pyarrow", todo="pip install 'rankscope[whatif]', or give it as CSV"
        ) from None
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        present = file.schema_arrow.names
        table = file.read(columns=[name for name in REQUIRED + OPTIONAL if name in present])
    except (pa.ArrowException, OSError) as error:
        raise OperationsError(f"is damaged Parquet ({str(error).splitlines()[0]})") from None
    columns: Columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    # The others only lend their names, for a hint at a column that is missing.
    return columns | {name: np.array([], dtype=object) for name in present if name not in columns}


def _joined(parts: Sequence[Columns]) -> Columns:
    """One table; a column that only some files have is left out, unless it is needed."""
    if len(parts) == 1:
        return dict(parts[0])
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
