"""OTLP receivers that answer as a test tells them to, over HTTP and gRPC, and keep what they were sent."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord


@dataclass
class Answer:
    """One HTTP answer. status 0 resets the connection unanswered; `hold` is waited for before anything is said."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    #: Close the connection after the answer, without having said so.
    close: bool = False
    #: Send the body a byte at a time, for ever.
    drip: bool = False


@dataclass
class Request:
    """What one request held; `body` after the content encoding is undone."""

    path: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


def partial_success(rejected: int, message: str) -> bytes:
    """A body that rejects some metric points."""
    partial = ExportMetricsPartialSuccess(rejected_data_points=rejected, error_message=message)
    return ExportMetricsServiceResponse(partial_success=partial).SerializeToString()


class HttpReceiver:
    """Answers by script, then by path, then with `otherwise`."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.script: list[Answer] = []
        self.otherwise = Answer()
        self.requests: list[Request] = []
        self.connections = 0
        self.url = ""

    def log_records(self) -> list[LogRecord]:
        """Every log record received on /v1/logs."""
        return [
            record
            for request in self.requests
            if request.path == "/v1/logs"
            for of_resource in ExportLogsServiceRequest.FromString(request.body).resource_logs
            for of_scope in of_resource.scope_logs
            for record in of_scope.log_records
        ]


def _next_answer(receiver: HttpReceiver, path: str) -> Answer:
    return receiver.script.pop(0) if receiver.script else receiver.answers.get(path, receiver.otherwise)


@contextmanager
def http_receiver(port: int = 0, ssl_context: Any = None) -> Iterator[HttpReceiver]:
    """A receiver on the loopback address, until the block ends."""
    receiver = HttpReceiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            receiver.connections += 1
            super().setup()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(raw) if self.headers["Content-Encoding"] == "gzip" else raw
            receiver.requests.append(Request(self.path, dict(self.headers), body, raw))
            answer = _next_answer(receiver, self.path)
            if answer.hold is not None:
                answer.hold.wait(20)
            self.close_connection = answer.close or not answer.status
            if not answer.status:
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) + 10**6 * answer.drip))
            self.end_headers()
            self.wfile.write(answer.body)
            while answer.drip:
                self.wfile.write(b" ")
                time.sleep(0.02)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is what some tests are about."""

    server = Server(("127.0.0.1", port), Handler)
    if ssl_context is not None:
        server.socket = ssl_context.wrap_socket(server.socket, server_side=True)
    receiver.url = f"{'https' if ssl_context else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_receiver(
    answer: Callable[[str, bytes, Any], bytes], *, port: int = 0, credentials: Any = None
) -> Iterator[str]:
    """A gRPC server that gives every call (its method, bytes and context) to `answer`; yields host:port."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: answer(details.method, request, context)
            )

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    if credentials is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    server.start()
    try:
        yield f"localhost:{port}" if credentials else f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
