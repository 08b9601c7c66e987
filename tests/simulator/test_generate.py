"""Generated recordings: what is injected shows in them, nothing else does, and thousands of ranks take seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rankscope.metrics import METRICS
from rankscope.reading import EVENT_KINDS
from rankscope.records import DeviceRecord, StepRecord, field_names
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario import Scenario
from rankscope.simulator.scenario_file import SCENARIOS, load_scenario
from rankscope.window import Window


@pytest.fixture
def made(tmp_path: Path):
    """Write a scenario and load it."""

    def make(text: str) -> Scenario:
        path = tmp_path / "made.toml"
        path.write_text(text, encoding="utf-8")
        return load_scenario(path)

    return make


def own(window: Window, rank: int) -> np.ndarray:
    """Own compute of a rank in ms, step by step."""
    device = window.ranks[rank].device.columns
    return sum(np.array(device[name]) for name in ("forward_ns", "backward_own_ns", "optimizer_ns")) / 1e6


def test_only_names_of_the_vocabulary_are_written():
    """Metrics, events and fields are those that probes and hooks have; a made-up one would prove nothing."""
    for path in sorted(SCENARIOS.glob("*.toml")):
        window = generate(load_scenario(path))
        assert {key.metric for key in window.series} <= set(METRICS)
        assert {event.kind for event in window.events} <= set(EVENT_KINDS)
        for of in window.ranks.values():
            assert set(of.steps.columns) <= set(field_names(StepRecord))
            assert set(of.device.columns) <= set(field_names(DeviceRecord))
            assert len({len(column) for column in of.steps.columns.values()}) == 1


def test_a_device_step_is_the_sum_of_its_parts(made):
    """Own time, waits and the rest make up the step, on every rank, whatever the groups."""
    text = """
    [workload]
    kind = "pipeline"
    ranks = 16
    stages = 2
    tensor = 2
    experts = 2
    steps = 60
    [node]
    hosts = 4
    """
    window = generate(made(text))
    parts = [f"{name}_ns" for name in ("data_wait", "h2d", "forward", "backward_own", "backward_wait", "inner_wait")]
    parts += ["bubble_ns", "optimizer_ns", "other_ns"]
    for of in window.ranks.values():
        total = sum(np.array(of.device.columns[name]) for name in parts)
        assert np.allclose(total, of.device.columns["step_ns"], rtol=0.02)


def test_a_slow_gpu_slows_its_rank_and_all_steps(made):
    """The rank computes a quarter longer from its step on, its peers do not, and every rank's step grows alike."""
    text = '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = 2\nseverity = 1.25\nfrom_step = 60\n'
    window = generate(made(text))
    assert np.median(own(window, 2)[65:]) / np.median(own(window, 2)[5:55]) == pytest.approx(1.25, abs=0.01)
    assert np.median(own(window, 1)[65:]) / np.median(own(window, 1)[5:55]) == pytest.approx(1.0, abs=0.01)
    lengths = [np.array(of.device.columns["step_ns"]) for of in window.ranks.values()]
    assert all(np.array_equal(lengths[0], other) for other in lengths)


def test_twins_have_the_slowness_or_the_counters(made):
    """counters = false keeps the clock, slowdown = false keeps the compute time."""
    text = '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = 2\nseverity = 1.25\nfrom_step = 60\n'
    silent, idle = generate(made(text + "counters = false\n")), generate(made(text + "slowdown = false\n"))
    clocks = {
        name: min(
            min(series.values)
            for key, series in window.series.items()
            if key.metric == "gpu.sm_clock_mhz" and key.device == window.ranks[2].identity.gpu_uuid
        )
        for name, window in (("silent", silent), ("idle", idle))
    }
    assert clocks["silent"] > 1.2 * clocks["idle"]
    assert np.median(own(silent, 2)[65:]) > 1.2 * np.median(own(idle, 2)[65:])


def test_the_seed_decides_everything(made):
    """The same seed gives the same recording, another seed another."""
    first, again, other = (generate(made(f"seed = {seed}\n")) for seed in (1, 1, 2))
    assert first.ranks[0].device == again.ranks[0].device
    assert first.ranks[0].device != other.ranks[0].device


def test_a_crash_has_one_root_and_echoes(made):
    """The rank that broke speaks first; its peers lost their connection, and nobody has records after it."""
    window = generate(made('[[fault]]\nclass = "rank-exception"\nrank = 1\nfrom_step = 40\n'))
    failed = [event for event in window.events if event.kind == "rank-exception"]
    assert failed[0].rank == 1
    assert {event.rank for event in failed} == {0, 1, 2, 3}
    assert all("connection" in event.text for event in failed[1:])
    assert {len(of.steps) for of in window.ranks.values()} == {40}
    assert window.job_status == 1


def test_a_lost_gpu_falls_silent(made):
    """No reading of it after it fell off the bus, while its neighbours answer."""
    window = generate(made('[[fault]]\nclass = "gpu-off-bus"\ngpu = 3\nfrom_step = 60\n'))
    ends = {
        rank: max(
            max(series.times_ns)
            for key, series in window.series.items()
            if key.device == of.identity.gpu_uuid and len(series.times_ns)
        )
        for rank, of in window.ranks.items()
    }
    assert ends[3] < min(ends[0], ends[1], ends[2])


def test_groups_know_their_kind_and_members(made):
    """Tensor neighbours, data-parallel copies and stages are told apart by their process groups."""
    text = '[workload]\nkind = "pipeline"\nranks = 8\nstages = 2\ntensor = 2\nsteps = 20\n[node]\nhosts = 2\n'
    members = generate(made(text)).ranks[5].members
    assert members == {"data:3": "5,7", "tensor:2": "4-5", "pipeline:1": "1,5"}
