"""The Prometheus endpoint: what it says, to whom, and that nobody can hold it up."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import components
import pytest

from rankscope.errors import ConfigurationError
from rankscope.exporters import prometheus_endpoint
from rankscope.exporters.export_levels import Level
from rankscope.exporters.otlp_traces import span_id, trace_id
from rankscope.exporters.prometheus_auth import Gate, hashed
from rankscope.exporters.prometheus_endpoint import Listen, PrometheusEndpoint, wants_open_metrics
from rankscope.exporters.prometheus_text import JobSeries, exposition
from rankscope.identity import RankIdentity
from rankscope.reading import Reading
from rankscope.records import StepRecord

SECOND = 1_000_000_000
GPU = "GPU-3f2a91c0-77aa-4b1e-9f10-000000000002"


def _job(name: str = 'a "job"\\') -> JobSeries:
    job = JobSeries(name, "node-a", Level.LINK)
    job.add(
        [
            Reading("gpu.temperature_celsius", 61.5, SECOND, GPU),
            Reading("gpu.energy_joules", 1e6, SECOND, GPU),
            Reading("gpu.utilization_ratio", 0.5, SECOND, GPU),
            Reading("event.count", 2.0, SECOND, f"xid|79|{GPU}"),
            Reading("fan.odd name_total", 3.0, SECOND, "a\nb"),
        ]
    )
    identity = RankIdentity("j", 0, 2, 4, 2, "node-a", 42, 7, "b", GPU)
    times = [(at * SECOND, at * SECOND + at * SECOND // 8) for at in range(1, 9)]
    job.add_records(identity, [StepRecord(b // SECOND, b, e, 0, e - b, 0, 0, 0, 0, 0, 0) for b, e in times])
    return job


@contextmanager
def _endpoint(listen: Listen | None = None, gate: Gate | None = None) -> Iterator[PrometheusEndpoint]:
    endpoint = PrometheusEndpoint(listen or Listen("127.0.0.1", 0), gate or Gate())
    endpoint.start()
    endpoint.publish(_job().snapshot(2 * SECOND))
    try:
        yield endpoint
    finally:
        endpoint.close()


def test_promtool_finds_nothing_wrong_and_buckets_are_exact() -> None:
    """promtool parses the text; steps of 1/8 to 1 s lie in the buckets that bound them, each counted once."""
    text = exposition([*_job().snapshot(2 * SECOND), *_job("other").snapshot(2 * SECOND)], open_metrics=False)
    done = subprocess.run(
        [components.need("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    # What the lint dislikes is the conventions' own: hw_energy_joules_total has base units, nanoseconds are not.
    assert done.returncode in (0, 3), done.stderr
    assert "error while linting" not in done.stderr
    buckets = [
        line.rpartition(" ") for line in text.splitlines() if line.startswith("rankscope_step_duration_seconds_b")
    ]
    counts = {line.split('le="')[1].split('"')[0]: int(count) for line, _, count in buckets if "other" in line}
    assert (counts["0.125"], counts["0.25"], counts["0.5"], counts["1.0"], counts["+Inf"]) == (1, 2, 4, 8, 8)


def test_a_series_that_is_not_read_any_more_goes() -> None:
    """A gauge read each second goes after a minute without one; what was read once stays 15 minutes."""
    job = JobSeries("j", "h", Level.LINK)
    job.add([Reading("gpu.temperature_celsius", 60.0, at * SECOND, GPU) for at in (1, 2)])
    job.add([Reading("gpu.memory_total_bytes", 8e10, SECOND, GPU)])
    assert len(job.snapshot(50 * SECOND)) == 2
    assert [family.name for family in job.snapshot(70 * SECOND)] == ["hw_gpu_memory_limit_bytes"]
    assert job.snapshot(1000 * SECOND) == []


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1", True),
        ("application/openmetrics-text;version=0.0.1,text/plain;q=0.3", False),
        ("text/plain", False),
        ("", False),
        ("application/openmetrics-text;q=nonsense, ;;=,", False),
    ],
)
def test_the_client_chooses_the_format(accept: str, wanted: bool) -> None:
    """What Prometheus sends is answered with OpenMetrics, anything else with the text format."""
    assert wants_open_metrics(accept) is wanted


def _ask(port: int, headers: dict[str, str], path: str = "/metrics") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_nobody_reads_without_the_secret(tmp_path: Path) -> None:
    """Token and password open, everything else is 401 without a word of the metrics; guesses are slowed down."""
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "hash").write_text(hashed("pa:ss"))
    now = [0.0]
    gate = Gate(
        token_file=str(tmp_path / "token"),
        user="prom",
        password_file=str(tmp_path / "hash"),
        monotonic=lambda: now[0],
    )
    with _endpoint(gate=gate) as endpoint:
        wrong: list[dict[str, str]] = [{}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic ?"}]
        for headers in [*wrong, _basic("prom", "pass")]:
            status, _, body = _ask(endpoint.port, headers)
            assert (status, "hw_" in body) == (401, False)
        assert _ask(endpoint.port, _basic("prom", "pa:ss"))[0] == 401
        now[0] = 2.0
        assert _ask(endpoint.port, _basic("prom", "pa:ss"))[0] == 200
        assert _ask(endpoint.port, {"Authorization": "Bearer s3cret"})[0] == 200
        assert _ask(endpoint.port, {"Authorization": "Bearer s3cret"}, "/")[0] == 404


def test_what_cannot_be_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    """Secrets in the clear, a hash that is none, a certificate that is none, a port that is taken."""
    (tmp_path / "token").write_text("s3cret")
    with pytest.raises(ConfigurationError, match="in the clear"):
        PrometheusEndpoint(Listen("0.0.0.0", 0), Gate(token_file=str(tmp_path / "token")))
    with pytest.raises(ConfigurationError, match="no hash"):
        Gate(user="a", password_file=str(tmp_path / "token"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Gate(token_file=str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="TLS cannot"):
        PrometheusEndpoint(Listen("127.0.0.1", 0, certificate=str(tmp_path / "token")), Gate())
    with _endpoint() as endpoint, pytest.raises(ConfigurationError, match="cannot listen"):
        PrometheusEndpoint(Listen("127.0.0.1", endpoint.port), Gate())


def test_silent_clients_are_ended_and_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every place taken by clients that send nothing a scrape is closed; past their deadline it is answered."""
    monkeypatch.setattr(prometheus_endpoint, "DEADLINE_S", 2.0)
    monkeypatch.setattr(prometheus_endpoint, "_BEAT_S", 0.05)
    with _endpoint() as endpoint:
        silent = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(20)]
        components.wait_for(lambda: endpoint.turned_away > 0, "clients beyond the bound to be turned away")

        def served() -> bool:
            try:
                return _ask(endpoint.port, {})[0] == 200
            except OSError:
                return False

        components.wait_for(served, "a scrape to be answered")
        for each in silent:
            each.close()


