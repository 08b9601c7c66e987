"""`doctor`: every source with its state, why, and what would change it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from rankscope.agent import doctor as doctor_module
from rankscope.agent.config import RootSettings, Settings
from rankscope.agent.doctor import Found, State, document, examine, print_examination
from rankscope.agent.doctor import ask as ask_all
from rankscope.agent.privileges import GRANTS, PROFILES, Facts, gather_facts, parse_capabilities, profile_of
from rankscope.errors import PermissionDenied, Unsupported
from rankscope.reading import Outcome, Probe, ProbeResult, Reading
from rankscope.simulator.build import LIBRARY, build
from rankscope.simulator.state import STATE_VARIABLE, NodeState
from rankscope.testing import FakeProbe

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/doctor.schema.json").read_text())


def doctor(tmp_path: Path, config: str = "", *, json_output: bool = True) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    (tmp_path / "agent.toml").write_text(config)
    command = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "doctor"]
    command += ["--json"] * json_output + ["--config", str(tmp_path / "agent.toml")]
    places = {"RANKSCOPE_STATE": str(tmp_path), "RANKSCOPE_DIR": str(tmp_path)}
    return subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=120)


def test_it_says_what_can_be_read_and_what_would_change_that(tmp_path: Path) -> None:
    """Every source has a state; a library and a log that are not there are absent, each with its reason."""
    done = doctor(tmp_path, f"[roots]\nnvml_library = '{tmp_path}/libnvml.so'\nkernel_log = '{tmp_path}/kmsg'\n")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    jsonschema.validate(said, SCHEMA)
    found = {(line["name"], line["state"]): line for line in said["sources"]}
    assert str(tmp_path) in found["nvml", "absent"]["reason"]
    assert str(tmp_path) in found["kernel-log", "absent"]["reason"]
    for name in ("cpu", "memory", "network", "rings", "recordings", "process"):
        assert (name, "ok") in found
    assert all(line["todo"] for key, line in found.items() if key[1] != "ok")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[roots]\nnvm = 'x'\n", 'unknown key "roots.nvm"'),
        ("[probes]\ndisabled = ['gpu']\n", '"gpu"'),
        ("x", "not TOML"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(tmp_path: Path, config: str, said: str) -> None:
    """Nonsense ends with status 2 and says where."""
    done = doctor(tmp_path, config)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def ask(*probes: Probe) -> dict[tuple[str, State], Found]:
    """What the doctor finds of these probes, by name and state."""
    return {(line.name, line.state): line for heard in ask_all(probes) for line in heard.found()}


def test_each_way_to_fail_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """ok, absent, unsupported in part, no permission, failed, hanging: all at once, none holds up another."""
    monkeypatch.setattr("rankscope.agent.doctor._ASK_FOR_SECONDS", 1.0)

    def fail(error: Exception) -> ProbeResult:
        raise error

    part = ProbeResult([Reading("a", 1, 1)], (), [("GPU-0", Outcome.UNSUPPORTED, "no ECC; buy another")])
    began = time.monotonic()
    found = ask(
        FakeProbe("well"),
        FakeProbe("part", lambda: part),
        FakeProbe("none", lambda: fail(Unsupported("not here"))),
        FakeProbe("locked", lambda: fail(PermissionDenied("no", todo="ask root"))),
        FakeProbe("broken", lambda: fail(ValueError("odd"))),
        FakeProbe("junk", lambda: "junk"),  # type: ignore[arg-type,return-value]
        FakeProbe("hangs", lambda: threading.Event().wait(60) and None),
    )
    assert time.monotonic() - began < 30
    assert found["well", State.OK].reason == "1 metrics"
    assert ("part", State.OK) in found
    unsupported = found["part", State.UNSUPPORTED]
    assert (unsupported.reason, unsupported.todo, list(unsupported.devices)) == ("no ECC", "buy another", ["GPU-0"])
    assert found["none", State.ABSENT].reason == "not here"
    assert found["locked", State.NO_PERMISSION].todo == "ask root"
    assert found["broken", State.FAILED].reason == "ValueError: odd"
    assert "junk" in found["junk", State.FAILED].reason
    assert "no answer within 1 s" in found["hangs", State.FAILED].reason
    assert len(found) == 8


def test_a_simulated_node_is_seen_with_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs of a real helper and library are counted as sources too; what a T4 lacks names the T4s, once each."""
    node = NodeState.create(tmp_path / "node", profile="T4", gpus=2)
    monkeypatch.setenv(STATE_VARIABLE, str(node.path))
    settings = Settings(roots=RootSettings(nvml_library=str(build(tmp_path) / LIBRARY)))
    lines = [line for line in examine(settings) if line.name == "nvml"]
    assert lines[0].state is State.OK
    assert int(lines[0].reason.split()[0]) > 20
    lacking = [line for line in lines if line.state is State.UNSUPPORTED]
    assert any({*line.devices} == {gpu.uuid for gpu in node.gpus} for line in lacking)
    assert len({line.reason for line in lacking}) == len(lacking)


