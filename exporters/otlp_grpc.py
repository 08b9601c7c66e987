"""OTLP over gRPC: the serialised request is sent as it is, with no second encoding.

Codes by https://opentelemetry.io/docs/specs/otlp/#failures: RESOURCE_EXHAUSTED is to be repeated only where the
receiver says when (RetryInfo), the others listed below always, the rest never.
"""

from __future__ import annotations

from typing import Any

import grpc

from rankscope.errors import ConfigurationError
from rankscope.exporters.otlp_http import tls_context
from rankscope.exporters.otlp_settings import Target
from rankscope.exporters.otlp_transport import Reply, Result, delivered, one_line
from rankscope.exporters.outbox import Signal, WaitingBatch

_RETRYABLE = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_METHODS = {
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
}
# Repeats are ours: the outbox counts them, and another layer's would hide an outage.
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.primary_user_agent", "rankscope"))


class GrpcTransport:
    """Calls one receiver."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._credentials = _credentials(target) if target.tls else None
        self._metadata = tuple((key.lower(), value) for key, value in target.headers)
        self._channel: Any = None
        self._call: Any = None

    def send(self, batch: WaitingBatch) -> Reply:
        """Deliver one batch."""
        signal = Signal(batch.signal)
        if self._channel is None:
            self._channel = self._open()
        # No serialisers: bytes in, bytes out.
        method = self._channel.unary_unary(_METHODS[signal])
        self._call = method.future(batch.payload(), timeout=self._target.timeout_s, metadata=self._metadata)
        try:
            return delivered(signal, self._call.result())
        except grpc.FutureCancelledError:
            return Reply(Result.RETRY, detail="given up")
        except grpc.RpcError as error:
            return self._failure(error)

    def _failure(self, error: Any) -> Reply:
        code = error.code()
        reason = f"gRPC {code.name}"
        retry_after_s = _retry_after_s(error.trailing_metadata() or ())
        detail = one_line(f"{reason}: {error.details() or ''}").rstrip(": ")
        if code is grpc.StatusCode.UNAVAILABLE:
            # A channel waits longer after each failure before it connects again; a new one tries at once.
            self.close()
        if code in _RETRYABLE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after_s is not None):
            return Reply(Result.RETRY, reason, detail, retry_after_s=retry_after_s)
        return Reply(Result.REFUSED, reason, detail)

    def _open(self) -> Any:
        compression = grpc.Compression.Gzip if self._target.gzip else grpc.Compression.NoCompression
        if self._credentials is None:
            return grpc.insecure_channel(self._target.authority, options=_OPTIONS, compression=compression)
        return grpc.secure_channel(self._target.authority, self._credentials, options=_OPTIONS, compression=compression)

    def abort(self) -> None:
        """Make a `send` under way return soon."""
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """Close the channel; the next `send` opens another."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None


def _credentials(target: Target) -> Any:
    # gRPC says of a bad file no more than that the handshake failed: let TLS check them first.
    tls_context(target)

    def read(path: Any) -> bytes | None:
        return None if path is None else path.read_bytes()

    try:
        return grpc.ssl_channel_credentials(
            read(target.certificate),
            read(target.client_key or target.client_certificate),
            read(target.client_certificate),
        )
    except OSError as error:
        raise ConfigurationError(f"cannot be read ({error.strerror})", where=str(error.filename)) from error


def _retry_after_s(metadata: Any) -> float | None:
    """The delay in RetryInfo, which travels in the details of the status."""
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    for key, value in metadata:
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return max(0.0, float(info.retry_delay.ToNanoseconds()) * 1e-9)
        except DecodeError:
            return None
    return None