def _certificate(folder: Path) -> Path:
    path = folder / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", str(folder / "k"), "-out", str(folder / "c")], check=True, capture_output=True)
    path.write_text((folder / "k").read_text() + (folder / "c").read_text())
    return path


def _client(folder: Path) -> None:
    """A client's authority (ca), a certificate that it signed (client) and one that nobody did (stranger)."""
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    for name, more in (
        ("ca", []),
        ("client", ["-CA", str(folder / "ca"), "-CAkey", str(folder / "ca.key")]),
        ("stranger", []),
    ):
        command = [
            *new,
            "-subj",
            f"/CN={name}",
            *more,
            "-keyout",
            str(folder / f"{name}.key"),
            "-out",
            str(folder / name),
        ]
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def _scraping(folder: Path, port: int, **settings: object) -> Iterator[str]:
    """A Prometheus that scrapes a port of this machine every second; its address."""
    scrape = {
        "job_name": "rankscope",
        "scrape_interval": "1s",
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        **settings,
    }
    config = folder / "prometheus.yml"
    config.write_text(json.dumps({"scrape_configs": [scrape]}))
    listen = components.free_port()
    command = [str(components.need("prometheus")), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{listen}", "--enable-feature=exemplar-storage"]
    address = f"http://127.0.0.1:{listen}"
    with components.running(command, folder / "log", lambda: components.answers(f"{address}/-/ready")):
        yield address


def _api(address: str, what: str, query: str, **more: object) -> Any:
    url = f"{address}/api/v1/{what}?{urlencode({'query': query, **more})}"
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)["data"]


def _values(address: str, query: str) -> list[str]:
    return [each["value"][1] for each in _api(address, "query", query)["result"]]


def test_prometheus_scrapes_over_tls_with_a_password(tmp_path: Path) -> None:
    """The real Prometheus reads every series by OpenMetrics, over TLS, with a password; a client of another protocol
    and one without the authority's certificate get nothing."""
    both = _certificate(tmp_path)
    (tmp_path / "hash").write_text(hashed("pass"))
    gate = Gate(user="prom", password_file=str(tmp_path / "hash"))
    with _endpoint(Listen("127.0.0.1", 0, certificate=str(both)), gate) as endpoint:
        with socket.create_connection(("127.0.0.1", endpoint.port)) as plain:
            plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with suppress(ConnectionResetError):
                assert b"hw_" not in plain.recv(4096)
        with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", endpoint.port)) as raw:
            ssl.create_default_context().wrap_socket(raw, server_hostname="127.0.0.1")
        secret = {"username": "prom", "password": "pass"}
        tls = {"ca_file": str(tmp_path / "c")}
        with _scraping(tmp_path, endpoint.port, scheme="https", tls_config=tls, basic_auth=secret) as address:
            components.wait_for(lambda: _values(address, "up") == ["1"], "a scrape")
            assert _values(address, f'hw_temperature_celsius{{hw_id="{GPU}",host_name="node-a"}}') == ["61.5"]
            assert _values(address, "hw_energy_joules_total") == ["1000000"]
            assert _values(address, 'rankscope_events_total{rankscope_xid="79"}') == ["2"]
            steps = 'rankscope_step_duration_seconds_count{rankscope_rank="2",rankscope_clock="host"}'
            assert _values(address, steps) == ["8"]
            assert _values(address, "rankscope_rank_info") == ["1"]
            (median,) = _values(address, "histogram_quantile(0.5, rankscope_step_duration_seconds_bucket)")
            assert 0.25 <= float(median) <= 0.5


