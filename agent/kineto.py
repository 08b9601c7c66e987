"""Read a Kineto trace (`torch.profiler`, plain or gzip) into columns: memory follows the events, not the text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from rankscope.agent.kineto_text import NO_JSON, TraceText, event_spans, repaired
from rankscope.rules.trace.events import (
    NONE,
    NS_PER_US,
    CallTable,
    DeviceTable,
    HostTable,
    IntArray,
    Kind,
    Message,
    OperatorTable,
    Trace,
    step_number,
)

#: Categories of what a device does; old profilers wrote `Kernel`, `Memcpy`, `Memset`.
_DEVICE = {
    "kernel": Kind.KERNEL,
    "mtia_ccp_events": Kind.KERNEL,
    "gpu_memcpy": Kind.COPY,
    "memcpy": Kind.COPY,
    "gpu_memset": Kind.SET,
    "memset": Kind.SET,
    "cuda_sync": Kind.SYNC,
    "xpu_sync": Kind.SYNC,
}
_CALLS = frozenset(
    {"cuda_runtime", "cuda_driver", "runtime", "driver", "hip_runtime", "hip_driver", "xpu_runtime", "xpu_driver"}
    | {"mtia_runtime", "privateuse1_runtime", "privateuse1_driver"}
)
_OPERATORS = frozenset({"cpu_op", "operator", "user_annotation", "cpu_instant_event"})
_FRAMES = frozenset({"python_function"})
_DEVICE_STEPS = frozenset({"gpu_user_annotation"})
#: Kernels of templates have names of kilobytes, and a trace names some hundred of them; beyond this names share one.
_NAMES_LIMIT_BYTES = 64 * 1024 * 1024
_OTHER_NAMES = "(other names)"
#: ns of a step of events that are told in milliseconds or less would overflow the columns beyond this.
_LATEST_US = 2.0**62 / NS_PER_US
_RANK_IN_NAME = re.compile(r"rank[-_ ]?(\d{1,6})", re.IGNORECASE)

#: Columns of a piece.
_Rows: TypeAlias = "list[np.ndarray[Any, Any]]"
Number = int | float | str | None


class _Args(msgspec.Struct, gc=False):
    stream: Number = None
    device: Number = None
    correlation: Number = None
    bytes: Number = None
    collective: str | None = msgspec.field(name="Collective name", default=None)
    group: str | None = msgspec.field(name="Process Group Name", default=None)
    description: str | None = msgspec.field(name="Process Group Description", default=None)
    ranks: str | None = msgspec.field(name="Process Group Ranks", default=None)
    size: Number = msgspec.field(name="Group size", default=None)
    dtype: str | None = None
    elements_in: Number = msgspec.field(name="In msg nelems", default=None)
    elements_out: Number = msgspec.field(name="Out msg nelems", default=None)
    sequence: Number = msgspec.field(name="Seq", default=None)
    autograd: Number = msgspec.field(name="Sequence number", default=None)


class _Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    tid: int | float | str = 0
    pid: int | float | str = 0
    ts: float = math.nan
    dur: float = math.nan
    args: _Args | None = None


_NO_ARGS = _Args()
_ALL = msgspec.json.Decoder(list[_Event])
_ONE = msgspec.json.Decoder(_Event)


@dataclass
class ReadTrace:
    """A trace and how its reading went."""

    path: Path
    trace: Trace
    #: "metadata", "file name", or "" where neither tells the rank.
    rank_from: str
    metadata: dict[str, Any]
    events: int
    #: Events that could not be understood.
    skipped: int
    text_bytes: int
    notes: list[str] = field(default_factory=list)


def read_trace(path: Path) -> ReadTrace:
    """Read one file. Raises TraceError where it cannot be read or is no trace; what is odd in it is noted."""
    text = TraceText(path)
    columns = _Columns()
    for piece, events in text.pieces(_decode):
        columns.add(events if events is not None else _one_by_one(piece, columns))
    rank, rank_from = _rank(text.metadata, path)
    trace = columns.trace(rank, _whole(_distributed(text.metadata).get("world_size")), _base_ns(text.metadata))
    notes = list(text.notes)
    if columns.skipped:
        notes.append(f"{columns.skipped} events could not be understood and were left out")
    if columns.named_other:
        notes.append("it holds more names than are kept apart")
    return ReadTrace(path, trace, rank_from, text.metadata, columns.seen, columns.skipped, text.text_bytes, notes)


def _decode(piece: bytes) -> list[_Event] | None:
    try:
        return _ALL.decode(piece)
    except NO_JSON:
        return None


def _one_by_one(piece: bytes, columns: _Columns) -> Iterable[_Event]:
    """The events of a piece that does not decode as a whole: each by itself, mended where that helps, else left out."""
    body = piece[1:]
    ends, starts, _ = event_spans(body)
    for start, end in zip(starts, ends, strict=True):
        text = body[start:end]
        try:
            event = _ONE.decode(text)
        except NO_JSON:
            try:
                event = msgspec.convert(_plain(msgspec.json.decode(repaired(text))), _Event, strict=False)
            except NO_JSON:
                columns.skipped += 1
                continue
        yield event


def _plain(event: Any) -> Any:
    """An event without the fields and arguments that are null: a default says the same."""
    if not isinstance(event, dict):
        return event
    kept = {key: value for key, value in event.items() if value is not None}
    args = kept.get("args")
    if isinstance(args, dict):
        kept["args"] = {
            key: value if isinstance(value, int | float | str) else str(value)
            for key, value in args.items()
            if value is not None
        }
    else:
        kept.pop("args", None)
    return kept


_HOST_TYPES = (np.int64, np.int64, np.int32, np.int32, np.int32)
_CALL_TYPES = (*_HOST_TYPES, np.int64)
_OPERATOR_TYPES = (*_HOST_TYPES, np.int32)
_DEVICE_TYPES = (np.int64, np.int64, np.int32, np.int32, np.int64, np.int8, np.int64, np.int64, np.int32)


class _Growing:
    """Columns that grow: what is reserved and not yet written takes no memory."""

    def __init__(self, types: Sequence[type]) -> None:
        self._columns: _Rows = [np.empty(1024, each) for each in types]
        self._length = 0

    def extend(self, rows: _Rows) -> None:
        """Add a piece's rows."""
        length = self._length + len(rows[0])
        for index, values in enumerate(rows):
            column = self._columns[index]
            if length > len(column):
                self._columns[index] = np.empty(max(length, 2 * len(column)), column.dtype)
                self._columns[index][: self._length] = column[: self._length]
            self._columns[index][self._length : length] = values
        self._length = length

    def columns(self) -> _Rows:
        """The columns as far as they are filled."""
        return [column[: self._length] for column in self._columns]


