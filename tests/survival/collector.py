"""An OTLP collector that may be killed, and that behaves as badly as a file tells it to.

    collector.py DIRECTORY PORT

It keeps what it was sent before it says that it has it: each life writes a file of its own, `received.PID`, for each
request its signal, length and body. The file `mode` holds one of MODES.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_HEAD = struct.Struct("<?I")
#: How it may behave; what each keeps of a request, and what it answers.
MODES = {
    "ok": "keeps it, 200",
    "slow": "keeps it, 200 after a second",
    "busy": "keeps nothing, 429 with Retry-After: 1",
    "unavailable": "keeps nothing, 503",
    "reset": "keeps nothing, resets the connection",
    "forgetful": "keeps it, resets the connection: the answer is lost",
    "nonsense": "keeps nothing, answers what is no HTTP",
    "garbage": "keeps it, 200 with a body of noise",
    "discarding": "keeps nothing, 200",
    "partial": "keeps it, 200, and says that one point was rejected",
    "refusing": "keeps nothing, 400",
}
#: ExportMetricsServiceResponse, or that of logs, with partial_success: one rejected.
_ONE_REJECTED = b"\x0a\x02\x08\x01"


def received(directory: Path) -> Iterator[tuple[str, bytes]]:
    """(signal, serialised request) of everything that was kept, repeats too; a torn end was never acknowledged."""
    for path in sorted(directory.glob("received.*")):
        data = path.read_bytes()
        at = 0
        while at + _HEAD.size <= len(data):
            is_logs, length = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + length]
            if len(body) < length:
                break
            yield "logs" if is_logs else "metrics", body
            at += _HEAD.size + length


def rejected(directory: Path) -> int:
    """Points that it said it rejected."""
    return sum(path.stat().st_size for path in directory.glob("rejected.*"))


def _mode(directory: Path) -> str:
    try:
        return (directory / "mode").read_text()
    except FileNotFoundError:
        return "ok"


def serve(directory: Path, port: int) -> None:
    """Listen until killed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    kept = os.open(directory / f"received.{os.getpid()}", flags, 0o600)
    refused = os.open(directory / f"rejected.{os.getpid()}", flags, 0o600)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = zlib.decompress(body, 31)
            mode = _mode(directory)
            if "keeps it" in MODES[mode]:
                os.write(kept, _HEAD.pack(self.path.endswith("logs"), len(body)) + body)
            if mode in ("reset", "forgetful"):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            elif mode == "nonsense":
                self.wfile.write(os.urandom(200))
                self.close_connection = True
            elif mode in ("busy", "unavailable", "refusing"):
                self.answer({"busy": 429, "unavailable": 503, "refusing": 400}[mode])
            elif mode == "partial":
                os.write(refused, b".")
                self.answer(200, _ONE_REJECTED)
            else:
                time.sleep(mode == "slow")
                self.answer(200, os.urandom(50) if mode == "garbage" else b"")

        def answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A sender that was killed."""

    Server(("127.0.0.1", port), Handler).serve_forever(0.02)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
