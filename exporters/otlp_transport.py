"""What a receiver answered, whatever the protocol, and the choice of the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from rankscope.clock import Clock
from rankscope.exporters.otlp_settings import OtlpProtocol, Target
from rankscope.exporters.outbox import Signal, WaitingBatch


class Result(StrEnum):
    """What becomes of the batch."""

    DELIVERED = "delivered"
    #: No answer, or one that says later: the batch waits.
    RETRY = "retry"
    #: An answer that says never: the batch is dropped.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `reason` is one of few (the accounts are kept by it), `detail` what a person should read."""

    result: Result
    reason: str = ""
    detail: str = ""
    #: Points of a delivered batch that the receiver did not take.
    rejected: int = 0
    #: How long the receiver wants to be left alone.
    retry_after_s: float | None = None


class Transport(Protocol):
    """One way to one receiver. Raises nothing for what a network or a receiver can do."""

    def send(self, batch: WaitingBatch) -> Reply:
        """Deliver one batch; returns within the target's timeout."""
        ...

    def abort(self) -> None:
        """Make a `send` under way return soon. Called from another thread."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


def check_target(target: Target) -> None:
    """Look at what a transport would use, before anything begins; raises ConfigurationError."""
    from rankscope.exporters.otlp_http import tls_context
    from rankscope.exporters.otlp_proxy import proxy_for

    if target.tls:
        tls_context(target)
    if target.protocol is OtlpProtocol.HTTP:
        proxy_for(target)


def open_transport(target: Target, clock: Clock) -> Transport:
    """The transport of the target's protocol; imports what it needs. Raises ConfigurationError."""
    if target.protocol is OtlpProtocol.GRPC:
        from rankscope.exporters.otlp_grpc import GrpcTransport

        return GrpcTransport(target)
    from rankscope.exporters.otlp_http import HttpTransport

    return HttpTransport(target, clock)


def delivered(signal: Signal, body: bytes) -> Reply:
    """The reply in the body of a success: what was rejected of it, if anything.

    A body that cannot be read is a success all the same: the status said so.
    """
    if not body:
        return Reply(Result.DELIVERED)
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        if signal is Signal.METRICS:
            metrics = ExportMetricsServiceResponse.FromString(body).partial_success
            rejected, message = metrics.rejected_data_points, metrics.error_message
        elif signal is Signal.TRACES:
            traces = ExportTraceServiceResponse.FromString(body).partial_success
            rejected, message = traces.rejected_spans, traces.error_message
        else:
            logs = ExportLogsServiceResponse.FromString(body).partial_success
            rejected, message = logs.rejected_log_records, logs.error_message
    except DecodeError:
        rejected, message = 0, ""
    return Reply(Result.DELIVERED, "rejected by the receiver", one_line(message), max(0, rejected))


def one_line(text: str, limit: int = 200) -> str:
    """Text of a stranger, fit for one line of ours."""
    shown = " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * limit]).split())
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
