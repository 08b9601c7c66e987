"""Throughput, jumps of loss and gradient norm, and growing memory, out of what a training loop says."""

from __future__ import annotations

import json
import math
import random
from array import array
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from synthetic_job import BEGIN_NS, HOST, SECOND, Job, uuid

from rankscope.exporters.wording import progress_texts
from rankscope.finding import Overhead
from rankscope.records import NonFinite, SignalRecord
from rankscope.rules import judge
from rankscope.rules.progress import progress
from rankscope.window import Series, SeriesKey, Window

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/verdict.schema.json").read_text())


def with_losses(losses: dict[int, list[float | None]], **counts: int) -> Window:
    """A healthy job whose ranks say a loss a second (None: NaN)."""
    window = Job().window()
    for rank, values in losses.items():
        window.ranks[rank].signals = [
            SignalRecord(
                step, BEGIN_NS + step * SECOND, loss, None, 0 if loss is not None else int(NonFinite.LOSS), **counts
            )
            for step, loss in enumerate(values)
        ]
    return window


def falling(steps: int = 200, seed: int = 1) -> list[float | None]:
    """A loss as it falls, with the noise of small batches."""
    chance = random.Random(seed)
    return [(2 + 8 * math.exp(-step / 50)) * chance.lognormvariate(0, 0.1) for step in range(steps)]


def test_a_loop_that_says_nothing_has_no_progress() -> None:
    """Nothing is made up where no signal was given."""
    assert progress(Job().window()) is None
    assert "progress" not in judge(Job().window(), Overhead()).job


def test_rates_are_summed_over_ranks() -> None:
    """Two ranks of 1,000 tokens and half their peak a second each: 2,000 a second, MFU a half."""
    found = progress(with_losses({0: falling(), 1: falling()}, tokens=1000, samples=4, flops=50, peak_flops=100))
    assert found is not None
    assert found.tokens_per_second == pytest.approx(2000)
    assert found.samples_per_second == pytest.approx(8)
    assert found.mfu == pytest.approx(0.5)
    assert found.jumps == ()


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_jump(seed: int) -> None:
    """A noisy, falling loss of 500 steps has none."""
    found = progress(with_losses({0: falling(500, seed)}))
    assert found is not None
    assert found.jumps == ()


def test_a_jump_and_the_first_nan_are_told_with_step_and_rank() -> None:
    """A loss that is five times its past at one step, and one that is NaN from a step on; each once, in order."""
    spiky, broken = falling(), falling()
    value = spiky[120]
    assert value is not None
    spiky[120] = value * 5
    broken[60:] = [None] * 140
    found = progress(with_losses({0: spiky, 2: broken}))
    assert found is not None
    assert [(jump.step, jump.rank, jump.value) for jump in found.jumps] == [(60, 2, None), (120, 0, value * 5)]
    usual = found.jumps[1].usual
    assert usual is not None
    assert usual == pytest.approx(value, rel=0.5)


def grows(bytes_a_step: float, noise: float) -> Window:
    """A job whose rank 1 keeps that much more memory with each step."""
    window, chance = Job(steps=400).window(), random.Random(3)
    steps = window.ranks[1].steps.columns
    steps["allocated_bytes"] = array(
        "d", [1e9 + number * bytes_a_step + chance.gauss(0, noise) for number in range(400)]
    )
    total = SeriesKey(HOST, "gpu.memory_total_bytes", uuid(1))
    return replace(window, series={**window.series, total: Series(array("q", [BEGIN_NS]), array("d", [2e9]))})


def test_growth_is_told_with_its_interval() -> None:
    """A megabyte a step under noise of ten: the interval holds it, and says when the device is full."""
    found = progress(grows(1e6, 1e7))
    assert found is not None
    (growth,) = found.growth
    assert growth.rank == 1
    assert growth.low < 1e6 < growth.high
    assert growth.high - growth.low < 0.1e6
    assert growth.steps_left == pytest.approx((1e9 - 400e6) / 1e6, rel=0.1)


@pytest.mark.parametrize("noise", [0.0, 1e6, 1e8])
def test_memory_that_only_wavers_does_not_grow(noise: float) -> None:
    """No growth without a slope, however large the noise."""
    assert progress(grows(0, noise)) is None


def test_the_verdict_carries_and_words_it() -> None:
    """Progress stands in the verdict's job, fits the schema, and is told in words."""
    losses = falling()
    losses[100:] = [None] * 100
    verdict = judge(with_losses({0: losses, 1: falling()}, tokens=512, flops=10, peak_flops=40), Overhead())
    jsonschema.validate(json.loads(json.dumps(verdict.job)), SCHEMA["properties"]["job"])
    texts = progress_texts(verdict)
    assert texts[0] == "1,024 tokens/s"
    assert "MFU 25 %" in texts
    assert "loss of rank 0 not finite from step 100 on" in texts
