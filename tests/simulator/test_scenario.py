"""The scenario grammar: what it reads, and that it refuses with one line that says what, where and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.errors import ScenarioError
from rankscope.finding import Side
from rankscope.simulator.scenario_classes import FAULT_CLASSES
from rankscope.simulator.scenario_file import (
    SCENARIO_VARIABLE,
    SCENARIOS,
    SEED_VARIABLE,
    load_scenario,
    scenario_from_environment,
)

THERMAL = """
name = "hot"
[workload]
steps = 300
step_ms = 100
[[fault]]
class = "gpu-thermal-slowdown"
gpu = 2
severity = 1.25
from_step = 100
"""


@pytest.fixture
def write(tmp_path: Path):
    """Writes the text of a scenario to a file."""

    def write(text: str) -> Path:
        path = tmp_path / "scenario.toml"
        path.write_text(text)
        return path

    return write


def test_a_fault_knows_its_rank_its_steps_and_its_side(write):
    """The thermal fault works on rank 2 only, from its first step to the end, and is the hardware's."""
    scenario = load_scenario(write(THERMAL))
    (fault,) = scenario.faults
    assert (fault.side, fault.severity, fault.from_step, fault.to_step) == (Side.HARDWARE, 1.25, 100, 300)
    active = [(rank, step) for rank in range(4) for step in (99, 100, 299) if fault.on_rank(rank) and fault.at(step)]
    assert active == [(2, 100), (2, 299)]


def test_a_twin_without_slowdown_slows_no_rank(write):
    """A fault that is counters only is in the scenario, but no rank is told to act on it."""
    text = THERMAL.replace("gpu-thermal-slowdown", "slow-storage").replace("gpu = 2", "slowdown = false")
    scenario = load_scenario(write(text))
    assert scenario.faults[0].host == 0
    assert scenario.fault_on("slow-storage", 0, 150) is None


def test_a_periodic_fault_comes_back_every_n_steps(write):
    """every = 15 from step 10 on: steps 10, 25, 40 and no other."""
    text = '[workload]\nsteps = 50\n[[fault]]\nclass = "checkpoint-stall"\nevery = 15\nfrom_step = 10\n'
    (fault,) = load_scenario(write(text)).faults
    assert [step for step in range(50) if fault.at(step)] == [10, 25, 40]


