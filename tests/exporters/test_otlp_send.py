"""Delivery against receivers that follow a script: what is repeated, what is given up, how long is waited."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import components
import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from scripted_receiver import Answer, HttpReceiver, grpc_receiver, http_receiver, partial_success

from rankscope.exporters.otlp_send import Backoff, DeliveryState, SignalSender
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.otlp_transport import open_transport
from rankscope.exporters.outbox import Drop, Outbox, Signal

SECOND_NS = 1_000_000_000


class FakeClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000 * SECOND_NS + self.now_ns

    def asleep_ns(self) -> int:
        return 0


@dataclass
class Bench:
    """A sender with an outbox and a clock of its own."""

    sender: SignalSender
    outbox: Outbox
    clock: FakeClock
    lines: list[str] = field(default_factory=list)

    def add(self, *payloads: bytes, points: int = 10) -> None:
        for payload in payloads:
            self.outbox.add("metrics", payload, points, 1)

    def wait_out(self) -> None:
        """Let the back-off pass."""
        self.clock.now_ns += 3600 * SECOND_NS


@contextmanager
def bench(endpoint: str, **settings: str) -> Iterator[Bench]:
    """A bench whose chance is always the most: delays come out whole."""
    settings = {"endpoint": endpoint, "timeout": "10000", **settings}
    connection = sqlite3.connect(":memory:", isolation_level=None)
    clock, outbox, lines = FakeClock(), Outbox(connection), list[str]()
    sender = SignalSender(
        outbox,
        otlp_targets({}, **settings)[Signal.METRICS],
        open_transport,
        clock=clock,
        uniform=lambda low, high: high,
        say=lines.append,
        backoff=Backoff(),
    )
    yield Bench(sender, outbox, clock, lines)
    sender.close()
    connection.close()


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    """An HTTP receiver for one test."""
    with http_receiver() as running:
        yield running


def test_batches_arrive_in_order_over_one_connection(receiver: HttpReceiver) -> None:
    """Path, content type and headers are right; bodies come in order and unchanged."""
    with bench(receiver.url, headers="x-tenant=a") as desk:
        desk.add(b"1", b"2", b"3")
        assert [desk.sender.step() for _ in range(4)] == [0, 0, 0, None]
        assert [request.body for request in receiver.requests] == [b"1", b"2", b"3"]
        request = receiver.requests[0]
        assert request.path == "/v1/metrics"
        assert request.headers["Content-Type"] == "application/x-protobuf"
        assert request.headers["x-tenant"] == "a"
        assert receiver.connections == 1
        assert desk.outbox.balance().acknowledged.points == 30
        assert desk.lines == []


def test_gzip_sends_what_is_stored(receiver: HttpReceiver) -> None:
    """With compression the stored bytes go out as they are."""
    with bench(receiver.url, compression="gzip") as desk:
        desk.add(b"abc" * 1000)
        waiting = desk.outbox.oldest("metrics")
        desk.sender.step()
        assert waiting is not None
        assert receiver.requests[0].raw == waiting.compressed
        assert receiver.requests[0].body == b"abc" * 1000


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_receivers_are_asked_again(receiver: HttpReceiver, status: int) -> None:
    """The same bytes are sent again after a back-off that doubles up to a minute; each batch counts once."""
    receiver.script = [Answer(status)] * 8
    with bench(receiver.url) as desk:
        desk.add(b"batch")
        delays = []
        for _ in range(8):
            delay = desk.sender.step()
            assert delay is not None
            delays.append(delay // SECOND_NS)
            assert desk.sender.step() == delay
            desk.clock.now_ns += delay
        assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
        assert desk.sender.step() == 0
        assert [request.body for request in receiver.requests] == [b"batch"] * 9
        balance = desk.outbox.balance()
        assert balance.holds
        assert (balance.acknowledged.batches, balance.dropped.batches) == (1, 0)
        assert [line.count(f"HTTP {status}") for line in desk.lines] == [1, 0]
        assert "takes data again" in desk.lines[1]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.7),
        (format_datetime(datetime.fromtimestamp(1_700_000_020, UTC), usegmt=True), 22.0),
        ("999999999", 3960.0),
        ("soon", 1.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    ],
)
def test_retry_after_is_honoured(receiver: HttpReceiver, header: str, seconds: float) -> None:
    """Seconds and dates count, at most an hour, up to a tenth more by chance; nonsense is the plain back-off."""
    receiver.script = [Answer(429, headers={"Retry-After": header})]
    with bench(receiver.url) as desk:
        desk.add(b"batch")
        delay = desk.sender.step()
        assert delay is not None
        assert delay / SECOND_NS == pytest.approx(seconds)
        assert len(receiver.requests) == 1


def test_an_end_cuts_our_own_wait_short_but_not_the_receivers(receiver: HttpReceiver) -> None:
    """A last attempt is made at once after a back-off, and not at all before a Retry-After has passed."""
    receiver.script = [Answer(503), Answer(503, headers={"Retry-After": "9"})]
    with bench(receiver.url) as desk:
        desk.add(b"batch")
        desk.sender.step()
        desk.sender.step(now=True)
        assert len(receiver.requests) == 2
        assert desk.sender.step(now=True) == pytest.approx(9.9 * SECOND_NS)
        assert len(receiver.requests) == 2
        desk.wait_out()
        assert desk.sender.step() == 0


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 500])
def test_refused_batches_are_dropped_and_said(receiver: HttpReceiver, status: int) -> None:
    """What will never be taken is dropped with its status as the reason, and the next waits out a back-off."""
    receiver.script = [Answer(status, b"no such thing\nhere", {"Location": "/there"} if status == 301 else {})]
    with bench(receiver.url) as desk:
        desk.add(b"bad", b"good")
        assert desk.sender.step() == SECOND_NS
        balance = desk.outbox.balance()
        assert balance.holds
        assert balance.drops == (Drop("metrics", f"HTTP {status}", 1, 10),)
        desk.wait_out()
        assert desk.sender.step() == 0
        assert [request.body for request in receiver.requests] == [b"bad", b"good"]
        assert f"HTTP {status}" in desk.lines[0]
        assert ("/there" if status == 301 else "no such thing here") in desk.lines[0]
        assert len(desk.lines) == 2


def test_partial_success_is_counted_and_said_once(receiver: HttpReceiver) -> None:
    """Rejected points are dropped-and-said, the others acknowledged, and nothing is sent again."""
    receiver.otherwise = Answer(body=partial_success(4, "too old"))
    with bench(receiver.url) as desk:
        desk.add(b"1", b"2")
        assert [desk.sender.step() for _ in range(3)] == [0, 0, None]
        balance = desk.outbox.balance()
        assert balance.holds
        assert (balance.acknowledged.points, balance.dropped.points, balance.dropped.batches) == (12, 8, 0)
        assert [line.count("too old") for line in desk.lines] == [1]
        (drop,) = desk.outbox.take_drops()
        assert (drop.reason, drop.points) == ("rejected by the receiver", 8)


def test_a_success_with_a_body_of_noise_is_a_success(receiver: HttpReceiver) -> None:
    """A receiver that answers 200 with something else has the batch."""
    receiver.otherwise = Answer(body=b"\xff\xff OK")
    with bench(receiver.url) as desk:
        desk.add(b"1")
        assert desk.sender.step() == 0
        assert desk.outbox.balance().acknowledged.points == 10


def test_a_reset_connection_is_tried_again(receiver: HttpReceiver) -> None:
    """A connection closed without an answer leaves the batch waiting."""
    receiver.script = [Answer(0)]
    with bench(receiver.url) as desk:
        desk.add(b"1")
        assert desk.sender.step() == SECOND_NS
        assert desk.outbox.balance().waiting.batches == 1
        desk.wait_out()
        assert desk.sender.step() == 0
        assert len(receiver.requests) == 2


def test_a_connection_closed_while_idle_is_no_trouble(receiver: HttpReceiver) -> None:
    """A receiver that closed the kept connection costs a new one, not a back-off and not a line."""
    receiver.script = [Answer(close=True)]
    with bench(receiver.url) as desk:
        desk.add(b"1", b"2")
        assert [desk.sender.step(), desk.sender.step()] == [0, 0]
        assert receiver.connections == 2
        assert desk.lines == []


@pytest.mark.parametrize("drip", [False, True])
def test_a_slow_answer_ends_at_the_timeout(receiver: HttpReceiver, drip: bool) -> None:
    """A receiver that says nothing, or drips bytes for ever, is given up after the timeout; the batch waits."""
    never = threading.Event()
    receiver.script = [Answer(drip=True) if drip else Answer(hold=never)]
    with bench(receiver.url, timeout="300") as desk:
        desk.add(b"1")
        assert desk.sender.step() == SECOND_NS
        never.set()
        assert "no answer within 0.3 s" in desk.lines[0]
        desk.wait_out()
        assert desk.sender.step() == 0


def test_an_unreachable_endpoint_is_one_line_a_change() -> None:
    """Ten failures are one line, with what and where; delivery after them is another."""
    port = components.free_port()
    with bench(f"http://127.0.0.1:{port}") as desk:
        desk.add(b"1")
        for _ in range(10):
            desk.sender.step()
            desk.wait_out()
        where = f"rankscope: export to http://127.0.0.1:{port}/v1/metrics"
        (line,) = desk.lines
        assert line.startswith(f"{where}: not delivered (Connection refused); data is kept")
        assert desk.sender.status.state is DeliveryState.WAITING
        with http_receiver(port):
            assert desk.sender.step() == 0
        assert desk.lines[1:] == [f"{where}: takes data again"]


def test_a_host_that_does_not_resolve_is_waited_for() -> None:
    """No address is trouble that can pass: the batch waits."""
    with bench("http://no-such-host.invalid:4318") as desk:
        desk.add(b"1")
        assert desk.sender.step() == SECOND_NS
        assert desk.outbox.balance().waiting.batches == 1


def test_the_proxy_of_the_environment_is_used(receiver: HttpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """http_proxy carries requests for other hosts with its credentials; no_proxy exempts a host."""
    monkeypatch.setenv("http_proxy", receiver.url.replace("://", "://user:pass@"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with bench("http://collector.invalid:4318") as desk:
        desk.add(b"1")
        assert desk.sender.step() == 0
        assert receiver.requests[0].path == "http://collector.invalid:4318/v1/metrics"
        assert receiver.requests[0].headers["Proxy-Authorization"] == "Basic dXNlcjpwYXNz"
    with bench(receiver.url) as desk:
        desk.add(b"1")
        assert desk.sender.step() == 0
        assert receiver.requests[1].path == "/v1/metrics"


def test_delays_are_spread_by_chance() -> None:
    """Half to all of the doubled wait, and never less than a receiver asked for."""
    backoff = Backoff()
    low: Callable[[float, float], float] = min
    assert backoff.delay_ns(1, None, low) == SECOND_NS // 2
    assert backoff.delay_ns(100, None, low) == 30 * SECOND_NS
    assert backoff.delay_ns(3, 5.0, low) == 5 * SECOND_NS


def _retry_info(seconds: int) -> tuple[tuple[str, bytes], ...]:
    info = RetryInfo()
    info.retry_delay.seconds = seconds
    packed = AnyMessage()
    packed.Pack(info)
    return (("grpc-status-details-bin", Status(code=8, message="busy", details=[packed]).SerializeToString()),)


def _grpc_answers(
    script: list[Any], requests: list[tuple[str, bytes, dict[str, Any]]]
) -> Callable[[str, bytes, Any], bytes]:
    """Answers by script: bytes are a success, else (code, trailing metadata)."""

    def answer(method: str, request: bytes, context: Any) -> bytes:
        requests.append((method, request, dict(context.invocation_metadata())))
        step = script.pop(0) if script else b""
        if isinstance(step, bytes):
            return step
        code, trailing = step
        context.set_trailing_metadata(trailing)
        context.abort(code, "scripted")
        raise AssertionError

    return answer


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_grpc_delivers_the_same_bytes(compression: str) -> None:
    """The method, the request's bytes and the headers arrive; a partial success is counted."""
    requests: list[tuple[str, bytes, dict[str, Any]]] = []
    with grpc_receiver(_grpc_answers([b"", partial_success(3, "late")], requests)) as address:
        settings = {"protocol": "grpc", "compression": compression, "headers": "X-Tenant=a"}
        with bench(f"http://{address}", **settings) as desk:
            desk.add(b"one" * 1000, b"two")
            assert [desk.sender.step() for _ in range(3)] == [0, 0, None]
            method, body, metadata = requests[0]
            assert method == "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
            assert body == b"one" * 1000
            assert metadata["x-tenant"] == "a"
            balance = desk.outbox.balance()
            assert balance.holds
            assert (balance.acknowledged.points, balance.dropped.points) == (17, 3)