class _Columns:
    """Collects events piece by piece; what is kept of one is a few integers."""

    def __init__(self) -> None:
        self.seen = 0
        self.skipped = 0
        self.named_other = False
        self._names: dict[str, int] = {}
        self._names_bytes = 0
        self._threads: dict[object, int] = {}
        self._messages: dict[Message, int] = {}
        self._device = _Growing(_DEVICE_TYPES)
        self._host = {
            "calls": _Growing(_CALL_TYPES),
            "operators": _Growing(_OPERATOR_TYPES),
            "frames": _Growing(_HOST_TYPES),
        }
        self._device_steps_us: dict[int, float] = {}
        self._zero_us: float | None = None

    def add(self, events: Iterable[_Event]) -> None:
        """Take the complete events of a piece; others (flows, counters, metadata) say nothing that is used here."""
        device, rows = [], {"calls": [], "operators": [], "frames": []}  # type: ignore[var-annotated]
        seen = 0
        for event in events:
            seen += 1
            if event.ph != "X":
                continue
            place = _PLACES.get(event.cat)
            if place is None:
                place = _PLACES.get(event.cat.lower(), "")
            if place == "":
                # Another accelerator's runtime: what has a correlation and is no device's launches something.
                if event.args is None or _integer(event.args.correlation) < 1:
                    continue
                place = "calls"
            # Not a number compares as neither.
            if not (abs(event.ts) < _LATEST_US and -1 <= event.dur < _LATEST_US):
                self.skipped += 1
            elif place == "device":
                device.append(event)
            elif place == "device_steps":
                self._device_step(event)
            else:
                rows[place].append(event)
                if place == "operators" and event.args is not None and event.args.correlation is not None:
                    # An accelerator whose launches are operators.
                    rows["calls"].append(event)
        self.seen += seen
        if device:
            self._device.extend(self._device_rows(device))
        for place, found in rows.items():
            if found:
                self._host[place].extend(self._host_rows(found, place))

    def _device_rows(self, events: list[_Event]) -> _Rows:
        args = [event.args or _NO_ARGS for event in events]
        pairs = list(zip(args, events, strict=True))
        return [
            *self._times(events),
            np.array([self._name(event.name) for event in events], np.int32),
            np.array([_small(event.pid if each.device is None else each.device) for each, event in pairs], np.int32),
            np.array([_integer(event.tid if each.stream is None else each.stream) for each, event in pairs], np.int64),
            np.array([_DEVICE[event.cat.lower()] for event in events], np.int8),
            np.array([_integer(each.correlation) for each in args], np.int64),
            np.array([_integer(each.bytes) for each in args], np.int64),
            np.array([self._message(each) for each in args], np.int32),
        ]

    def _host_rows(self, events: list[_Event], place: str) -> _Rows:
        args = [event.args or _NO_ARGS for event in events]
        rows: _Rows = [
            *self._times(events),
            np.array([self._name(event.name) for event in events], np.int32),
            np.array([self._thread(event.pid, event.tid) for event in events], np.int32),
            np.array([self._message(each) for each in args], np.int32),
        ]
        if place == "calls":
            rows.append(np.array([_integer(each.correlation) for each in args], np.int64))
        elif place == "operators":
            rows.append(np.array([_small(each.autograd) for each in args], np.int32))
        return rows

    def _times(self, events: list[_Event]) -> tuple[IntArray, IntArray]:
        ts = np.array([event.ts for event in events])
        if self._zero_us is None:
            # Whole numbers, so that fractions stay as exact as the file has them.
            self._zero_us = math.floor(float(ts.min()))
        start = np.round((ts - self._zero_us) * NS_PER_US).astype(np.int64)
        took = np.round(np.array([event.dur for event in events]) * NS_PER_US).astype(np.int64)
        return start, start + np.maximum(took, 0)

    def _name(self, name: str) -> int:
        found = self._names.get(name)
        if found is None:
            if self._names_bytes > _NAMES_LIMIT_BYTES:
                self.named_other = True
                name = _OTHER_NAMES
            self._names_bytes += len(name)
            found = self._names.setdefault(name, len(self._names))
        return found

    def _thread(self, process: object, thread: object) -> int:
        key = (process, thread)
        found = self._threads.get(key)
        return self._threads.setdefault(key, len(self._threads)) if found is None else found

    def _message(self, args: _Args) -> int:
        if args.collective is None and args.group is None:
            return NONE
        message = Message(
            collective=args.collective,
            group=args.group,
            description=args.description,
            ranks=args.ranks,
            size=_whole(args.size),
            dtype=args.dtype,
            elements_in=_whole(args.elements_in),
            elements_out=_whole(args.elements_out),
            sequence=_whole(args.sequence),
        )
        return self._messages.setdefault(message, len(self._messages))

    def _device_step(self, event: _Event) -> None:
        number = step_number(event.name)
        if number is not None:
            self._device_steps_us[number] = max(event.ts, self._device_steps_us.get(number, event.ts))

    def trace(self, rank: int, world_size: int | None, base_ns: int | None) -> Trace:
        """Everything that was taken."""
        zero = int(self._zero_us or 0)
        return Trace(
            names=tuple(self._names),
            device=DeviceTable(*self._device.columns()),
            calls=CallTable(*self._host["calls"].columns()),
            operators=OperatorTable(*self._host["operators"].columns()),
            frames=HostTable(*self._host["frames"].columns()),
            messages=tuple(self._messages),
            device_steps={number: round((start - zero) * NS_PER_US) for number, start in self._device_steps_us.items()},
            rank=rank,
            world_size=world_size,
            zero_us=zero,
            base_ns=None if base_ns is None else base_ns + zero * NS_PER_US,
        )


