"""What a knob does to the step, from windows in random order; and what must not be called an effect."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope.rules.switchback import LEAST_BLOCKS, Decision, Effect, Stretch, effect, sequence_interval


def ran(
    blocks: int, *, effect_ms: float, seed: int, noise_ms: float = 1.0, drift_ms: float = 0.0, left_ms: float = 0.0
) -> list[Stretch]:
    """Windows of 20 steps of 10 ms: drift over the run, and `left_ms` of an "on" in the window after it."""
    draw = np.random.default_rng(seed)
    found, before = [], False
    for block in range(blocks):
        for on in draw.permutation([True, False]):
            middle = 10 + effect_ms * on + left_ms * before + drift_ms * block / blocks
            found.append(Stretch(block, bool(on), middle + draw.gamma(1, noise_ms, 20)))
            before = bool(on)
    return found


def told(stretches: list[Stretch], margin: float = 0.005) -> Effect:
    """The effect, which is there."""
    found = effect(stretches, margin=margin)
    assert found is not None
    return found


def test_looking_after_every_block_errs_no_oftener_than_said() -> None:
    """Of 400 runs without an effect, at most 5 % are ever said to have one, though each is looked at 50 times."""
    draw = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        differences = draw.standard_t(4, 60)
        wrong += any(sequence_interval(differences[:count], 0.05).excludes_zero() for count in range(LEAST_BLOCKS, 61))
    assert wrong <= 20


@pytest.mark.parametrize("seed", range(3))
def test_an_effect_is_found_with_its_size(seed: int) -> None:
    """3 % under 10 % of noise and a drift three times as large: decided, and within the interval."""
    found = told(ran(60, effect_ms=0.3, seed=seed, drift_ms=1.0))
    assert found.decision is Decision.EFFECT
    assert found.mean_ms.low < 0.3 < found.mean_ms.high
    assert found.p50_ms.low < 0.3 < found.p50_ms.high
    assert found.fraction.value == pytest.approx(found.mean_ms.value / found.off_ms)


def test_what_lies_within_the_margin_is_no_effect() -> None:
    """Many quiet blocks show that there is nothing worth having; a few noisy ones leave it open."""
    assert told(ran(60, effect_ms=0.0, seed=1, noise_ms=0.1), margin=0.01).decision is Decision.NO_EFFECT
    assert told(ran(10, effect_ms=0.0, seed=1)).decision is Decision.UNDECIDED


def test_what_outlasts_its_window_is_told_apart() -> None:
    """Half of the effect stays for the window after: the plain difference is too small, the adjusted one is right."""
    found = told(ran(120, effect_ms=1.0, seed=2, noise_ms=0.5, left_ms=0.5))
    assert found.carry_over_ms is not None
    assert found.adjusted_ms is not None
    assert found.carry_over_ms.low < 0.5 < found.carry_over_ms.high
    assert found.carry_over_ms.excludes_zero()
    assert found.adjusted_ms.low < 1.0 < found.adjusted_ms.high
    assert found.mean_ms.value < 0.9
    clean = told(ran(120, effect_ms=1.0, seed=2, noise_ms=0.5))
    assert clean.carry_over_ms is not None
    assert not clean.carry_over_ms.excludes_zero()


def test_too_few_or_halved_blocks_say_nothing() -> None:
    """Blocks of which one window is missing or empty do not count."""
    whole = ran(LEAST_BLOCKS, effect_ms=1.0, seed=3)
    assert effect(whole[:-1], margin=0.01) is None
    assert effect([*whole[:-1], Stretch(LEAST_BLOCKS - 1, whole[-1].on, np.empty(0))], margin=0.01) is None
    assert effect([], margin=0.01) is None
    assert effect(whole, margin=0.01) is not None
