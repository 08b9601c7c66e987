"""The endpoint that Prometheus scrapes: threads of its own, which can neither hold up nor outgrow the agent.

The agent hands over a snapshot now and then, and only while somebody scrapes; a request renders the newest one. At
most MAX_CONNECTIONS are served at once, each for DEADLINE_S at most, one request each; what goes beyond is closed.
"""

from __future__ import annotations

import gzip
import ipaddress
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from rankscope.errors import ConfigurationError
from rankscope.exporters.prometheus_auth import Gate
from rankscope.exporters.prometheus_text import OPEN_METRICS, TEXT, Family, exposition

MAX_CONNECTIONS = 8
DEADLINE_S = 10.0
#: Snapshots are made for so long after the last scrape.
_WANTED_S = 180.0
_BEAT_S = 1.0
_log = logging.getLogger("rankscope.prometheus")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen, and what the endpoint shows of itself."""

    host: str
    port: int
    certificate: str = ""
    key: str = ""
    client_authority: str = ""

    def context(self) -> ssl.SSLContext | None:
        """TLS as asked for, None without. Raises ConfigurationError."""
        if not self.certificate:
            if self.key or self.client_authority:
                raise ConfigurationError("a key or a client CA needs a certificate", where="prometheus")
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key or None)
            if self.client_authority:
                context.load_verify_locations(self.client_authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            paths = ", ".join(filter(None, (self.certificate, self.key, self.client_authority)))
            raise ConfigurationError(f"TLS cannot be set up ({error})", where=paths) from error
        return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PrometheusEndpoint:
    """Listens from the begin; `start` serves, `publish` gives it what to show."""

    def __init__(self, listen: Listen, gate: Gate) -> None:
        """Raises ConfigurationError where it cannot listen, or would send secrets in the clear."""
        self._tls = listen.context()
        if not gate.open and self._tls is None and not _is_loopback(listen.host):
            raise ConfigurationError(
                "a password or token would cross the network in the clear",
                where=f"prometheus on {listen.host}",
                todo="set prometheus.certificate and prometheus.key, or listen on loopback",
            )
        self.gate = gate
        try:
            family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
            self._socket = socket.create_server((listen.host, listen.port), family=family, backlog=16)
        except (OSError, OverflowError) as error:
            where = f"prometheus on {listen.host}:{listen.port}"
            raise ConfigurationError(f"cannot listen ({error})", where=where, todo="choose another port") from error
        self._socket.setblocking(False)
        #: The port that was given, or chosen where that was 0.
        self.port = int(self._socket.getsockname()[1])
        self._families: Sequence[Family] = ()
        self._rendered: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._asked = time.monotonic()
        self._stop = threading.Event()
        #: Connections under way and since when.
        self._open: dict[socket.socket, float] = {}
        #: Connections closed unanswered, because there were too many or they took too long.
        self.turned_away = 0
        self._thread = threading.Thread(target=self._accept, name="rankscope-prometheus", daemon=True)

    @property
    def wanted(self) -> bool:
        """Whether somebody scraped lately, so that a snapshot is worth its making."""
        return time.monotonic() - self._asked < _WANTED_S

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def publish(self, families: Sequence[Family]) -> None:
        """Show these from now on."""
        with self._lock:
            self._families, self._rendered = families, {}

    def body(self, *, open_metrics: bool) -> bytes:
        """What is shown now; rendered once a snapshot and format."""
        self._asked = time.monotonic()
        kind = OPEN_METRICS if open_metrics else TEXT
        with self._lock:
            families, done = self._families, self._rendered.get(kind)
        if done is None:
            done = exposition(families, open_metrics=open_metrics).encode()
            with self._lock:
                if families is self._families:
                    self._rendered[kind] = done
        return done

    def close(self) -> None:
        """Stop listening and end what is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * _BEAT_S)
        self._socket.close()
        self._end_older_than(0)

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while not self._stop.is_set():
                ready = selector.select(_BEAT_S)
                self._end_older_than(DEADLINE_S)
                if not ready:
                    continue
                try:
                    connection, _ = self._socket.accept()
                except OSError:
                    # Gone again, or no descriptor is left: not at full speed.
                    self._stop.wait(0.05)
                    continue
                with self._lock:
                    full = len(self._open) >= MAX_CONNECTIONS
                    self.turned_away += full
                    if not full:
                        self._open[connection] = time.monotonic()
                if full:
                    connection.close()
                    continue
                threading.Thread(target=self._serve, args=(connection,), name="rankscope-scrape", daemon=True).start()

    def _end_older_than(self, seconds: float) -> None:
        with self._lock:
            late = [each for each, since in self._open.items() if time.monotonic() - since >= seconds]
        for connection in late:
            self.turned_away += 1
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _serve(self, connection: socket.socket) -> None:
        plain = connection
        try:
            plain.settimeout(DEADLINE_S / 2)
            if self._tls is not None:
                # The handshake's socket takes the descriptor over: the deadline has to reach that one.
                connection = self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._open[connection] = self._open.pop(plain)
                connection.do_handshake()
            _Handler(connection, self)
        except (OSError, ValueError):
            # A client that goes, stays silent, or speaks another protocol is its own business.
            pass
        finally:
            with self._lock:
                self._open.pop(connection, None)
                self._open.pop(plain, None)
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    """One request on one connection."""

    protocol_version = "HTTP/1.0"
    server_version = "rankscope"
    sys_version = ""

    def __init__(self, connection: socket.socket, endpoint: PrometheusEndpoint) -> None:
        self._endpoint = endpoint
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type]  # there is no server object

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if not self._endpoint.gate.lets_in(self.headers.get("Authorization", "")):
            self._say(401, b"not allowed\n", TEXT, {"WWW-Authenticate": self._endpoint.gate.challenge})
        elif self.path.partition("?")[0] != "/metrics":
            self._say(404, b"metrics are at /metrics\n", TEXT, {})
        else:
            open_metrics = wants_open_metrics(self.headers.get("Accept", ""))
            body, headers = self._endpoint.body(open_metrics=open_metrics), {"Vary": "Accept, Accept-Encoding"}
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                body, headers = gzip.compress(body, 1, mtime=0), headers | {"Content-Encoding": "gzip"}
            self._say(200, body, OPEN_METRICS if open_metrics else TEXT, headers)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _say(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class calls it so
        """Nothing: a scrape is no news."""
        _log.debug(format, *arguments)


def wants_open_metrics(accept: str) -> bool:
    """Whether a client that sends this Accept header likes OpenMetrics 1.0.0 better than the text format."""
    weights = {"open": 0.0, "text": 0.0}
    for item in accept.lower().split(",")[:32]:
        kind, *parameters = (part.strip() for part in item.split(";"))
        values = dict(part.partition("=")[::2] for part in parameters)
        try:
            weight = float(values.get("q", "1"))
        except ValueError:
            continue
        if kind == "application/openmetrics-text" and values.get("version", "1.0.0").strip('"') == "1.0.0":
            weights["open"] = max(weights["open"], weight)
        elif kind in ("text/plain", "text/*", "*/*"):
            weights["text"] = max(weights["text"], weight)
    return weights["open"] > 0 and weights["open"] >= weights["text"]


def open_endpoint(listen: Listen, *, token_file: str, user: str, password_file: str) -> PrometheusEndpoint:
    """An endpoint that serves. Raises ConfigurationError."""
    endpoint = PrometheusEndpoint(listen, Gate(token_file=token_file, user=user, password_file=password_file))
    endpoint.start()
    return endpoint
