"""Dashboard and alerts: expressions run on a real store fed by our exporter, and alerts fire when they should."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import components
import pytest
import sample_window

from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.replay import replay
from rankscope.window import Series, SeriesKey

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "dashboards/grafana/job.json").read_text())
RULES = ROOT / "dashboards/rules/rankscope.rules.json"
EXPRESSIONS = {panel["title"]: panel["targets"][0]["expr"] for panel in DASHBOARD["panels"]}


def test_panels_are_whole() -> None:
    """Every panel has an id of its own, a question, a place of its own, and the store as a variable."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["description"].endswith((".", "?")) for panel in panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert {"datasource", "job"} == names


def test_alerts_name_runbooks_that_exist() -> None:
    """The page that an alert points to is there."""
    rules = json.loads(RULES.read_text())["groups"][0]["rules"]
    assert rules
    for rule in rules:
        assert (ROOT / rule["annotations"]["runbook"]).is_file()


def test_alert_rules_are_valid() -> None:
    """Prometheus' own tool accepts the rules."""
    promtool = components.need("promtool")
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_and_do_not(tmp_path: Path) -> None:
    """Heat, an ECC error, waiting for data and a standstill fire; the same series in good order fire nothing."""
    promtool = components.need("promtool")
    job = 'rankscope_job="j"'
    gpu = f'{{{job}, hw_id="GPU-1", host_name="h"}}'
    step = f'{{{job}, rankscope_rank="0", rankscope_clock="host"}}'
    wait = f'{{{job}, rankscope_rank="0", rankscope_clock="host", rankscope_phase="data_wait"}}'

    def series(heat: str, ecc: str, waited: str, advanced: str) -> list[dict[str, str]]:
        return [
            {"series": f"rankscope_gpu_throttle_hw_thermal_nanoseconds_total{gpu}", "values": heat},
            {"series": f"rankscope_gpu_ecc_uncorrected_total{gpu}", "values": ecc},
            {"series": f"rankscope_step_phase_duration_seconds_sum{wait}", "values": waited},
            {"series": f"rankscope_step_duration_seconds_sum{step}", "values": "0+50x60"},
            {"series": f"rankscope_step_duration_seconds_count{step}", "values": "0+500x60"},
            {"series": f'rankscope_rank_step{{{job}, rankscope_rank="0"}}', "values": advanced},
        ]

    rules = {rule["alert"]: rule for rule in json.loads(RULES.read_text())["groups"][0]["rules"]}
    fires = {
        "RankscopeGpuThermalSlowdown": ({"hw_id": "GPU-1", "host_name": "h"}, "50%"),
        "RankscopeInputBound": ({}, "40%"),
        "RankscopeNoProgress": ({}, ""),
    }

    def expectations(firing: bool) -> list[dict[str, Any]]:
        found = []
        for name, (labels, value) in fires.items():
            rule = rules[name]
            text = rule["annotations"]["summary"].replace("{{ $labels.hw_id }}", "GPU-1")
            text = text.replace("{{ $labels.host_name }}", "h").replace("{{ $labels.rankscope_job }}", "j")
            text = text.replace("{{ $value | humanizePercentage }}", value)
            alert = {
                "exp_labels": {**rule["labels"], "rankscope_job": "j", **labels},
                "exp_annotations": {"summary": text, "runbook": rule["annotations"]["runbook"]},
            }
            found.append({"eval_time": "45m", "alertname": name, "exp_alerts": [alert] if firing else []})
        found.append({"eval_time": "45m", "alertname": "RankscopeStepSlower", "exp_alerts": []})
        return found

    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series("0+30000000000x60", "0x60", "0+20x60", "100x60"),
                "alert_rule_test": expectations(True),
            },
            {
                "interval": "1m",
                "input_series": series("0+1000000000x60", "3x60", "0+1x60", "100+500x60"),
                "alert_rule_test": [
                    *expectations(False),
                    {"eval_time": "45m", "alertname": "RankscopeGpuEccUncorrectable", "exp_alerts": []},
                ],
            },
        ],
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(tests))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """A real store that holds a job as our exporter sends it, and the job's last second."""
    window, _verdict = sample_window.thermal()
    host = next(iter(window.anchors))
    for rank in window.ranks.values():
        rank.steps.columns["gc_ns"] = array("d", [5e6]) * len(rank.steps)
    times = array("q", range(window.begin_ns, window.end_ns, 1_000_000_000))
    for metric, device in (
        ("gpu.ecc_uncorrected_volatile", sample_window.gpu_uuid(0)),
        ("gpu.throttle_hw_thermal_ns", sample_window.gpu_uuid(0)),
        ("gpu.throttle_sw_power_ns", sample_window.gpu_uuid(0)),
        ("host.pressure_io_some_ns", ""),
        ("agent.cpu_ratio", ""),
    ):
        values = array("d", (float(index) for index in range(len(times))))
        window.series[SeriesKey(host, metric, device)] = Series(times, values)  # type: ignore[index]
    with components.victoria_metrics(tmp_path_factory.mktemp("store")) as address:
        endpoint = f"{address}/opentelemetry"
        replay(window, otlp_targets({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_LOGS_EXPORTER": "none"}))
        urllib.request.urlopen(f"{address}/internal/force_flush", timeout=30).read()
        yield address, window.anchors[host].to_wall_ns(window.end_ns) / 1e9


def ask(address: str, expression: str, at_s: float) -> list[Any]:
    """The instant vector of an expression."""
    query = urllib.parse.urlencode({"query": expression, "time": at_s})
    with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=30) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
    return found


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_every_panel_finds_what_we_export(store: tuple[str, float], title: str) -> None:
    """Each panel's expression, run on a real store that was fed by our exporter, returns series of the job."""
    address, end_s = store
    expression = EXPRESSIONS[title].replace("$job", ".*").replace("$__rate_interval", "1h")
    components.wait_for(lambda: bool(ask(address, expression, end_s)), f"data for {title}")
    found = ask(address, expression, end_s)
    assert all(series["value"][1] not in ("NaN", "+Inf") for series in found)


def test_the_slow_rank_stands_out(store: tuple[str, float]) -> None:
    """The panels that say who is slow and who is waited for say rank 2, as the sample has it."""
    address, end_s = store
    values = {}
    for title in ("Own backward, on the device", "Wait for other ranks, on the device"):
        expression = EXPRESSIONS[title].replace("$job", ".*").replace("$__rate_interval", "1h")
        components.wait_for(lambda expression=expression: len(ask(address, expression, end_s)) == 4, title)
        found = ask(address, expression, end_s)
        values[title] = {row["metric"]["rankscope_rank"]: float(row["value"][1]) for row in found}
    own, wait = values.values()
    assert max(own, key=lambda rank: own[rank]) == "2"
    assert min(wait, key=lambda rank: wait[rank]) == "2"