def test_more_work_and_work_imbalance_are_one_factor(write):
    """Both give a rank larger batches, and their factors multiply on that rank only."""
    text = (
        '[[fault]]\nclass = "work-imbalance"\nrank = 1\nseverity = 1.5\nfrom_step = 5\n'
        '[[confounder]]\nkind = "more-work"\nrank = 1\nseverity = 2.0\n'
    )
    scenario = load_scenario(write(text))
    assert [scenario.work_share(rank, step) for rank, step in ((0, 9), (1, 0), (1, 9))] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("[worklod]", "worklod", "did you mean workload"),
        ("[workload]\nstep = 3", "workload.step", "did you mean steps"),
        ('[workload]\nsteps = "many"', "workload.steps", "whole number"),
        ("[workload]\nsteps = 0", "workload.steps", "out of range"),
        ("[workload]\nranks = 8", "workload.ranks", "8 ranks on 4 GPUs"),
        ('[workload]\nkind = "fsdq"', "workload.kind", "choose ddp or fsdp"),
        ('[workload]\nkind = "pipeline"', "workload.stages", "at least 2"),
        ("[workload]\nstages = 2", "workload.stages", "leave it out"),
        ('[workload]\nkind = "pipeline"\nstages = 3', "workload.ranks", "multiple of 3"),
        ("[workload]\ntensor = 3", "workload.ranks", "multiple of 3"),
        ("[workload]\nexperts = 3", "workload.experts", "divisor of 4"),
        ('[[fault]]\nclass = "stage-imbalance"\nstage = 0', "fault[0].class", "pipeline"),
        ('[[fault]]\nclass = "expert-imbalance"\nrank = 0', "fault[0].class", "workload.experts"),
        ('[[fault]]\nclass = "network-congestion"', "fault[0].class", "two hosts"),
        ('[[fault]]\nclass = "gpu-power-brake"\ngpu = 1\nhost = 0', "fault[0]", "one place"),
        ('[[confounder]]\nkind = "slow-code"\nseverity = 0.5', "confounder[0].severity", "1 to 100"),
        ('[workload]\nkind = "single"', "workload.ranks", "give 1"),
        ('[node]\ngpu = "H1000"', "node.gpu", "H100-SXM5-80GB"),
        ('[node]\ndriver = "new"', "node.driver", "580.95.05"),
        ("workload = 3", "workload", "[workload]"),
        ("fault = 3", "fault", "[[fault]]"),
        ("[[fault]]\ngpu = 1", "fault[0]", "no class"),
        ('[[fault]]\nclass = "gpu-thermal-slowdwn"', "fault[0].class", "did you mean gpu-thermal-slowdown"),
        ('[[fault]]\nclass = "gpu-off-bus"', "fault[0]", "add gpu = N"),
        ('[[fault]]\nclass = "gpu-off-bus"\nrank = 1', "fault[0].rank", "give gpu"),
        ('[[fault]]\nclass = "gpu-off-bus"\ngpu = 4', "fault[0].gpu", "choose 0 to 3"),
        ('[[fault]]\nclass = "rank-hang"\nrank = 4', "fault[0].rank", "choose 0 to 3"),
        ('[[fault]]\nclass = "rank-hang"\nrank = 1\nfrom_step = 120', "fault[0].from_step", "not in the run"),
        ('[[fault]]\nclass = "host-sync"\nfrom_step = 9\nto_step = 8', "fault[0].to_step", "before it begins"),
        ('[[fault]]\nclass = "host-sync"\nto_step = 121', "fault[0].to_step", "of 120"),
        ('[[fault]]\nclass = "host-sync"\nseverity = 0', "fault[0].severity", "at least 1"),
        ('[[fault]]\nclass = "host-sync"\ncounters = false', "fault[0].counters", "no twin"),
        ('[[fault]]\nclass = "host-sync"\nevery = 0', "fault[0].every", "1 to 120"),
        (
            '[[fault]]\nclass = "gpu-off-bus"\ngpu = 1\ncounters = false\nslowdown = false',
            "fault[0]",
            "nothing is wrong",
        ),
        ('[[confounder]]\nkind = "old-xids"', "confounder[0].kind", "did you mean old-xid"),
        ('[[confounder]]\nkind = "power-cap"\ngpu = 1', "confounder[0].gpu", "everywhere"),
        ('[[confounder]]\nkind = "old-xid"\ngpu = 1\nseverity = 2', "confounder[0].severity", "unknown key"),
        ("[", "", "not TOML"),
    ],
)
def test_a_contradiction_is_one_clear_line(write, text, where, said):
    """Each malformed or contradictory scenario is refused with its place and the next step, in one line."""
    path = write(text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: {where}" if where else str(path))
    assert said in line
    assert "\n" not in line


def test_a_missing_file_is_one_clear_line(tmp_path: Path):
    """A path that is not there is named with the system's reason."""
    with pytest.raises(ScenarioError, match="No such file"):
        load_scenario(tmp_path / "none.toml")


def test_every_scenario_that_comes_along_loads_and_every_class_has_one():
    """All shipped files are valid, are named as their file, and say on top what they show."""
    scenarios = [load_scenario(path) for path in sorted(SCENARIOS.glob("*.toml"))]
    assert {scenario.name for scenario in scenarios} == {path.stem for path in SCENARIOS.glob("*.toml")}
    real = {slug for slug, of in FAULT_CLASSES.items() if of.real}
    assert {fault.class_slug for scenario in scenarios for fault in scenario.faults} == real
    assert all(scenario.why_not_real is None for scenario in scenarios)
    assert all(path.read_text().startswith("# ") for path in SCENARIOS.glob("*.toml"))


def test_the_environment_names_the_scenario_and_may_replace_its_seed(write):
    """A simulated rank finds its scenario by variables; the seed in the environment wins over the file's."""
    path = write(THERMAL)
    assert scenario_from_environment({SCENARIO_VARIABLE: str(path)}).seed == 1
    assert scenario_from_environment({SCENARIO_VARIABLE: str(path), SEED_VARIABLE: "7"}).seed == 7
    with pytest.raises(ScenarioError, match=SCENARIO_VARIABLE):
        scenario_from_environment({})
