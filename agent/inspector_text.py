"""Reading what NCCL's Inspector writes: JSON lines of operations that the profiler plugin timed, gated by version.

The format is that of NVIDIA/nccl, plugins/profiler/inspector (ext-profiler/inspector in NCCL 2.28): json of v4.0
(operations), v4.1 (`dump_stats`), v4.2 (algorithm and protocol) - each line with its own header and metadata - and
v4.3, where those stand once, in the `dump_stats` before a batch. Another version is refused, never guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankscope.rules.timed import TimedOperation

VERSIONS = ("v4.0", "v4.1", "v4.2", "v4.3")
#: The version from which on operations take header and metadata from the `dump_stats` before them.
_BATCHED = "v4.3"
#: A line of an operation takes 200 to 500 bytes, verbose ones of 64 channels some 10 kB.
MAX_LINE_BYTES = 1 << 20
_KINDS = {"coll_perf": "coll", "p2p_perf": "p2p"}
_MAX_TEXT = 256
_LARGEST = 2**62


@dataclass(slots=True)
class Counts:
    """What a file held besides operations that can be used."""

    lines: int = 0
    #: Lines that are no JSON object, or lack what an operation must have.
    damaged: int = 0
    #: Lines of a version that is not known, by version.
    foreign: dict[str, int] = field(default_factory=dict)
    #: Operations without a time: the library could not time them.
    untimed: int = 0
    #: Operations that the library lost before it wrote them.
    dropped: int = 0


class InspectorReader:
    """Turns the bytes of one file, in pieces as they come, into operations."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.versions: set[str] = set()
        self._rest = b""
        self._in_line = False
        self._context: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None

    def feed(self, data: bytes) -> Iterator[TimedOperation]:
        """Operations of the lines that are whole by now."""
        *lines, rest = (self._rest + data).split(b"\n")
        # A line without an end is no line of this format.
        self._rest = rest if len(rest) <= MAX_LINE_BYTES else b""
        if self._in_line and lines:
            del lines[0]
            self._in_line = False
        for line in lines:
            if line.strip():
                self.counts.lines += 1
                if (operation := self._line(line)) is not None:
                    yield operation

    def skipped(self, *, in_line: bool = False) -> None:
        """Some of the file was left out: the line at hand and the batch under way are void.

        With `in_line` what comes next begins in the middle of a line, which is void too.
        """
        self._rest = b""
        self._context = None
        self._in_line = in_line

    def _line(self, line: bytes) -> TimedOperation | None:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return self._damaged()
        if not isinstance(document, dict):
            return self._damaged()
        header, metadata = document.get("header"), document.get("metadata")
        if isinstance(header, dict) and isinstance(metadata, dict):
            version = str(metadata.get("inspector_output_format_version"))[:_MAX_TEXT]
            if version not in VERSIONS:
                self.counts.foreign[version] = self.counts.foreign.get(version, 0) + 1
                self._context = None
                return None
            self.versions.add(version)
        elif self._context is not None:
            header, metadata = self._context
        else:
            return self._damaged()
        if isinstance(stats := document.get("dump_stats"), dict):
            self._context = (header, metadata) if version == _BATCHED else None
            for kind in ("coll", "p2p"):
                self.counts.dropped += _whole(stats, f"{kind}_dropped_since_last_dump") or 0
            return None
        for key, kind in _KINDS.items():
            if isinstance(body := document.get(key), dict):
                return self._operation(kind, header, metadata, body)
        # A trace of the network proxy, say: another kind of record of a version that is known.
        return None

    def _operation(
        self, kind: str, header: Mapping[str, Any], metadata: Mapping[str, Any], body: Mapping[str, Any]
    ) -> TimedOperation | None:
        communicator, operation, host = header.get("id"), body.get(kind), metadata.get("hostname")
        rank, size, pid = _whole(header, "rank"), _whole(header, "n_ranks"), _whole(metadata, "pid")
        sequence, size_bytes = _whole(body, f"{kind}_sn"), _whole(body, f"{kind}_msg_size_bytes")
        written, duration = _whole(metadata, "dump_timestamp_us"), _whole(body, f"{kind}_exec_time_us")
        peer = _whole(body, "p2p_peer") if kind == "p2p" else None
        if not (isinstance(communicator, str) and isinstance(operation, str) and isinstance(host, str)):
            return self._damaged()
        if rank is None or size is None or pid is None or sequence is None or size_bytes is None or written is None:
            return self._damaged()
        if duration is None or rank >= size or (kind == "p2p") != (peer is not None):
            return self._damaged()
        if duration == 0:
            self.counts.untimed += 1
            return None
        moments = body.get("event_trace_ts")
        name = header.get("comm_name")
        return TimedOperation(
            communicator=communicator[:_MAX_TEXT],
            name=name[:_MAX_TEXT] if isinstance(name, str) and name != "unknown" else "",
            rank=rank,
            size=size,
            hosts=_whole(header, "nnodes"),
            operation=operation[:_MAX_TEXT],
            sequence=sequence,
            peer=peer,
            size_bytes=size_bytes,
            duration_us=duration,
            timing=str(body.get(f"{kind}_timing_source", "unknown"))[:_MAX_TEXT],
            written_us=written,
            enqueued_us=_whole(moments, f"{kind}_start_ts") if isinstance(moments, dict) else None,
            host=host[:_MAX_TEXT],
            pid=pid,
        )

    def _damaged(self) -> TimedOperation | None:
        self.counts.damaged += 1
        return None


def _whole(body: Mapping[str, Any], key: str) -> int | None:
    """A count that is not negative, or None."""
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        return None
    return value