@pytest.mark.parametrize(
    ("code", "trailing", "seconds"),
    [
        (grpc.StatusCode.UNAVAILABLE, (), 1.0),
        (grpc.StatusCode.ABORTED, (), 1.0),
        (grpc.StatusCode.UNAVAILABLE, _retry_info(30), 33.0),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, _retry_info(5), 5.5),
    ],
)
def test_grpc_codes_that_are_repeated(code: Any, trailing: Any, seconds: float) -> None:
    """The batch waits as long as RetryInfo says, or the back-off; the same bytes come again."""
    requests: list[tuple[str, bytes, dict[str, Any]]] = []
    with (
        grpc_receiver(_grpc_answers([(code, trailing)], requests)) as address,
        bench(f"http://{address}", protocol="grpc") as desk,
    ):
        desk.add(b"batch")
        delay = desk.sender.step()
        assert delay is not None
        assert delay / SECOND_NS == pytest.approx(seconds)
        assert code.name in desk.lines[0]
        desk.wait_out()
        assert desk.sender.step() == 0
        assert [body for _, body, _ in requests] == [b"batch", b"batch"]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
def test_grpc_codes_that_are_not_repeated(code: Any) -> None:
    """The batch is dropped with the code as the reason; exhaustion without RetryInfo is such a code."""
    with (
        grpc_receiver(_grpc_answers([(code, (("grpc-status-details-bin", b"\xff"),))], [])) as address,
        bench(f"http://{address}", protocol="grpc") as desk,
    ):
        desk.add(b"batch")
        assert desk.sender.step() == SECOND_NS
        balance = desk.outbox.balance()
        assert balance.holds
        assert balance.drops == (Drop("metrics", f"gRPC {code.name}", 1, 10),)


def test_grpc_finds_a_receiver_that_came_up_late() -> None:
    """A connection refused is UNAVAILABLE; the next attempt connects anew at once."""
    port = components.free_port()
    with bench(f"http://127.0.0.1:{port}", protocol="grpc", timeout="2000") as desk:
        desk.add(b"batch")
        assert desk.sender.step() == SECOND_NS
        assert "UNAVAILABLE" in desk.lines[0]
        desk.wait_out()
        with grpc_receiver(_grpc_answers([], []), port=port):
            assert desk.sender.step() == 0