def test_only_clients_of_the_authority_are_let_in(tmp_path: Path) -> None:
    """Mutual TLS: the real Prometheus with a certificate of the authority scrapes; one without a certificate, and one
    with a stranger's, are turned away in the handshake and see nothing."""
    both = _certificate(tmp_path)
    _client(tmp_path)
    listen = Listen("127.0.0.1", 0, certificate=str(both), client_authority=str(tmp_path / "ca"))
    with _endpoint(listen) as endpoint:

        def page(name: str | None) -> bytes:
            context = ssl.create_default_context(cafile=str(tmp_path / "c"))
            if name is not None:
                context.load_cert_chain(tmp_path / name, tmp_path / f"{name}.key")
            with (
                socket.create_connection(("127.0.0.1", endpoint.port), timeout=10) as raw,
                context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
            ):
                connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: connection.recv(65536), b""))

        assert b"hw_temperature_celsius{" in page("client")
        for name in (None, "stranger"):
            # TLS 1.3 tells the client only when it reads.
            with pytest.raises((ssl.SSLError, ConnectionError)):
                page(name)
        tls = {"ca_file": str(tmp_path / "c")}
        own = {"cert_file": str(tmp_path / "client"), "key_file": str(tmp_path / "client.key")}
        with _scraping(tmp_path, endpoint.port, scheme="https", tls_config=tls | own) as address:
            components.wait_for(lambda: _values(address, "up") == ["1"], "a scrape")
            assert _values(address, "hw_temperature_celsius") == ["61.5"]


def test_a_slow_step_is_an_exemplar_that_names_its_trace() -> None:
    """Where traces are sent, OpenMetrics has the last slow step in the bucket that its length lies in, with the id that
    its trace has on every rank; the text format, which has no exemplars, has none, nor has a job without traces."""
    identity = RankIdentity("j", 0, 2, 4, 2, "node-a", 42, 7, "b", GPU)
    lengths = [SECOND // 8] * 40 + [3 * SECOND // 4] + [SECOND // 8] * 3
    ends = list(accumulate(lengths))
    records = [
        StepRecord(step, end - length, end, 0, length, 0, 0, 0, 0, 0, 0)
        for step, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]
    pages = {}
    for traces in (True, False):
        job = JobSeries("j", "node-a", Level.LINK, traces=traces)
        job.add_records(identity, records)
        for open_metrics in (True, False):
            pages[traces, open_metrics] = exposition(job.snapshot(60 * SECOND), open_metrics=open_metrics)
    told = [line for line in pages[True, True].splitlines() if " # " in line]
    trace = trace_id("j", 0, 40)
    assert len(told) == 1
    assert "rankscope_step_duration_seconds_bucket{" in told[0]
    assert 'le="1.0"' in told[0]
    assert told[0].endswith(f' # {{trace_id="{trace.hex()}",span_id="{span_id(trace, 2).hex()}"}} 0.75')
    assert not [page for key, page in pages.items() if key != (True, True) and "trace_id" in page]


def test_prometheus_keeps_the_exemplar(tmp_path: Path) -> None:
    """The real Prometheus, told to store exemplars, gives the trace of the slow step back."""
    job = JobSeries("j", "node-a", Level.LINK, traces=True)
    identity = RankIdentity("j", 0, 2, 4, 2, "node-a", 42, 7, "b", GPU)
    for step in range(48):
        length = SECOND // 8 if step != 40 else SECOND
        job.add_records(
            identity, [StepRecord(step, step * 2 * SECOND, step * 2 * SECOND + length, 0, length, *[0] * 6)]
        )
    with _endpoint() as endpoint:
        endpoint.publish(job.snapshot(100 * SECOND))
        with _scraping(tmp_path, endpoint.port) as address:
            components.wait_for(lambda: _values(address, "up") == ["1"], "a scrape")
            name = "rankscope_step_duration_seconds_bucket"
            now = time.time()
            (found,) = _api(address, "query_exemplars", name, start=now - 60, end=now + 60)
            assert [each["labels"]["trace_id"] for each in found["exemplars"]] == [trace_id("j", 0, 40).hex()]