_PLACES = {
    **dict.fromkeys(_DEVICE, "device"),
    **dict.fromkeys(_CALLS, "calls"),
    **dict.fromkeys(_OPERATORS, "operators"),
    **dict.fromkeys(_FRAMES, "frames"),
    **dict.fromkeys(_DEVICE_STEPS, "device_steps"),
}


def _integer(value: Number) -> int:
    """An integer of the file, or NONE for whatever is none."""
    if type(value) is int:
        return value if -(2**62) < value < 2**62 else NONE
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**62 else NONE
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value.strip()):
        return int(value)
    return NONE


def _small(value: Number) -> int:
    """The same in 32 bits."""
    found = _integer(value)
    return found if abs(found) < 2**31 else NONE


def _whole(value: Any) -> int | None:
    found = _integer(value)
    return None if found == NONE else found


def _distributed(metadata: dict[str, Any]) -> dict[str, Any]:
    found = metadata.get("distributedInfo")
    return found if isinstance(found, dict) else {}


def _rank(metadata: dict[str, Any], path: Path) -> tuple[int, str]:
    rank = _whole(_distributed(metadata).get("rank"))
    if rank is not None and rank >= 0:
        return rank, "metadata"
    found = _RANK_IN_NAME.search(path.name)
    return (int(found[1]), "file name") if found else (0, "")


def _base_ns(metadata: dict[str, Any]) -> int | None:
    return _whole(metadata.get("baseTimeNanoseconds"))
