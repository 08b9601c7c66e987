"""The components that other tests stand on start here and do what those tests rely on."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from pathlib import Path

import components
import pytest


def _query(address: str, query: str) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"{address}/internal/force_flush"):
        pass
    with urllib.request.urlopen(f"{address}/api/v1/query?query={urllib.parse.quote(query)}") as response:
        return json.load(response)["data"]["result"]


def _post_gauge(address: str, value: int) -> None:
    point = {"asInt": str(value), "timeUnixNano": str(components.now_ns())}
    metric = {"name": "probe.gauge", "gauge": {"dataPoints": [point]}}
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 200


def test_victoria_metrics_stores_a_sample(tmp_path: Path) -> None:
    """The store starts on a free loopback port and answers a query with what was written."""
    with components.victoria_metrics(tmp_path) as address:
        body = f"probe_gauge 7 {components.now_ns() // 1_000_000}\n".encode()
        with urllib.request.urlopen(f"{address}/api/v1/import/prometheus", body) as response:
            assert response.status == 204
        (sample,) = _query(address, "probe_gauge")
        assert sample["value"][1] == "7"


def test_rotel_passes_a_metric_on_to_victoria_metrics(tmp_path: Path) -> None:
    """The collector takes OTLP over HTTP and hands it to the store's OTLP receiver."""
    with components.victoria_metrics(tmp_path / "store") as store:
        arguments = [
            "--exporter",
            "otlp",
            "--otlp-exporter-protocol",
            "http",
            "--otlp-exporter-metrics-endpoint",
            f"{store}/opentelemetry/v1/metrics",
        ]
        with components.rotel(tmp_path / "rotel", arguments) as collector:
            _post_gauge(f"{collector.http}/v1/metrics", 42)
            components.wait_for(lambda: bool(_query(store, "probe_gauge")), "the sample to arrive")
            (sample,) = _query(store, "probe_gauge")
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
