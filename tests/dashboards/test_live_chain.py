"""The whole way with real servers while a job runs: the agent, a collector, a store, its rule engine, Alertmanager, a
webhook. Nothing in it is ours but the agent, the dashboards and the rules."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import alert_chain
import components
import pytest
import stored_jobs
from scripted_receiver import HttpReceiver, http_receiver

from rankscope.clock import ClockAnchor
from rankscope.finding import Overhead
from rankscope.rules import judge
from rankscope.window import Window

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
SCENARIOS = ROOT / "simulator/scenarios"
RECORDING = "recording.victoriametrics.json"
ALERTS = "rankscope.rules.json"
#: Longer than any of these jobs takes to be seen through, on a machine that is busy.
MOST_SECONDS = 90
#: Steps that no job here gets through: one that waits for something ends when that has come, or when time is up.
ENDLESS = 100_000
#: Panels that a healthy-but-hot job on one host leaves empty -> why. `test_dashboards` shows each of them with data.
EMPTY = {
    "agent: Agents that fell silent": "every agent goes on",
    "agent: Events of loss": "nothing is lost",
    "fleet: Xids in the last hour": "the driver reports no Xid for heat",
    "hardware: Xids in the last hour": "the driver reports no Xid for heat",
    "hardware: InfiniBand congestion": "the simulated node has no InfiniBand",
    "hardware: InfiniBand faults": "the simulated node has no InfiniBand",
    "hardware: PCIe errors corrected": "the simulated node counts no errors of PCIe devices",
}


def panels() -> dict[str, str]:
    """Name of each panel -> its expression, variables filled in, an hour shortened to a minute."""
    found = {}
    for path in sorted((ROOT / "dashboards/grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", "10s").replace("1h", "60s")
                for variable in ("$job", "$rank", "$host"):
                    expression = expression.replace(variable, ".*")
                column = "" if target["refId"] == "A" else f" ({target['refId']})"
                found[f"{path.stem}: {panel['title']}{column}"] = expression
    return found


def hurried_rules() -> dict[str, dict[str, Any]]:
    """The committed recording rules and alerts, a second for a minute."""
    return {
        name: alert_chain.hurried(json.loads((alert_chain.RULES / name).read_text())) for name in (RECORDING, ALERTS)
    }


@contextmanager
def collected(folder: Path) -> Iterator[tuple[str, str, HttpReceiver]]:
    """A store behind a collector: the store's address, the collector's, and who gets the logs."""
    with ExitStack() as stack:
        logs = stack.enter_context(http_receiver())
        store = stack.enter_context(components.victoria_metrics(folder / "store"))
        forward = [
            "--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", logs.url,
            "--otlp-exporter-metrics-endpoint", f"{store}/opentelemetry/v1/metrics",
            "--otlp-exporter-logs-endpoint", f"{logs.url}/v1/logs",
            # What it cuts off a batch larger than this loses its resource, and so its job and host.
            "--batch-max-size", "1000000",
        ]  # fmt: skip
        collector = stack.enter_context(components.rotel(folder / "rotel", forward))
        yield store, collector.http, logs


@dataclass
class Seen:
    """What was there while a scenario ran."""

    #: Panels and recorded names that returned series.
    answered: set[str] = field(default_factory=set)
    #: Alerts that fired at any moment.
    fired: set[str] = field(default_factory=set)
    #: (receiver, alert), and (receiver, group), of ordinary days and of a maintenance window.
    told: set[tuple[str, str]] = field(default_factory=set)
    incidents: set[tuple[str, str]] = field(default_factory=set)
    told_in_maintenance: set[tuple[str, str]] = field(default_factory=set)
    #: Names of the log records that passed the collector.
    logged: set[str] = field(default_factory=set)
    output: str = ""


def watch(name: str, folder: Path, *, steps: int = ENDLESS, until: Callable[[Seen], bool] = lambda _: False) -> Seen:
    """Run a scenario with its agent exporting into the chain, and look all the while: so many steps, or until what is
    waited for was seen."""
    scenario = folder / "scenario.toml"
    scenario.write_text((SCENARIOS / f"{name}.toml").read_text().replace("steps = 120", f"steps = {steps}"))
    rules = hurried_rules()
    asked = everything_asked()
    seen = Seen()
    with ExitStack() as stack:
        store, collector, logs = stack.enter_context(collected(folder))
        pages, quiet = stack.enter_context(alert_chain.on_call(folder, store, rules))
        output = stack.enter_context((folder / "output").open("w"))
        script = str(Path(__file__).parents[1] / "exporting_scenario.py")
        command = [sys.executable, script, str(scenario), str(folder / "run"), collector]
        job = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + MOST_SECONDS
            while job.poll() is None and time.monotonic() < deadline and not until(seen):
                time.sleep(0.7)
                firing = components.query(store, 'ALERTS{alertstate="firing"}')
                seen.fired |= {each["metric"]["alertname"] for each in firing}
                # Beside a busy job every question costs it something: what has answered is not asked again.
                if components.query(store, "rankscope_finding_confidence_ratio"):
                    seen.answered |= {
                        key for key in asked.keys() - seen.answered if components.query(store, asked[key])
                    }
                seen.told, seen.incidents, seen.told_in_maintenance = pages.alerts(), pages.incidents(), quiet.alerts()
                seen.logged = {record.event_name for record in logs.log_records()}
            # As a person would end it.
            job.send_signal(signal.SIGINT)
            job.wait(components.START_SECONDS)
        finally:
            job.kill()
            job.wait()
        seen.told, seen.incidents, seen.told_in_maintenance = pages.alerts(), pages.incidents(), quiet.alerts()
        seen.logged = {record.event_name for record in logs.log_records()}
    seen.output = (folder / "output").read_text()
    return seen


def everything_asked() -> dict[str, str]:
    """Every panel and every recorded name -> its expression."""
    return panels() | {rule["record"]: rule["record"] for rule in hurried_rules()[RECORDING]["groups"][0]["rules"]}


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A GPU that slows itself for heat, until its operators were told and every panel had something to show."""
    expected = everything_asked().keys() - EMPTY.keys()

    def all_seen(seen: Seen) -> bool:
        alert = "RankscopeHardwareFinding"
        return alert in seen.fired and ("operators", alert) in seen.told and expected <= seen.answered

    return watch("gpu-thermal-slowdown", tmp_path_factory.mktemp("hot"), until=all_seen)


