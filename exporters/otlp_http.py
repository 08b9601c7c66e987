"""OTLP over HTTP with the standard library's client: one kept connection, TLS and mTLS, proxies of the environment.

Statuses by https://opentelemetry.io/docs/specs/otlp/#otlphttp-response: 429, 502, 503 and 504 are to be repeated, any
other failure is not. What never became an answer (refused, reset, timed out, a bad certificate) is repeated.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from rankscope.clock import Clock
from rankscope.errors import ConfigurationError
from rankscope.exporters.otlp_proxy import proxy_for
from rankscope.exporters.otlp_settings import Target
from rankscope.exporters.otlp_transport import Reply, Result, delivered, one_line
from rankscope.exporters.outbox import Signal, WaitingBatch

_RETRYABLE = frozenset({429, 502, 503, 504})
#: Bytes of an answer that are read: a partial success is far smaller.
_MAX_ANSWER_BYTES = 64 * 1024


class HttpTransport:
    """Sends to one URL."""

    def __init__(self, target: Target, clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._context = tls_context(target) if target.tls else None
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._proxy = proxy_for(target)
        self._headers = {
            **dict(target.headers),
            "Content-Type": "application/x-protobuf",
            "User-Agent": "rankscope",
        }
        if target.gzip:
            self._headers["Content-Encoding"] = "gzip"
        #: Until when an answer may take, on time.monotonic().
        self._until_s = 0.0

    def send(self, batch: WaitingBatch) -> Reply:
        """Deliver one batch."""
        self._until_s = time.monotonic() + self._target.timeout_s
        try:
            return self._exchange(batch)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError is http.client's for a chunk of less than no bytes.
            self.close()
            return Reply(Result.RETRY, detail=self._why(error))

    def _exchange(self, batch: WaitingBatch) -> Reply:
        body = batch.compressed if self._target.gzip else batch.payload()
        kept = self._connection is not None
        try:
            response = self._request(body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not kept:
                raise
            # A connection kept since the last batch may have been closed for its idleness: that says nothing yet.
            self.close()
            response = self._request(body)
        answer = response.read(_MAX_ANSWER_BYTES)
        if response.length and len(answer) < _MAX_ANSWER_BYTES:
            raise http.client.IncompleteRead(answer, response.length)
        if response.will_close or response.read(1):
            self.close()
        return self._reply(batch, response, answer)

    def _request(self, body: bytes) -> http.client.HTTPResponse:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        else:
            connection.sock.settimeout(self._target.timeout_s)
        url = self._target.path
        if self._proxy and not self._target.tls:
            url = f"http://{self._target.authority}{url}"
        connection.request("POST", url, body, self._headers)
        return connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        target = self._target
        host, port, proxy_headers = self._proxy or (target.host, target.port, {})
        connection: http.client.HTTPConnection
        if self._context is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=target.timeout_s, context=self._context)
            if self._proxy:
                connection.set_tunnel(target.host, target.port, headers=proxy_headers)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=target.timeout_s)
            self._headers |= proxy_headers
        connection.connect()
        # The socket's own timeout is per read: a receiver that drips bytes would pass it for ever.
        connection.response_class = functools.partial(_TimedResponse, lambda: self._until_s)  # type: ignore[assignment]
        self._socket = connection.sock
        return connection

    def _reply(self, batch: WaitingBatch, response: http.client.HTTPResponse, answer: bytes) -> Reply:
        if 200 <= response.status < 300:
            return delivered(Signal(batch.signal), answer)
        reason = f"HTTP {response.status}"
        detail = one_line(f"{reason} {response.reason}: {_error_text(response, answer)}").rstrip(": ")
        if response.status in _RETRYABLE:
            return Reply(Result.RETRY, reason, detail, retry_after_s=self._retry_after_s(response))
        return Reply(Result.REFUSED, reason, detail)

    def _retry_after_s(self, response: http.client.HTTPResponse) -> float | None:
        """Retry-After, which is seconds or a date; None where there is none that can be read."""
        text = response.headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        # A date without a zone is GMT.
        seconds = date.replace(tzinfo=date.tzinfo or UTC).timestamp() - self._clock.wall_ns() * 1e-9
        return max(0.0, seconds)

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._target.timeout_s:g} s"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate does not hold: {error.verify_message}"
        if isinstance(error, OSError):
            return one_line(error.strerror or str(error) or type(error).__name__)
        return one_line(f"not an answer in HTTP ({type(error).__name__})")

    def abort(self) -> None:
        """Make a `send` under way return soon."""
        connected = self._socket
        if connected is not None:
            try:
                # Of the plain socket: an SSL socket's own shutdown would pull its state from under the reader.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """Close the connection; the next `send` makes another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._socket = None


class _TimedResponse(http.client.HTTPResponse):
    """An answer that has to be whole by a moment of time.monotonic(), however many reads it takes."""

    def __init__(self, until_s: Callable[[], float], connected: socket.socket, *args: Any, **named: Any) -> None:
        super().__init__(connected, *args, **named)
        # http.client's own is a buffer over the socket too, which the response closes.
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(connected, until_s))


class _TimedReader(io.RawIOBase):
    """Reads a socket until a moment. Closing it leaves the socket alone."""

    def __init__(self, connected: socket.socket, until_s: Callable[[], float]) -> None:
        self._connected = connected
        self._until_s = until_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._until_s() - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._connected.settimeout(left_s)
        return self._connected.recv_into(buffer)


def tls_context(target: Target) -> ssl.SSLContext:
    """The target's certificates, read and checked; raises ConfigurationError."""
    try:
        context = ssl.create_default_context(cafile=target.certificate)
    except OSError as error:
        raise _unusable_pem("certificate", str(target.certificate), error) from error
    try:
        if target.client_certificate is not None:
            context.load_cert_chain(target.client_certificate, target.client_key)
    except OSError as error:
        raise _unusable_pem("client certificate and key", str(target.client_certificate), error) from error
    return context


def _unusable_pem(what: str, where: str, error: OSError) -> ConfigurationError:
    reason = getattr(error, "reason", None) or error.strerror or "unreadable"
    return ConfigurationError(f"the {what} cannot be used ({reason})", where=where, todo="give files in PEM")


def _error_text(response: http.client.HTTPResponse, answer: bytes) -> str:
    """The message of a failure: a google.rpc.Status in protobuf, or text."""
    if location := response.headers.get("Location"):
        return f"redirects to {location} are not followed; set the endpoint to where it leads"
    if "protobuf" in response.headers.get("Content-Type", ""):
        from google.protobuf.message import DecodeError
        from google.rpc.status_pb2 import Status

        try:
            return str(Status.FromString(answer).message)
        except DecodeError:
            return ""
    return answer.decode("utf-8", "replace")
