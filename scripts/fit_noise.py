"""Fit the noise of generated recordings to real ones: `python scripts/fit_noise.py FILE... > simulator/noise.toml`.

Give recordings of healthy runs of at least 100 steps with a device clock (`rankscope demo --scenario
simulator/scenarios/healthy.toml --keep DIRECTORY` leaves one under DIRECTORY/recordings). Every figure is the median
over the recordings. What each means is said in rankscope.simulator.noise.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np

from rankscope.agent.load import load_window
from rankscope.errors import RankscopeError
from rankscope.rules.frame import FloatArray, Frame, median

_MAD = 1.4826
_SPIKE_SIGMAS = 5.0


def robust_sigma(values: FloatArray) -> float:
    """Standard deviation by the MAD."""
    there = values[np.isfinite(values)]
    return float(_MAD * np.median(np.abs(there - np.median(there)))) if there.size else 0.0


def autocorrelation(values: FloatArray) -> float:
    """Of neighbours, between 0 and 0.95."""
    centred = values - values.mean()
    power = float(np.dot(centred, centred))
    return float(np.clip(np.dot(centred[1:], centred[:-1]) / power, 0.0, 0.95)) if power > 0 else 0.0


def logarithms(values: FloatArray) -> FloatArray:
    """Natural logarithms of what is above a microsecond (the values are ms)."""
    return np.log(np.maximum(values, 1e-3))


def figures(recording: Path) -> dict[str, float]:
    """All figures of one recording."""
    frame = Frame(load_window([recording]))
    usable = frame.usable & np.isfinite(frame.job_ms)
    typical = frame.typical_ms
    compute = logarithms(frame.compute_ms[:, usable])
    compute = compute[:, np.isfinite(compute).all(axis=0)]
    residual = compute - np.median(compute, axis=1, keepdims=True)
    common = median(residual)
    own = residual - common
    sigma = robust_sigma(own.ravel())
    spikes = own[own > _SPIKE_SIGMAS * max(sigma, 1e-4)]
    wait = frame.wait_ms[:, usable]
    arrived = logarithms(np.nanmin(wait, axis=0))
    runqueue = frame.host("runqueue_ns")[:, usable] / 1e6
    data = logarithms(frame.host("data_wait_ns")[:, usable] / 1e6)
    lead = np.fmax(frame.device("lead_forward_ns"), frame.device("lead_backward_ns"))[:, usable] / 1e6
    other = frame.host("other_ns")[:, usable] / 1e6
    return {
        "compute_sigma": sigma,
        "common_sigma": robust_sigma(common),
        "common_autocorrelation": autocorrelation(common),
        "spike_rate": len(spikes) / own.size,
        "spike_size": float(np.expm1(np.median(spikes))) if len(spikes) else 0.0,
        "transfer_sigma": robust_sigma(arrived),
        "transfer_autocorrelation": autocorrelation(arrived),
        "transfer_tail": float(np.exp(np.quantile(arrived, 0.99) - np.median(arrived))),
        "data_wait_share": float(np.exp(np.median(data))) / typical,
        "data_wait_sigma": robust_sigma(data.ravel()),
        "runqueue_share": float(np.nanmean(runqueue)) / typical,
        "other_share": float(np.nanmedian(other)) / typical,
        "lead_share": float(np.nanmedian(lead)) / typical,
        "lead_sigma": robust_sigma(lead.ravel()) / typical,
    }


def main(arguments: list[str]) -> int:
    """Print the figures as TOML."""
    recordings = [Path(argument) for argument in arguments]
    if not recordings:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        each = [figures(recording) for recording in recordings]
    except RankscopeError as error:
        print(error, file=sys.stderr)
        return 2
    print("# Noise of a step, fitted to recordings of healthy runs of real processes on simulated GPUs:")
    print("# `python scripts/fit_noise.py RECORDING...`, the recordings being those that")
    print(
        "# `rankscope demo --scenario simulator/scenarios/NAME.toml --seed N --keep DIRECTORY` leaves of healthy (seeds"
    )
    print(f"# 1, 2) and healthy-silicon-spread (seeds 1, 2): {len(each)} recordings. No GPU has confirmed them.")
    for name in each[0]:
        print(f"{name} = {statistics.median(one[name] for one in each):.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