def test_every_panel_answers_while_the_job_runs(hot: Seen) -> None:
    """All panels and all recorded names have series, but for those that this job must leave empty."""
    asked = everything_asked().keys()
    assert asked >= EMPTY.keys()
    assert asked - hot.answered <= EMPTY.keys(), hot.output
    assert (
        not {"fleet: Xids in the last hour", "hardware: Xids in the last hour", "agent: Agents that fell silent"}
        & hot.answered
    )


def test_a_hot_gpu_is_one_incident_of_the_operators(hot: Seen) -> None:
    """The finding and its counters fire, no alert of another cause does, and one group of pages goes to operators."""
    assert "RankscopeHardwareFinding" in hot.fired, hot.output
    assert hot.fired <= {"RankscopeHardwareFinding", "RankscopeGpuThermalSlowdown", "RankscopeStraggler"}
    assert ("operators", "RankscopeHardwareFinding") in hot.told
    assert {receiver for receiver, _ in hot.incidents} == {"operators"}
    assert len(hot.incidents) == 1


def test_a_maintenance_window_is_silent(hot: Seen) -> None:
    """The same alerts, sent to an Alertmanager in its maintenance window, page nobody."""
    assert hot.told
    assert hot.told_in_maintenance == set()


def test_the_finding_passes_as_a_log_record_too(hot: Seen) -> None:
    """What the agent found left the collector beside the metrics."""
    assert "rankscope.finding" in hot.logged


#: Scenario -> alerts that may fire, and what is told of it: one incident.
FAULTS = {
    "input-bound": ({"RankscopeCodeFinding", "RankscopeInputBound"}, ("job-owner", "RankscopeCodeFinding")),
    "gpu-clocks-locked": (
        {"RankscopeEnvironmentFinding", "RankscopeStraggler"},
        ("operators", "RankscopeEnvironmentFinding"),
    ),
}


@pytest.mark.verify
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_incident_of_whom_it_concerns(name: str, tmp_path: Path) -> None:
    """Live, one scenario after the other: the right alert reaches the right team, once, and others stay silent."""
    may_fire, told = FAULTS[name]
    seen = watch(name, tmp_path, until=lambda seen: told in seen.told)
    assert seen.fired <= may_fire, seen.output
    assert told in seen.told, seen.output
    assert len(seen.incidents) == 1
    assert "operators" not in {to for to, _ in seen.told_in_maintenance}


@pytest.mark.verify
def test_nobody_is_told_of_a_sound_job(tmp_path: Path) -> None:
    """Nothing fires while nothing is wrong."""
    seen = watch("healthy", tmp_path, steps=160)
    assert seen.fired == set(), seen.output
    assert seen.told == set()


def replayed(folder: Path, name: str, fault: str, steps: int) -> Window:
    """A generated job whose last step is now, with the findings that its agents held."""
    window = stored_jobs.generated(folder, name, fault, ranks=4, steps=steps)
    found = judge(window, Overhead(None, None, None)).findings
    window = stored_jobs.with_counted_events(window, found)
    return replace(window, anchors={host: ClockAnchor(window.end_ns, time.time_ns()) for host in window.anchors})


def test_slow_code_is_one_incident_of_the_jobs_owner(tmp_path: Path) -> None:
    """A job with a slow loader, up to now: the rules as committed, at their own pace, tell its owner once."""
    fault = '[[fault]]\nclass = "input-bound"\nseverity = 60\nfrom_step = 100\n'
    window = replayed(tmp_path, "loader", fault, steps=500)
    with ExitStack() as stack:
        store, collector, _logs = stack.enter_context(collected(tmp_path))
        began_s = time.time() - (window.end_ns - window.begin_ns) / 1e9
        stored_jobs.send(window, store, otlp=collector)
        components.wait_for(
            lambda: bool(components.query(store, "rankscope_finding_confidence_ratio[40s]")), "the newest finding"
        )
        rules = {name: json.loads((alert_chain.RULES / name).read_text()) for name in (RECORDING, ALERTS)}
        alert_chain.evaluate_past(tmp_path / "past", store, rules, began_s, time.time())
        # Since when alerts hold is looked up once, when vmalert begins.
        firing = 'ALERTS{alertstate="firing", alertname="RankscopeCodeFinding"}'
        components.wait_for(lambda: bool(components.query(store, f"last_over_time({firing}[30m])")), "the past")
        pages, quiet = stack.enter_context(alert_chain.on_call(tmp_path, store, rules))
        components.wait_for(lambda: bool(pages.alerts()), "the owner to be told")
        assert pages.incidents() == {("job-owner", '{}/{team="owner"}:{rankscope_job="loader"}')}
        assert {name for _, name in pages.alerts()} <= {"RankscopeCodeFinding", "RankscopeInputBound"}
        assert not {to for to, _ in quiet.alerts()} & {"operators"}
