"""The export thread: it empties the outbox beside a producer, and nothing it meets holds up whoever stops it."""

from __future__ import annotations

import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import components
import grpc
import pytest
from scripted_receiver import Answer, grpc_receiver, http_receiver

from rankscope.errors import ConfigurationError
from rankscope.exporters.otlp_exporter import Exporter, connect
from rankscope.exporters.otlp_send import Backoff, DeliveryState
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.outbox import Outbox

QUICK = Backoff(first_s=0.02, most_s=0.05)


@dataclass
class Agent:
    """What the agent holds: its own connection, the outbox on it, and the exporter."""

    connection: sqlite3.Connection
    outbox: Outbox
    exporter: Exporter
    lines: list[str] = field(default_factory=list)

    def add(self, signal: str, *payloads: bytes) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        for payload in payloads:
            self.outbox.add(signal, payload, 1, time.time_ns())
        self.connection.execute("COMMIT")
        self.exporter.wake()

    def settled(self) -> bool:
        return not self.outbox.balance().waiting.batches


@contextmanager
def agent(path: Path, **settings: str) -> Iterator[Agent]:
    """A producer and a running exporter on one file, as the agent has them."""
    connection = connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    outbox, lines = Outbox(connection), list[str]()
    exporter = Exporter(path, otlp_targets({}, **settings), say=lines.append, backoff=QUICK, poll_s=0.05)
    exporter.start()
    yield Agent(connection, outbox, exporter, lines)
    exporter.stop(0)
    connection.close()


def test_batches_are_sent_while_more_are_produced(tmp_path: Path) -> None:
    """Metrics and logs arrive in order through one thread; stop returns True when nothing is left."""
    with http_receiver() as receiver, agent(tmp_path / "r.db", endpoint=receiver.url) as desk:
        for number in range(20):
            desk.add("metrics", b"m%d" % number)
            desk.add("logs", b"l%d" % number)
        assert desk.exporter.stop(10)
        for path, letter in (("/v1/metrics", b"m"), ("/v1/logs", b"l")):
            bodies = [request.body for request in receiver.requests if request.path == path]
            assert bodies == [letter + b"%d" % number for number in range(20)]
        assert desk.outbox.balance().holds
        assert [status.state for status in desk.exporter.status()] == [DeliveryState.DELIVERING] * 2


def test_a_signal_that_is_down_does_not_hold_the_other(tmp_path: Path) -> None:
    """Logs that nobody takes wait; metrics go on."""
    nowhere = f"http://127.0.0.1:{components.free_port()}/v1/logs"
    with (
        http_receiver() as receiver,
        agent(tmp_path / "r.db", endpoint=receiver.url, logs_endpoint=nowhere) as desk,
    ):
        desk.add("logs", b"line")
        for number in range(5):
            desk.add("metrics", b"%d" % number)
        components.wait_for(lambda: len(receiver.requests) == 5, "the metrics")
        assert not desk.exporter.stop(5)
        assert desk.outbox.balance().waiting.batches == 1


def test_the_rest_is_sent_by_the_next_exporter(tmp_path: Path) -> None:
    """What an agent could not deliver stays in the file, and the next one delivers it with the same bytes."""
    port = components.free_port()
    with agent(tmp_path / "r.db", endpoint=f"http://127.0.0.1:{port}") as desk:
        desk.add("metrics", b"kept")
        assert not desk.exporter.stop(1)
    with http_receiver(port) as receiver, agent(tmp_path / "r.db", endpoint=receiver.url) as desk:
        components.wait_for(desk.settled, "the delivery")
        assert [request.body for request in receiver.requests] == [b"kept"]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_receiver_that_never_answers_does_not_hold_up_the_end(tmp_path: Path, protocol: str) -> None:
    """stop comes back soon after its time, long before the request's own timeout, and the batch is kept."""
    hold = threading.Event()

    def answer(method: str, request: bytes, context: object) -> bytes:
        hold.wait(20)
        return b""

    with http_receiver() as receiver, grpc_receiver(answer) as address:
        receiver.otherwise = Answer(hold=hold)
        endpoint = receiver.url if protocol != "grpc" else f"http://{address}"
        with agent(tmp_path / "r.db", endpoint=endpoint, protocol=protocol, timeout="60000") as desk:
            desk.add("metrics", b"1")
            # Had it waited for the answer, which comes after 20 s, the batch would be gone.
            assert not desk.exporter.stop(0.3)
            assert desk.outbox.balance().waiting.batches == 1
            hold.set()


