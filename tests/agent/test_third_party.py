"""Probes that other packages bring: installed, read, recorded; whatever they do costs only themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rankscope.agent import third_party
from rankscope.agent.third_party import GROUP, third_party_probes
from rankscope.metrics import metric_named
from rankscope.probes.registry import built_in
from rankscope.reading import Group, Outcome, Probe, ProbeResult, Reading
from rankscope.testing import FakeClock, FakeHost, FakeProbe, SimulatedAgent, run_probes

PAGE = Path(__file__).parents[2] / "docs/own-probes.md"
EXAMPLE, _TEST = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def install(directory: Path, module: str, source: str, **entries: str) -> None:
    """A distribution in a directory, as pip leaves one: a module and its entry points."""
    (directory / f"{module}.py").write_text(source)
    info = directory / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {module}:{target}" for name, target in entries.items()]
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")


def doctor(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`rankscope doctor --json` where the distributions of a directory are installed."""
    return subprocess.run(
        [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "doctor", "--json", *arguments],
        env=os.environ | {"PYTHONPATH": str(directory), "RANKSCOPE_STATE": str(directory / "state")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_documented_example_is_found_and_read(tmp_path: Path) -> None:
    """Twenty lines and one entry point: `doctor` lists the installed probe as it lists ours."""
    assert len(EXAMPLE.strip().splitlines()) <= 25
    hwmon = tmp_path / "hwmon"
    source = EXAMPLE.replace("/sys/class/hwmon", str(hwmon))
    install(
        tmp_path,
        "fan_package",
        source + "\n\ndef broken():\n    raise OSError('no bus')\n",
        fans="FanProbe",
        bad="broken",
    )
    (hwmon / "hwmon0").mkdir(parents=True)
    (hwmon / "hwmon0/fan1_input").write_text("2400\n")
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stderr
    found = {line["name"]: line for line in json.loads(done.stdout)["sources"]}
    assert found["fans"]["state"] == "ok"
    assert found["bad (fan_package:broken)"]["state"] == "failed"
    assert "OSError: no bus" in found["bad (fan_package:broken)"]["reason"]


def test_the_documented_test_passes(tmp_path: Path) -> None:
    """What the page says about tests is a test."""
    space: dict[str, object] = {}
    exec(EXAMPLE + _TEST, space)
    test = space["test_fans"]
    assert callable(test)
    test(tmp_path)


def test_its_readings_are_recorded_beside_ours(tmp_path: Path) -> None:
    """Through the shipped loop into a recording; its name says unit and kind to whoever exports it."""
    from rankscope.agent.config import RuleSettings, Settings
    from rankscope.agent.job import WatchedJob
    from rankscope.agent.load import load_window
    from rankscope.agent.sources import Sources

    clock = FakeClock()
    settings = Settings(rules=RuleSettings(live=False))
    path = tmp_path / "a.db"
    job = WatchedJob(job="job", host="node", recording=path, rings=tmp_path, settings=settings, clock=clock, environ={})
    theirs = FakeProbe("fans", lambda: ProbeResult([Reading("fan.turns_total", 7, clock.monotonic_ns(), "fan1")]))
    hung = FakeProbe("hung", lambda: threading.Event().wait(30) and None)
    sources = Sources([theirs, hung, FakeProbe("ours")], list, isolated=frozenset({"fans", "hung"}))
    SimulatedAgent([job], settings, sources, clock).run(30)
    window = load_window([path])
    rows = {(key.metric, key.device): len(series.values) for key, series in window.series.items()}
    assert rows["fan.turns_total", "fan1"] >= 29
    assert rows["host.cpu_count", ""] >= 29
    assert [event.kind for event in window.events if "hung" in event.text] == ["probe-stalled"]


@pytest.mark.parametrize(
    ("name", "unit", "counter", "otel"),
    [
        ("fan.speed_rpm", "{rotation}/min", False, "fan.speed_rpm"),
        ("fan.turns_total", "1", True, "fan.turns_total"),
        ("link.sent_bytes_total", "By", True, "link.sent_bytes_total"),
        ("link.rate_bytes_per_second", "By/s", False, "link.rate_bytes_per_second"),
        ("7 böse", "1", False, "m7_b_se"),
        ("gpu.power_watts", "W", False, "hw.power"),
    ],
)
def test_a_name_says_unit_and_kind(name: str, unit: str, counter: bool, otel: str) -> None:
    """A metric nobody declared is exported with what its name says."""
    metric = metric_named(name)
    assert (metric.unit, metric.counter, metric.otel) == (unit, counter, otel)


def entry(value: str, name: str = "theirs") -> EntryPoint:
    """An entry point of this test module's makers."""
    return EntryPoint(name, f"third_party_makers:{value}", GROUP)


def hang() -> Probe:
    """Does not load."""
    threading.Event().wait(30)
    raise AssertionError


class _Odd(FakeProbe):
    """A probe with something changed."""

    def __init__(self, **changed: object) -> None:
        super().__init__("odd")
        for name, value in changed.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (hang, "did not load within"),
        (lambda: None, "is no probe"),
        (lambda: _Odd(name=""), "its name is ''"),
        (lambda: _Odd(name="cpu"), 'names its probe "cpu", as another is named'),
        (lambda: _Odd(read=None), "it has no read()"),
        (lambda: _Odd(groups=()), "groups is ()"),
        (lambda: _Odd(groups=(Group("a", 0, 0, ""),)), "a group that cannot be"),
        (lambda: _Odd(groups=(Group("a", 10**9, 2 * 10**9, ""),)), "a group that cannot be"),
        (lambda: _Odd(groups=("a",)), "a group that cannot be"),
        (lambda: _Odd(groups=(Group("a", 10**9, 10**9, ""), Group("a", 10**9, 10**9, ""))), "two groups of one name"),
    ],
)
def test_one_that_cannot_be_loaded_says_why(
    make: Callable[[], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in the list as a source that failed, in one line, and the others are there."""
    monkeypatch.setattr(third_party, "LOAD_SECONDS", 0.2)
    module = type(sys)("third_party_makers")
    module.make = make  # type: ignore[attr-defined]
    module.good = FakeProbe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "third_party_makers", module)
    bad, good = third_party_probes({"cpu"}, [entry("make", "a"), entry("good", "b")])
    assert good.name == "fake"
    said = run_probes([bad, good], seconds=20)
    [told] = [outcome for outcome in said.outcomes if outcome[0] == bad.name]
    assert told[3] is Outcome.FAILED
    assert reason in told[4]
    assert "\n" not in told[4]
    assert said.reads["fake/all"] >= 19


def test_endless_series_are_refused() -> None:
    """Names that are new at each read would fill the recording and the store behind it."""
    numbers = iter(range(10**9))
    probe = FakeProbe("leaks", lambda: ProbeResult([Reading("a", 1, 1, str(next(numbers))) for _ in range(1000)]))
    said = run_probes([probe], seconds=60)
    assert [event.kind for event in said.events] == ["probe-failed"]
    assert "more than 5000 series" in said.events[0].text
    assert len(said.values("a")) == 5000


def test_a_close_that_hangs_does_not_hold_the_end() -> None:
    """The agent ends although a probe does not close."""
    probe = FakeProbe("clings")
    probe.close = lambda: threading.Event().wait(30) and None  # type: ignore[method-assign]
    run_probes([probe], seconds=2, deadline_seconds=0.3)


def test_ours_pass_the_check_for_others(tmp_path: Path) -> None:
    """Every built-in probe is one that would be accepted, so the page asks of others what we do."""
    for probe in built_in():
        assert third_party._fault(probe, ()) is None
        probe.close()
    assert FakeHost(tmp_path).proc.is_dir()
