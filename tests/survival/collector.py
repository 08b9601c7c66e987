"""An OTLP collector that may be killed: keeps what it was sent before it says that it has it.

    collector.py DIRECTORY PORT

Each life writes a file of its own, `received.PID`: for each request its signal, length and body.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_HEAD = struct.Struct("<?I")


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


def serve(directory: Path, port: int) -> None:
    """Listen until killed."""
    kept = os.open(directory / f"received.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = zlib.decompress(body, 31)
            os.write(kept, _HEAD.pack(self.path.endswith("logs"), len(body)) + body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A sender that was killed."""

    Server(("127.0.0.1", port), Handler).serve_forever(0.02)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
