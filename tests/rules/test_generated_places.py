"""Places that only generated recordings have: hosts, stages, links - from the first step on, or for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.finding import Finding, Overhead
from rankscope.rules import judge
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario_file import load_scenario

TWO_HOSTS = (
    "[workload]\nranks = 16\nsteps = 300\nstep_ms = 200\ndata_ms = 16\nhost_ms = 20\n[node]\ngpus = 8\nhosts = 2\n"
)


@pytest.fixture
def first(tmp_path: Path):
    """The first finding of a scenario; None for a healthy one."""

    def found(text: str) -> Finding | None:
        path = tmp_path / "scenario.toml"
        path.write_text(text, encoding="utf-8")
        findings = judge(generate(load_scenario(path)), Overhead()).findings
        return findings[0] if findings else None

    return found


@pytest.mark.parametrize("begin", [0, 120])
@pytest.mark.parametrize("slug", ["cooling-plant", "gpu-sync-boost", "gpu-power-brake"])
def test_a_host_is_told_as_a_host(first, slug: str, begin: int):
    """All GPUs of one host are slow, from the first step or later: one finding at the host, none at its ranks."""
    told = first(f'{TWO_HOSTS}[[fault]]\nclass = "{slug}"\nhost = 1\nseverity = 1.5\nfrom_step = {begin}\n')
    assert told is not None
    assert (told.class_slug, told.where.host, told.where.rank) == (slug, "node001", None)


def test_congestion_that_passes_is_dated(first):
    """A rise that falls again within the run has a begin and an end."""
    text = f'{TWO_HOSTS}[[fault]]\nclass = "network-congestion"\nseverity = 6\nfrom_step = 100\nto_step = 180\n'
    told = first(text)
    assert told is not None
    assert told.class_slug == "network-congestion"
    assert told.until_ns is not None
    assert told.until_ns > told.since_ns


def test_an_error_rate_names_its_port(first):
    """Damaged symbols on one host's port: host and port."""
    told = first(f'{TWO_HOSTS}[[fault]]\nclass = "network-link-errors"\nhost = 0\nseverity = 5\nfrom_step = 100\n')
    assert told is not None
    assert (told.class_slug, told.where.host, told.where.device) == ("network-link-errors", "node000", "mlx5_0/1")


def test_one_slow_gpu_of_a_stage_is_no_stage(first):
    """A slow GPU among two that share a stage is told at its rank; the stage itself is in balance."""
    text = (
        '[workload]\nkind = "pipeline"\nranks = 8\nstages = 4\ntensor = 2\nsteps = 300\n[node]\nhosts = 2\n'
        '[[fault]]\nclass = "gpu-thermal-slowdown"\ngpu = 6\nseverity = 1.5\nfrom_step = 100\n'
    )
    told = first(text)
    assert told is not None
    assert (told.class_slug, told.where.rank) == ("gpu-thermal-slowdown", 6)


def test_sequences_of_all_lengths_do_not_hide_a_slow_gpu(first):
    """Lengths wander by a factor of three on all ranks; a GPU a fifth slower is still told, and within few steps."""
    text = (
        f'{TWO_HOSTS}[[confounder]]\nkind = "variable-length"\nseverity = 3.0\n'
        '[[fault]]\nclass = "gpu-clocks-locked"\ngpu = 3\nseverity = 1.2\nfrom_step = 150\n'
    )
    told = first(text)
    assert told is not None
    assert (told.class_slug, told.where.rank) == ("gpu-clocks-locked", 3)
    assert told.detected_step is not None
    assert 145 <= told.detected_step <= 175


@pytest.mark.parametrize("seed", [9, 17, 20, 32])
def test_a_link_that_flaps_in_a_short_run_is_told(first, seed: int):
    """Two steps in twelve held up by very different times: how often they are counts, not what each of them took."""
    text = TWO_HOSTS.replace("ranks = 16\nsteps = 300", "ranks = 32\nsteps = 220").replace("hosts = 2", "hosts = 4")
    fault = '[[fault]]\nclass = "network-link-flap"\nhost = 1\nseverity = 4\nfrom_step = 80\n'
    told = first(f"seed = {seed}\n{text}{fault}")
    assert told is not None
    assert (told.class_slug, told.where.host) == ("network-link-flap", "node001")