def test_a_producer_is_not_held_up_by_a_slow_receiver(tmp_path: Path) -> None:
    """While a request hangs, the agent commits as before: no lock is held over the network."""
    hold = threading.Event()
    with http_receiver() as receiver, agent(tmp_path / "r.db", endpoint=receiver.url) as desk:
        receiver.script = [Answer(hold=hold)]
        desk.add("metrics", b"0")
        components.wait_for(lambda: bool(receiver.requests), "the request that hangs")
        desk.connection.execute("PRAGMA busy_timeout = 0")
        desk.add("metrics", *(b"%d" % number for number in range(1, 50)))
        hold.set()
        assert desk.exporter.stop(10)
        assert len(receiver.requests) == 50


def test_trouble_with_the_file_is_said_and_survived(tmp_path: Path) -> None:
    """An outbox that cannot be opened is one line; once it can, its batches go out."""
    folder = tmp_path / "later"
    lines: list[str] = []
    with http_receiver() as receiver:
        exporter = Exporter(
            folder / "r.db", otlp_targets({}, endpoint=receiver.url), say=lines.append, backoff=QUICK, poll_s=0.05
        )
        exporter.start()
        components.wait_for(lambda: bool(lines), "the line about the file")
        folder.mkdir()
        with agent(folder / "r.db", endpoint=receiver.url) as desk:
            desk.exporter.stop(0)
            desk.add("metrics", b"1")
            components.wait_for(desk.settled, "the delivery")
        exporter.stop(5)
        assert len(lines) == 1
        assert "unable to open" in lines[0]


@dataclass(frozen=True)
class Certificates:
    """A certificate of localhost that is its own authority, and one for a client."""

    server: Path
    server_key: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made anew for the run, so that none expires."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = components.need("openssl")
    for name in ("server", "client"):
        command = [
            str(openssl), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"), "-days", "2",
            "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return Certificates(*(folder / name for name in ("server.pem", "server.key", "client.pem", "client.key")))


def test_tls_and_mutual_tls_over_http(tmp_path: Path, certificates: Certificates) -> None:
    """A receiver that asks for a certificate gets ours; one whose own cannot be traced to an authority gets nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.load_verify_locations(certificates.client)
    context.verify_mode = ssl.CERT_REQUIRED
    mutual = {
        "certificate": str(certificates.server),
        "client_certificate": str(certificates.client),
        "client_key": str(certificates.client_key),
    }
    with http_receiver(ssl_context=context) as receiver:
        with agent(tmp_path / "r.db", endpoint=receiver.url, **mutual) as desk:
            desk.add("metrics", b"secret")
            assert desk.exporter.stop(10)
            assert [request.body for request in receiver.requests] == [b"secret"]
        with agent(tmp_path / "other.db", endpoint=receiver.url) as desk:
            desk.add("metrics", b"secret")
            components.wait_for(lambda: bool(desk.lines), "the line about the certificate")
            assert "certificate does not hold" in desk.lines[0]
            assert desk.outbox.balance().waiting.batches == 1


def test_mutual_tls_over_grpc(tmp_path: Path, certificates: Certificates) -> None:
    """gRPC shows the client's certificate and checks the server's."""
    pair = (certificates.server_key.read_bytes(), certificates.server.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], certificates.client.read_bytes(), require_client_auth=True)
    received: list[bytes] = []

    def answer(method: str, request: bytes, context: object) -> bytes:
        received.append(request)
        return b""

    settings = {
        "protocol": "grpc",
        "certificate": str(certificates.server),
        "client_certificate": str(certificates.client),
        "client_key": str(certificates.client_key),
    }
    with (
        grpc_receiver(answer, credentials=credentials) as address,
        agent(tmp_path / "r.db", endpoint=f"https://{address}", **settings) as desk,
    ):
        desk.add("metrics", b"secret")
        assert desk.exporter.stop(10)
        assert received == [b"secret"]


def test_a_certificate_of_noise_is_refused_at_once(tmp_path: Path, certificates: Certificates) -> None:
    """Files that are no PEM, and a key that is not the certificate's, are one clear line before anything starts."""
    noise = tmp_path / "noise.pem"
    noise.write_text("no certificate")
    wrong = {"client_certificate": str(certificates.client), "client_key": str(certificates.server_key)}
    for settings in ({"certificate": str(noise)}, wrong):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            Exporter(tmp_path / "r.db", otlp_targets({}, endpoint="https://c", **settings))
