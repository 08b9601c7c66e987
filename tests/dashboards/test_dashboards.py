"""Dashboards, recording rules and alerts: every expression runs on a real store that our exporter fed, and alerts fire
when they should and not otherwise."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
import urllib.parse
import urllib.request
from array import array
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import components
import pytest
import sample_window
import stored_jobs

from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.replay import replay
from rankscope.metrics import METRICS
from rankscope.metrics_rules import pack
from rankscope.records import GroupRecord
from rankscope.window import Columns, Series, SeriesKey

ROOT = Path(__file__).parents[2]
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards/grafana").glob("*.json"))}
RULE_FILES = ROOT / "dashboards/rules"
RULES = RULE_FILES / "rankscope.rules.json"
RECORDING = {
    store: json.loads((RULE_FILES / f"recording.{store}.json").read_text())["groups"][0]["rules"]
    for store in ("prometheus", "victoriametrics")
}
PANELS = {
    f"{name}: {panel['title']}": panel
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
}
#: Panels that are empty while all is well: here nothing is lost, silent, or counts up in an hour of one minute.
EMPTY_WHILE_WELL = {"agent: Agents that fell silent"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_are_whole(name: str) -> None:
    """Every panel has an id of its own, a question, a place of its own, and the store as a variable."""
    dashboard = DASHBOARDS[name]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for index, one in enumerate(places):
        assert one["x"] + one["w"] <= 24
        for other in places[index + 1 :]:
            apart = (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            )
            assert apart
    asked = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["description"].endswith((".", "?")) for panel in asked)
    assert {panel["datasource"]["uid"] for panel in asked} == {"${datasource}"}
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set("".join(target["expr"] for panel in asked for target in panel["targets"]).split("$")[1:])
    assert {word.split('"')[0] for word in used if word[0].isalpha()} <= names
    assert dashboard["uid"] == f"rankscope-{name}"


def links(panel: dict[str, Any]) -> list[dict[str, str]]:
    """The links of a panel's series, and of single columns of a table."""
    found: list[dict[str, str]] = list(panel["fieldConfig"]["defaults"].get("links", []))
    for override in panel["fieldConfig"]["overrides"]:
        found += [link for each in override["properties"] if each["id"] == "links" for link in each["value"]]
    return found


def headings(panel: dict[str, Any]) -> dict[str, str]:
    """Label or value of a table -> its heading."""
    (organised,) = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
    renamed: dict[str, str] = organised["renameByName"]
    return renamed


@pytest.mark.parametrize("name", [name for name, panel in PANELS.items() if panel["type"] == "table"])
def test_a_table_speaks_of_its_own_columns(name: str) -> None:
    """What is sorted, coloured, worded or linked by is a heading of the table: a misspelt one would do nothing."""
    panel = PANELS[name]
    shown = set(headings(panel).values())
    assert {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]} <= shown
    (ordered,) = [each["options"]["sort"] for each in panel["transformations"] if each["id"] == "sortBy"]
    assert {each["field"] for each in ordered} <= shown
    for link in links(panel):
        # A cell has no labels: `__field.labels` would be empty there.
        assert "__field.labels" not in link["url"]
        assert set(re.findall(r'__data\.fields\["(.+?)"\]', link["url"])) <= shown


def test_drill_downs_lead_somewhere() -> None:
    """A link names a dashboard that is there, and variables that it has."""
    by_uid = {dashboard["uid"]: dashboard for dashboard in DASHBOARDS.values()}
    followed = 0
    for panel in PANELS.values():
        for link in links(panel):
            path, _, query = link["url"].partition("?")
            variables = {variable["name"] for variable in by_uid[path.removeprefix("/d/")]["templating"]["list"]}
            named = {part.split("=")[0].removeprefix("var-") for part in query.split("&") if part.startswith("var-")}
            assert named
            assert named <= variables
            followed += 1
    assert followed > 4


def test_alerts_name_runbooks_that_exist() -> None:
    """The page that an alert points to is there; one that names the finding's class points to that class's page."""
    rules = json.loads(RULES.read_text())["groups"][0]["rules"]
    assert rules
    for rule in rules:
        runbook = rule["annotations"]["runbook"]
        assert "{{ $labels.rankscope_class }}" in runbook or (ROOT / runbook).is_file(), runbook


