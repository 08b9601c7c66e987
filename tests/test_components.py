"""The components that other tests stand on start here and do what those tests rely on."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import components
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Gauge,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)


def _post_gauge(address: str, value: int) -> None:
    point = NumberDataPoint(as_int=value, time_unix_nano=components.now_ns())
    metric = Metric(name="probe.gauge", gauge=Gauge(data_points=[point]))
    body = ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=[metric])])]
    ).SerializeToString()
    request = urllib.request.Request(address, body, {"Content-Type": "application/x-protobuf"})
    with urllib.request.urlopen(request) as response:
        assert response.status == 200


def test_victoria_metrics_stores_a_sample(tmp_path: Path) -> None:
    """The store starts on a free loopback port and answers a query with what was written."""
    with components.victoria_metrics(tmp_path) as address:
        body = f"probe_gauge 7 {components.now_ns() // 1_000_000}\n".encode()
        with urllib.request.urlopen(f"{address}/api/v1/import/prometheus", body) as response:
            assert response.status == 204
        components.wait_for(lambda: bool(components.query(address, "probe_gauge")), "the sample")
        (sample,) = components.query(address, "probe_gauge")
        assert sample["value"][1] == "7"


def test_rotel_passes_a_metric_on_to_victoria_metrics(tmp_path: Path) -> None:
    """The collector takes OTLP over HTTP and hands it to the store's OTLP receiver."""
    with components.victoria_metrics(tmp_path / "store") as store:
        arguments = [
            "--exporter",
            "otlp",
            "--otlp-exporter-protocol",
            "http",
            "--otlp-exporter-endpoint",
            f"{store}/opentelemetry",
        ]
        with components.rotel(tmp_path / "rotel", arguments) as collector:
            _post_gauge(f"{collector.http}/v1/metrics", 42)
            components.wait_for(lambda: bool(components.query(store, "probe_gauge")), "the sample to arrive")
            (sample,) = components.query(store, "probe_gauge")
            assert sample["value"][1] == "42"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("promtool", ["--version"]),
        ("vmalert", ["--version"]),
        ("helm", ["version", "--short"]),
        ("chromium", ["--version"]),
        ("cc", ["--version"]),
    ],
)
def test_command_line_components_run(name: str, arguments: list[str]) -> None:
    """Each program starts on this system: a newer suite's build can lack a library here."""
    assert components.run(components.need(name), *arguments).returncode == 0


def test_a_missing_component_is_a_failure_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI never passes by leaving tests out; elsewhere the test is skipped with the reason."""
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-component"):
        components.need("no-such-component")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no-such-component"):
        components.need("no-such-component")


def test_a_server_that_ends_at_once_fails_with_its_last_words(tmp_path: Path) -> None:
    """A server that does not come up names its exit status and what it wrote."""
    command = ["sh", "-c", "echo out of luck; exit 3"]
    with (
        pytest.raises(pytest.fail.Exception, match=r"ended with 3: out of luck"),
        components.running(command, tmp_path / "log", lambda: False),
    ):
        pass
