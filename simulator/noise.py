"""The noise of a generated step (noise.toml, fitted by scripts/fit_noise.py), and where it is wider than fitted."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rankscope.errors import SimulatorError

PATH = Path(__file__).with_name("noise.toml")
# The device that recordings are fitted to is quieter than a GPU: its kernels last what they are told. A generated job
# has at least this noise, so that rules are not judged on a calm that no machine has. Chosen, not measured.
_COMPUTE_SIGMA = 0.008
_COMMON_SIGMA = 0.004
_COMMON_AUTOCORRELATION = 0.8
_SPIKE_RATE = 0.002
_SPIKE_SIZE = 0.3
#: A real job's host is launched to lead by less than the step it works on; gloo on few cores leads by more.
_LEAD_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Noise:
    """Shares are of the usual step; sigmas of durations are those of their logarithms."""

    #: One rank's computing in one step, what all ranks share of it, and how that goes on from step to step.
    compute_sigma: float
    common_sigma: float
    common_autocorrelation: float
    #: Share of a rank's steps that are late by `spike_size` (a fraction of computing, exponential).
    spike_rate: float
    spike_size: float
    #: Exposed collectives; `transfer_tail` is the 99th percentile against the median.
    transfer_sigma: float
    transfer_autocorrelation: float
    transfer_tail: float
    #: Host: wait for a batch, wait for a core, rest of the loop.
    data_wait_share: float
    data_wait_sigma: float
    runqueue_share: float
    other_share: float
    #: How far the host runs ahead of its device.
    lead_share: float
    lead_sigma: float

    def widened(self, factor: float) -> Noise:
        """At least the noise chosen above, times a scenario's factor."""
        return replace(
            self,
            compute_sigma=factor * max(self.compute_sigma, _COMPUTE_SIGMA),
            common_sigma=factor * max(self.common_sigma, _COMMON_SIGMA),
            common_autocorrelation=max(self.common_autocorrelation, _COMMON_AUTOCORRELATION),
            spike_rate=factor * max(self.spike_rate, _SPIKE_RATE),
            spike_size=max(self.spike_size, _SPIKE_SIZE),
            transfer_sigma=factor * self.transfer_sigma,
            runqueue_share=factor * self.runqueue_share,
            lead_share=min(self.lead_share, _LEAD_SHARE),
        )


def load(path: Path = PATH) -> Noise:
    """Read the figures; raises SimulatorError."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
        return Noise(**{each.name: float(values[each.name]) for each in fields(Noise)})
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise SimulatorError(f"no noise figures ({error})", where=str(path), todo="run scripts/fit_noise.py") from error