def test_rules_are_valid() -> None:
    """Prometheus' own tool accepts alerts and recording rules."""
    promtool = components.need("promtool")
    files = [str(RULES), str(RULE_FILES / "recording.prometheus.json")]
    done = subprocess.run([promtool, "check", "rules", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_stores_get_the_same_names() -> None:
    """The two files record the same series, and no dashboard or alert reads a quantile from anything else."""
    assert [rule["record"] for rule in RECORDING["prometheus"]] == [
        rule["record"] for rule in RECORDING["victoriametrics"]
    ]
    for panel in PANELS.values():
        assert not any("histogram_quantile" in target["expr"] for target in panel["targets"])
    assert "histogram_quantile" not in RULES.read_text()


JOB = 'rankscope_job="j"'
GPU = f'{{{JOB}, hw_id="GPU-1", host_name="h"}}'
STEP = f'{{{JOB}, rankscope_rank="0", rankscope_clock="host"}}'
WAIT = f'{{{JOB}, rankscope_rank="0", rankscope_clock="host", rankscope_phase="data_wait"}}'
LINK = f'{{{JOB}, hw_id="GPU-1", host_name="h", rankscope_link="3"}}'


def finding(side: str, advice: str = "act") -> str:
    """Labels of a finding's series."""
    return (
        f'{{{JOB}, rankscope_class="c", rankscope_side="{side}", rankscope_advice="{advice}", rankscope_rank="2",'
        ' hw_id="GPU-1", host_name="h"}'
    )


#: Series -> (values while something is wrong, values while all is well), a minute apart.
SERIES = {
    f"rankscope_gpu_throttle_hw_thermal_nanoseconds_total{GPU}": ("0+30000000000x100", "0+1000000000x100"),
    f"rankscope_gpu_ecc_uncorrected_total{GPU}": ("0x90 1x10", "3x100"),
    f"rankscope_nvlink_replay_errors_total{LINK}": ("0+2x100", "7x100"),
    f'rankscope_events_total{{{JOB}, rankscope_event_kind="xid", rankscope_xid="79", hw_id="GPU-1", host_name="h"}}': (
        "1x85 2x15",
        "1x100",
    ),
    f"rankscope_step_phase_duration_seconds_sum{WAIT}": ("0+20x100", "0+1x100"),
    f"rankscope_step_duration_seconds_sum{STEP}": ("0+40x70 2840+60x30", "0+50x100"),
    f"rankscope_step_duration_seconds_count{STEP}": ("0+500x100", "0+500x100"),
    f'rankscope_rank_step{{{JOB}, rankscope_rank="0"}}': ("100x100", "100+500x100"),
    f'rankscope_agent_cpu_ratio{{{JOB}, host_name="h"}}': ("0.01x80", "0.01x100"),
    f'rankscope_agent_cpu_ratio{{{JOB}, host_name="other"}}': ("0.01x100", "0.01x100"),
    # A job that is over is no silence.
    'rankscope_agent_cpu_ratio{rankscope_job="over", host_name="h"}': ("0.01x80", "0.01x80"),
    f"rankscope_finding_confidence_ratio{finding('hardware')}": ("0.97x100", "0.5x100"),
    f"rankscope_finding_confidence_ratio{finding('code')}": ("0.97x100", "0.97x5"),
    f"rankscope_finding_confidence_ratio{finding('environment', 'watch')}": ("0.97x100", "0.5x100"),
    f"rankscope_finding_cost_milliseconds{finding('hardware')}": ("25x100", "2x100"),
    f"rankscope_job:step_duration_seconds:mean10m{{{JOB}}}": ("0.1x100", "0.1x100"),
    f'rankscope_job:step_duration_seconds:p99{{{JOB}, quantile="p99"}}': ("0.2x70 0.5x30", "0.25x100"),
    f'rankscope_job:step_duration_seconds:p50{{{JOB}, quantile="p50"}}': ("0.1x100", "0.1x100"),
}


def test_alerts_fire_and_do_not(tmp_path: Path) -> None:
    """Every alert fires on series in which its fault is there, and none on the same series in good order."""
    promtool = components.need("promtool")
    names = [rule["alert"] for rule in json.loads(RULES.read_text())["groups"][0]["rules"]]

    def case(wrong: bool) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": [{"series": series, "values": values[not wrong]} for series, values in SERIES.items()],
            # promtool compares whole alerts; whether one fires is what ALERTS tells, with its name alone.
            "promql_expr_test": [
                {
                    "expr": f'count by (alertname) (ALERTS{{alertname="{name}", alertstate="firing"}})',
                    "eval_time": "95m",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if wrong else [],
                }
                for name in names
            ],
        }

    path = tmp_path / "cases.json"
    path.write_text(
        json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case(True), case(False)]})
    )
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_step_does_not_page(tmp_path: Path) -> None:
    """A single step that took a minute, and an hour of maintenance of the loader, are no alert of the job."""
    promtool = components.need("promtool")
    series = {
        f"rankscope_step_duration_seconds_sum{STEP}": "0+50x90 4560+50x30",
        f"rankscope_step_duration_seconds_count{STEP}": "0+500x120",
        f"rankscope_step_phase_duration_seconds_sum{WAIT}": "0+1x90 150+1x30",
    }
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{minute}m", "exp_samples": []}
            for minute in (92, 100, 110, 118)
        ],
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_first_xid_pages_and_an_old_one_does_not(tmp_path: Path) -> None:
    """A counter that begins with its first event has no rise to see; one that is told again after half an hour of
    silence is not new."""
    promtool = components.need("promtool")
    of_gpu = 'rankscope_events_total{rankscope_event_kind="xid", hw_id="GPU-%d"}'
    case = {
        "interval": "1m",
        "input_series": [
            {"series": of_gpu % 1, "values": "_x60 1x30"},
            {"series": of_gpu % 2, "values": "1x30 _x29 1x30"},
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (hw_id) (ALERTS{alertname="RankscopeXid", alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": '{hw_id="GPU-1"}', "value": 1}] if fires else [],
            }
            for minute, fires in ((55, False), (63, True), (85, False))
        ],
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_routes_hardware_to_operators_and_code_to_the_owner() -> None:
    """Every team that an alert names has a route, and every route a receiver."""
    configuration = json.loads((RULE_FILES / "alertmanager.json").read_text())
    receivers = {receiver["name"] for receiver in configuration["receivers"]}
    routes = configuration["route"]["routes"]
    assert {route["receiver"] for route in routes} <= receivers
    matched = {route["matchers"][0].split('"')[1] for route in routes}
    rules = json.loads(RULES.read_text())["groups"][0]["rules"]
    assert {rule["labels"]["team"] for rule in rules} == matched
    assert {rule["labels"]["team"] for rule in rules if rule["labels"]["side"] == "hardware"} == {"operators"}
    assert {rule["labels"]["team"] for rule in rules if rule["labels"]["side"] == "code"} == {"owner"}


#: Device of a series of each family, where it is not a GPU.
DEVICES = {
    "nvlink": sample_window.gpu_uuid(2) + "/nvlink:1",
    "gpu_process": sample_window.gpu_uuid(2) + "/pid:7",
    "process": "rank:2",
    "agent": "nvml",
    "finding": pack(("gpu-thermal-slowdown", "hardware", "act", 2, sample_window.gpu_uuid(2))),
    "nfs": "READ /data",
    "host": "",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, float]]:
    """A real store that holds a job as our exporter sends it, every metric of ours included, and its last second."""
    window, _verdict = sample_window.thermal()
    host = next(iter(window.anchors))
    for rank in window.ranks.values():
        rank.steps.columns["gc_ns"] = array("d", [5e6]) * len(rank.steps)
        known = {"step": "step", "own_ns": "backward_own_ns", "wait_ns": "backward_wait_ns"}
        count = len(rank.device)
        rank.groups["default"] = Columns(
            {
                field.name: rank.device.columns[known[field.name]]
                if field.name in known
                else array("d", [1.0 if field.name in ("size", "count", "on_device") else math.nan]) * count
                for field in fields(GroupRecord)
                if field.name not in ("group", "members")
            }
        )
    times = array("q", range(window.begin_ns, window.end_ns, 1_000_000_000))
    rising = array("d", (float(index + 1) for index in range(len(times))))
    series = dict(window.series)
    for metric in METRICS:
        family = metric.partition(".")[0]
        devices = [DEVICES.get(family, sample_window.gpu_uuid(2) if family == "gpu" else "device-0")]
        if metric == "agent.cpu_ratio":
            devices = [""]
        if family == "event":
            devices = [pack(("xid", 79, sample_window.gpu_uuid(2))), pack(("ring-overwritten", None, None))]
        for device in devices:
            series.setdefault(SeriesKey(host, metric, device), Series(times, rising))
    window = replace(window, series=series)
    with components.victoria_metrics(tmp_path_factory.mktemp("store")) as address:
        endpoint = f"{address}/opentelemetry"
        replay(window, otlp_targets({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_LOGS_EXPORTER": "none"}))
        end_s = window.anchors[host].to_wall_ns(window.end_ns) / 1e9
        flush(address)
        components.wait_for(lambda: bool(ask(address, "rankscope_rank_step", end_s)), "the steps")
        record(address, end_s)
        yield address, end_s


def flush(address: str) -> None:
    """Have the store show what it was sent."""
    urllib.request.urlopen(f"{address}/internal/force_flush", timeout=30).read()


def record(address: str, at_s: float) -> None:
    """Do what a rule engine does: evaluate the recording rules and write what they give."""
    lines = []
    for rule in RECORDING["victoriametrics"]:
        for row in ask(address, rule["expr"].replace("[5m]", "[1h]").replace("[10m]", "[1h]"), at_s):
            labels = {key: value for key, value in row["metric"].items() if key != "__name__"} | rule.get("labels", {})
            named = ",".join(f'{key}="{value}"' for key, value in labels.items())
            lines.append(f"{rule['record']}{{{named}}} {row['value'][1]} {int(at_s * 1000)}")
    assert {line.split("{")[0] for line in lines} == {rule["record"] for rule in RECORDING["victoriametrics"]}
    body = "\n".join(lines).encode()
    urllib.request.urlopen(f"{address}/api/v1/import/prometheus", data=body, timeout=30).read()
    flush(address)
    components.wait_for(lambda: bool(ask(address, lines[0].split("{")[0], at_s)), "what was recorded")


def ask(address: str, expression: str, at_s: float) -> list[Any]:
    """The instant vector of an expression."""
    query = urllib.parse.urlencode({"query": expression, "time": at_s})
    with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=30) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
    return found


def bare(expression: str) -> str:
    """A panel's expression with its variables filled in."""
    for name in ("$job", "$rank", "$host"):
        expression = expression.replace(name, ".*")
    return expression.replace("$__rate_interval", "1h")


@pytest.mark.parametrize("name", [name for name in PANELS if name not in EMPTY_WHILE_WELL])
def test_every_panel_finds_what_we_export(store: tuple[str, float], name: str) -> None:
    """Each panel's expressions, run on a real store that was fed by our exporter, return series of the job; of a table,
    with no label that has no heading."""
    address, end_s = store
    panel = PANELS[name]
    for target in panel["targets"]:
        found = ask(address, bare(target["expr"]), end_s)
        assert found, target["expr"]
        assert all(series["value"][1] not in ("NaN", "+Inf") for series in found)
        if panel["type"] == "table":
            assert {label for series in found for label in series["metric"]} <= headings(panel).keys()


def test_prometheus_answers_as_victoriametrics_does(store: tuple[str, float], tmp_path: Path) -> None:
    """The same samples in a real Prometheus: each expression of each panel gives as many series, and no error."""
    address, end_s = store
    job = ask(address, "rankscope_rank_step", end_s)[0]["metric"]["rankscope_job"]
    expressions = [bare(target["expr"]) for panel in PANELS.values() for target in panel["targets"]]
    with stored_jobs.prometheus_with(address, job, end_s, tmp_path) as prometheus:
        for expression in expressions:
            assert len(ask(prometheus, expression, end_s)) == len(ask(address, expression, end_s)), expression


@pytest.mark.parametrize("rule", json.loads(RULES.read_text())["groups"][0]["rules"], ids=lambda rule: rule["alert"])
def test_the_store_understands_every_alert(store: tuple[str, float], rule: dict[str, Any]) -> None:
    """VictoriaMetrics evaluates each alert's expression, too."""
    address, end_s = store
    assert isinstance(ask(address, rule["expr"], end_s), list)


def test_silence_shows_an_hour_later(store: tuple[str, float]) -> None:
    """The one panel that is empty while all is well names the host once it has been silent."""
    address, end_s = store
    (name,) = EMPTY_WHILE_WELL
    assert ask(address, bare(PANELS[name]["targets"][0]["expr"]), end_s + 3600)


def _minutes(values: str) -> list[float]:
    """The values of promtool's notation: `AxN` and `A+BxN` are a value and N more."""
    found: list[float] = []
    for part in values.split():
        begin, _, rest = part.partition("+")
        rise, _, times = rest.partition("x") if rest else ("0", "", "")
        if not rest:
            begin, _, times = begin.partition("x")
        found += [float(begin) + float(rise) * index for index in range(int(times) + 1)]
    return found


@pytest.mark.parametrize("wrong", [True, False])
def test_every_alert_has_data_in_the_store_where_its_fault_is(tmp_path: Path, wrong: bool) -> None:
    """On VictoriaMetrics, too, each expression gives series while its fault is there, and none in good order."""
    at_s, minute = time.time() - 7200, 60_000
    lines = [
        f"{series} {value} {int(at_s * 1000) + index * minute}"
        for series, values in SERIES.items()
        for index, value in enumerate(_minutes(values[not wrong]))
    ]
    with components.victoria_metrics(tmp_path) as address:
        body = "\n".join(lines).encode()
        urllib.request.urlopen(f"{address}/api/v1/import/prometheus", data=body, timeout=30).read()
        flush(address)
        components.wait_for(lambda: bool(ask(address, "rankscope_rank_step", at_s + 95 * 60)), "the series")
        rules = json.loads(RULES.read_text())["groups"][0]["rules"]
        found = {rule["alert"] for rule in rules if ask(address, rule["expr"], at_s + 95 * 60)}
        assert found == ({rule["alert"] for rule in rules} if wrong else set())


def test_tails_are_recorded_in_order(store: tuple[str, float]) -> None:
    """p50 is at most p95 and p95 at most p99, and all lie near the sample's steps of 100 ms and more."""
    address, end_s = store
    values = [
        float(ask(address, f"rankscope_job:step_duration_seconds:{name}", end_s)[0]["value"][1])
        for name in ("p50", "p95", "p99")
    ]
    assert values == sorted(values)
    assert 0.05 < values[0] < 0.5


def test_the_slow_rank_stands_out(store: tuple[str, float]) -> None:
    """The panels that say who is slow and who is waited for say rank 2, as the sample has it."""
    address, end_s = store
    for title in ("job: Own backward, above the median rank's", "job: Share of the step that others wait for a rank"):
        found = ask(address, bare(PANELS[title]["targets"][0]["expr"]), end_s)
        assert len(found) == 4
        values = {row["metric"]["rankscope_rank"]: float(row["value"][1]) for row in found}
        limits = PANELS[title]["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert [rank for rank, value in values.items() if value >= limits[1]["value"]] == ["2"]


def test_a_finding_says_where(store: tuple[str, float]) -> None:
    """The row of a finding at a rank names the host that the rank runs on, and that it is to be acted upon."""
    address, end_s = store
    cost, sure, act = (
        ask(address, bare(target["expr"]), end_s) for target in PANELS["job: Findings that hold"]["targets"]
    )
    assert len(cost) == len(sure) == len(act) == 1
    (where,) = {tuple(sorted(rows[0]["metric"].items())) for rows in (cost, sure, act)}
    (place,) = ask(address, 'rankscope_rank_info{rankscope_rank="2"}', end_s)
    assert dict(where) | {"host_name": place["metric"]["host_name"], "rankscope_rank": "2"} == dict(where)
    assert act[0]["value"][1] == "1"
