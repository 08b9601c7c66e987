"""The text of a Kineto trace as a stream: metadata, and the events in pieces of a few megabytes.

A trace is one JSON object whose `traceEvents` may hold millions of events. Each piece handed out is a JSON list of
whole events. Nothing larger than `PIECE_BYTES` plus the largest event is held at a time.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
import numpy as np

from rankscope.errors import TraceError

PIECE_BYTES = 2 * 1024 * 1024
#: No event Kineto writes comes near this; a file whose brackets never close ends here.
EVENT_LIMIT_BYTES = 32 * 1024 * 1024
#: Metadata before and after the events: device properties and log lines.
METADATA_LIMIT_BYTES = 32 * 1024 * 1024
#: Kineto's text packs to a tenth or a thirtieth. A file that unpacks to this many times its size is no trace.
BOMB_RATIO = 400
BOMB_FLOOR_BYTES = 256 * 1024 * 1024
#: A rank's trace of tens of gigabytes is beyond every viewer too.
TEXT_LIMIT_BYTES = 64 * 1024**3
_READ_BYTES = 512 * 1024
_GZIP = b"\x1f\x8b"
_EVENTS = re.compile(rb'"traceEvents"\s*:\s*\[')
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n,"
#: Decode by trial this often before the brackets are counted.
_TRIALS = 3

E = TypeVar("E")
#: What decoding raises for text that is no JSON, or none of the expected form.
NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
#: Decodes a JSON list of events, None where it is not valid.
Decode: TypeAlias = Callable[[bytes], "list[E] | None"]
Piece: TypeAlias = "tuple[bytes, list[E] | None]"


class TraceText:
    """One file, read once from front to end. `metadata` is complete when `pieces` is exhausted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        #: Bytes of text read, after unpacking.
        self.text_bytes = 0
        #: What is wrong with the file though most of it could be read.
        self.notes: list[str] = []

    def pieces(self, decode: Decode[E]) -> Iterator[Piece[E]]:
        """Hand out lists of whole events, as text and as `decode` gives them; None where it cannot.

        Raises TraceError where the file is no trace.
        """
        stream = self._blocks()
        head, buffer = self._head(stream)
        closed = False
        wanted = PIECE_BYTES
        for block in stream:
            buffer += block
            if len(buffer) < wanted:
                continue
            piece, rest, closed = self._cut(buffer, decode)
            # A longer event than expected is not looked for again with every block.
            wanted = PIECE_BYTES if len(rest) < len(buffer) else 2 * len(buffer)
            buffer = rest
            if piece is not None:
                yield piece
            if closed:
                break
            if len(buffer) > EVENT_LIMIT_BYTES:
                raise TraceError(f"an event is larger than {EVENT_LIMIT_BYTES >> 20} MiB", where=str(self.path))
        while not closed:
            piece, rest, closed = self._cut(buffer, decode, exact=True)
            if piece is not None:
                yield piece
            shorter = 0 < len(rest) < len(buffer)
            buffer = rest
            if not shorter:
                break
        if not closed:
            self.notes.append("the file ends in the middle of its events: what was there is analysed")
            self._read_metadata(head, b"}")
            return
        tail = buffer
        for block in stream:
            tail += block
            if len(tail) > METADATA_LIMIT_BYTES:
                self.notes.append("what follows the events is too large and was left unread")
                break
        self._read_metadata(head, tail)

    def _head(self, stream: Iterator[bytes]) -> tuple[bytes, bytes]:
        """The text before the events, and the first of them."""
        buffer = b""
        for block in stream:
            buffer += block
            text = buffer.removeprefix(_MARK).lstrip()
            start = text[:1]
            if start == b"[":
                # The array form of the trace event format: events and nothing else.
                return b"", text[1:]
            if start not in (b"{", b""):
                break
            found = _EVENTS.search(text)
            if found is not None:
                return text[: found.start()], text[found.end() :]
            if len(buffer) > METADATA_LIMIT_BYTES:
                break
        what = "it is empty" if not buffer.strip() else 'it holds no "traceEvents"'
        raise TraceError(
            f"not a profiler trace: {what}", where=str(self.path), todo="give the JSON torch.profiler exports"
        )

    def _cut(self, buffer: bytes, decode: Decode[E], *, exact: bool = False) -> tuple[Piece[E] | None, bytes, bool]:
        """The longest list of whole events at the front, the rest, and whether the array has ended.

        A cut behind a brace is right exactly where the list up to it decodes: a brace inside an event or a string
        leaves something open. Where some trials fail, the brackets are counted instead.
        """
        if not exact:
            place = len(buffer)
            for _ in range(_TRIALS):
                place = buffer.rfind(b"},", 0, place)
                if place < 0:
                    break
                piece = b"[" + buffer[: place + 1].lstrip(_SPACE) + b"]"
                events = decode(piece)
                if events is not None:
                    return (piece, events), buffer[place + 2 :], False
        end, closed = whole_events(buffer)
        body = buffer[:end].lstrip(_SPACE)
        rest = buffer[closed + 1 :] if closed is not None else buffer[end:]
        if not body:
            return None, rest if closed is not None else buffer, closed is not None
        piece = b"[" + body + b"]"
        return (piece, decode(piece)), rest, closed is not None

    def _read_metadata(self, head: bytes, tail: bytes) -> None:
        if not head:
            return
        text = head + b'"traceEvents":[]' + tail
        try:
            found = msgspec.json.decode(repaired(text))
        except NO_JSON:
            try:
                found = msgspec.json.decode(head.rstrip().rstrip(b",") + b"}")
            except NO_JSON:
                self.notes.append("its metadata could not be read")
                return
        if isinstance(found, dict):
            self.metadata = found

    def _blocks(self) -> Iterator[bytes]:
        """The file's text in blocks, unpacked where it is packed, whatever it is called."""
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                first = file.read(_READ_BYTES)
                blocks = iter(lambda: file.read(_READ_BYTES), b"")
                yield from self._unpacked(first, blocks, size) if first[:2] == _GZIP else self._plain(first, blocks)
        except OSError as error:
            raise TraceError(error.strerror or "cannot be read", where=str(self.path)) from None

    def _plain(self, first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
        block = first
        while block:
            self._count(len(block))
            yield block
            block = next(blocks, b"")

    def _unpacked(self, first: bytes, blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
        unpacker = zlib.decompressobj(wbits=31)
        packed = first
        try:
            while packed:
                text = unpacker.decompress(packed, _READ_BYTES * 4)
                self._count(len(text))
                if self.text_bytes > max(BOMB_FLOOR_BYTES, BOMB_RATIO * size):
                    raise TraceError(
                        f"unpacks to more than {BOMB_RATIO} times its size: no profiler writes that",
                        where=str(self.path),
                        todo="unpack it by hand if it is one of yours",
                    )
                if text:
                    yield text
                packed = unpacker.unconsumed_tail
                if unpacker.eof:
                    # Members follow each other where a file was packed in parts.
                    packed = unpacker.unused_data or next(blocks, b"")
                    unpacker = zlib.decompressobj(wbits=31)
                    if packed[:2] != _GZIP:
                        return
                packed = packed or next(blocks, b"")
            rest = unpacker.flush()
            if rest:
                yield rest
            self.notes.append("the packed file is cut off")
        except zlib.error as error:
            if not self.text_bytes:
                raise TraceError(f"cannot be unpacked: {error}", where=str(self.path)) from None
            self.notes.append("the packed file is damaged")

    def _count(self, size: int) -> None:
        self.text_bytes += size
        if self.text_bytes > TEXT_LIMIT_BYTES:
            raise TraceError(f"holds more than {TEXT_LIMIT_BYTES >> 30} GiB of text", where=str(self.path))


def whole_events(buffer: bytes) -> tuple[int, int | None]:
    """End of the last whole event of `buffer`, which begins inside an array, and where that array closes if it does."""
    ends, _, closed = event_spans(buffer)
    return (int(ends[-1]) if len(ends) else 0), closed


def event_spans(buffer: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int | None]:
    """Ends and starts of the objects at the top of `buffer`, which begins inside an array, and where that is closed."""
    if b"\\" in buffer:
        buffer = _ESCAPE.sub(b"__", buffer)
    text = np.frombuffer(buffer, np.uint8)
    inside = np.bitwise_xor.accumulate((text == ord('"')).view(np.uint8))
    places = np.flatnonzero(((text | 0x20) == ord("{")) | ((text | 0x20) == ord("}")))
    places = places[inside[places] == 0]
    marks = text[places]
    # "[" and "{" differ from "]" and "}" by 2, and from each other by 0x20.
    step = np.where((marks | 0x20) == ord("{"), 1, -1)
    depth = np.cumsum(step)
    below = np.flatnonzero(depth < 0)
    closed = None
    if len(below):
        closed = int(places[below[0]])
        places, step, depth = places[: below[0]], step[: below[0]], depth[: below[0]]
    ends = places[(depth == 0) & (step == -1)] + 1
    starts = places[(depth == 1) & (step == 1)]
    return ends, starts[: len(ends)], closed


def repaired(text: bytes) -> bytes:
    """JSON as it should have been: profilers write nan and inf as numbers, and paths and names without escapes."""
    return _TOKEN.sub(_mend, text.decode("utf-8", "replace").encode())


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+]?\b(?:nan|inf|infinity)\b', re.IGNORECASE | re.DOTALL)
_BAD_ESCAPE = re.compile(rb'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|(.))', re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x1f]")


def _mend(found: re.Match[bytes]) -> bytes:
    token = found[0]
    if not token.startswith(b'"'):
        return b"null"
    if b"\\" in token:
        token = _BAD_ESCAPE.sub(lambda escape: escape[0] if escape[1] else b"\\\\" + escape[2], token)
    return _CONTROL.sub(b" ", token)
