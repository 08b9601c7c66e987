"""Whole runs: torchrun, four ranks, simulated GPUs, the agent beside them, and the verdict against what was injected.

One seed of the classes that Rankscope began with runs in the ordinary suite; every scenario with three seeds, which
takes about half an hour, under `-m verify`, and becomes docs/scoreboard.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankscope.simulator.scenario_file import SCENARIOS, load_scenario

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
SCORE = [sys.executable, "-c", "from rankscope.agent.cli import main; main()", "score"]
ORDINARY = [
    "healthy",
    "healthy-power-cap",
    "gpu-thermal-slowdown",
    "gpu-thermal-slowdown-clean-counters",
    "gpu-thermal-slowdown-no-slowdown",
    "gpu-clocks-locked",
    "gpu-off-bus",
    "gpu-ecc-uncorrectable",
    "cpu-contention",
    "slow-storage",
    "input-bound",
    "host-sync",
    "gc-pause",
    "checkpoint-stall",
    "rank-hang",
    "rank-killed",
]


def _score(*arguments: str, timeout: float) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [*SCORE, *arguments, "--mode", "real", "--json"],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures, done.stderr


@pytest.mark.parametrize("name", ORDINARY)
def test_the_verdict_names_what_was_injected_and_nothing_else(name: str):
    """Right class on the right rank (or rightly none), and hardware accused only where hardware is broken."""
    figures, said = _score(str(SCENARIOS / f"{name}.toml"), timeout=240)
    (row,) = figures["rows"]
    assert row["false_alarms"] == 0, said
    assert row["right"], f"{said}\n{json.dumps(row, indent=2)}"


def test_the_ordinary_suite_has_every_class_of_hardware_and_a_twin_of_each_kind():
    """The list above cannot lose the scenarios that protect healthy GPUs from being accused."""
    scenarios = [load_scenario(SCENARIOS / f"{name}.toml") for name in ORDINARY]
    faults = [fault for scenario in scenarios for fault in scenario.faults]
    assert {"gpu-thermal-slowdown", "gpu-off-bus", "gpu-ecc-uncorrectable"} <= {fault.class_slug for fault in faults}
    assert any(not fault.counters for fault in faults)
    assert any(not fault.slowdown for fault in faults)
    assert any(not scenario.faults for scenario in scenarios)


@pytest.mark.verify
def test_every_scenario_is_right_with_three_seeds():
    """Every scenario, three seeds: the figures go into docs/scoreboard.md, and no run may be wrong."""
    page = ROOT / "docs/scoreboard.md"
    figures, said = _score(str(SCENARIOS), "--seeds", "3", "--markdown", str(page), timeout=3 * 3600)
    wrong = [f"{row['scenario']} seed {row['seed']}" for row in figures["rows"] if not row["right"]]
    assert not wrong, said
    assert figures["hardware_false_accusation_rate"] == 0