def test_the_table_is_for_people() -> None:
    """Many lines of one source are cut to three and a count; markup in a reason is text."""
    found = [Found("nvml", State.UNSUPPORTED, f"[red]metric {n}", "nothing", ["GPU-a", "GPU-b"]) for n in range(9)]
    console = Console(width=120, record=True, file=io.StringIO())
    profile = profile_of(Facts(False, frozenset(), True, False, False, False, True))
    print_examination(found, profile, console)
    text = console.export_text()
    assert "2 devices: [red]metric 0" in text
    assert "metric 3" not in text
    assert "and 6 more" in text
    assert "profile: container" in text
    assert "hostPID: true" in text
    said: dict[str, Any] = document(found, profile)
    assert len(said["sources"]) == 9


@pytest.mark.parametrize(
    ("root", "capabilities", "container", "host", "log", "name"),
    [
        (False, "", True, False, False, "container"),
        (True, "", True, False, False, "container"),
        (False, "", False, True, False, "job-user"),
        (False, "", True, True, False, "node-unprivileged"),
        (True, "", True, True, False, "node"),
        (False, "SYSLOG", True, True, True, "node"),
        (True, "SYSLOG SYS_PTRACE", True, True, True, "node"),
        (True, "SYSLOG SYS_PTRACE DAC_READ_SEARCH", True, True, True, "node-full"),
    ],
)
def test_the_profile_is_named(root: bool, capabilities: str, container: bool, host: bool, log: bool, name: str) -> None:
    """From the least to the most; what is lacking is said with what it adds and how to get it."""
    profile = profile_of(Facts(root, frozenset(capabilities.split()), container, host, host, log, True))
    assert profile.name == name
    assert len(profile.has) + len(profile.lacks) == len(GRANTS)
    assert bool(profile.lacks) is (name != "node-full")
    assert name in PROFILES


def test_capabilities_are_read_from_the_status() -> None:
    """Four bits of the effective set; nonsense has none."""
    assert parse_capabilities("CapEff:\t0000000400080004\n") == {"DAC_READ_SEARCH", "SYS_PTRACE", "SYSLOG"}
    assert parse_capabilities("CapEff:\t0000000000000000\n") == frozenset()
    assert parse_capabilities("CapEff: zz\nCapPrm:\tffffffffffffffff\n") == frozenset()


def test_facts_of_this_process_and_of_a_tree_that_is_none(tmp_path: Path) -> None:
    """Real ones are gathered; where there is nothing, nothing is claimed."""
    assert gather_facts().root is (os.geteuid() == 0)
    facts = gather_facts(tmp_path, tmp_path / "kmsg", tmp_path)
    assert facts == Facts(facts.root, frozenset(), True, False, False, False, False)


@pytest.mark.parametrize(
    ("scope", "user", "state"), [("1", 1000, State.NO_PERMISSION), ("1", 0, State.OK), ("x", 7, State.OK)]
)
def test_pyspy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, user: int, state: State) -> None:
    """py-spy that may not look at ranks is told apart from one that may, and from none."""
    (tmp_path / "py-spy").touch(mode=0o755)
    (tmp_path / "scope").write_text(scope)
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert doctor_module._pyspy(tmp_path / "scope").state is state
    (tmp_path / "py-spy").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor_module._pyspy(tmp_path / "scope").state is State.ABSENT
