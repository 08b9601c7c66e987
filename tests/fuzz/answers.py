"""A collector that answers with whatever bytes an input has, and the transport that has to make something of them."""

from __future__ import annotations

import gzip
import math
import socket
import threading
from contextlib import closing
from pathlib import Path

from rankscope.exporters.otlp_http import HttpTransport
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.otlp_transport import Reply
from rankscope.exporters.outbox import WaitingBatch
from rankscope.testing import FakeClock

_BATCH = WaitingBatch(1, "metrics", 0, 3, gzip.compress(b"request"))
#: One socket for the life of the process: a port an input would be many.
_listening: list[socket.socket] = []


def _listener() -> socket.socket:
    if not _listening:
        _listening.append(socket.create_server(("127.0.0.1", 0)))
    return _listening[0]


def _answer(listener: socket.socket, data: bytes) -> None:
    connection, _ = listener.accept()
    with closing(connection):
        connection.settimeout(5)
        try:
            connection.recv(65536)
            connection.sendall(data)
        except OSError:
            # The transport has heard enough.
            return


def read_answer(path: Path) -> str:
    """One request, answered twice at most: a connection that was kept is tried again."""
    listener = _listener()
    (target,) = otlp_targets({}, ["metrics"], endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}").values()
    transport = HttpTransport(target, FakeClock())
    server = threading.Thread(target=_answer, args=(listener, path.read_bytes()))
    server.start()
    try:
        reply = transport.send(_BATCH)
    finally:
        transport.close()
        server.join(10)
    assert isinstance(reply, Reply)
    assert reply.rejected >= 0
    assert len(reply.reason) < 100
    assert len(reply.detail) < 1000
    assert "\n" not in reply.detail
    assert reply.retry_after_s is None or (math.isfinite(reply.retry_after_s) and reply.retry_after_s >= 0)
    return f"{reply.result} {reply.reason} {reply.rejected > 0} {reply.retry_after_s is None} {reply.detail[:24]}"
