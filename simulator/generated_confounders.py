"""What the innocent oddities of a scenario do to a generated job's own times."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rankscope.simulator.generated_faults import lengthen, lengths
from rankscope.simulator.generated_job import BoolArray, Job
from rankscope.simulator.scenario import Confounder

_WARM_STEPS = 12


def span_of(job: Job, confounder: Confounder) -> BoolArray:
    """Steps from its begin to its end."""
    steps = np.arange(job.shape[1])
    return (steps >= confounder.from_step) & (steps < confounder.to_step)


def steps_of(job: Job, confounder: Confounder) -> BoolArray:
    """Steps in which it is at work: the last of each period."""
    steps = np.arange(job.shape[1])
    due: BoolArray = span_of(job, confounder) & ((steps + 1) % confounder.every == 0)
    return due


def _everywhere(job: Job, confounder: Confounder) -> None:
    job.compute(np.arange(job.shape[0]), span_of(job, confounder), confounder.severity)


def _one_chip(job: Job, confounder: Confounder) -> None:
    place = confounder.gpu or 0
    if place < job.shape[0]:
        job.compute([place], span_of(job, confounder), 1 + confounder.severity)


def _one_rank_more(job: Job, confounder: Confounder) -> None:
    steps = span_of(job, confounder)
    lengthen(
        job,
        np.array([confounder.rank or 0]),
        steps,
        np.full((1, int(steps.sum())), confounder.severity),
        tokens=False,
    )


def _all_lengths(job: Job, confounder: Confounder) -> None:
    steps = span_of(job, confounder)
    same = lengths(job, (1, int(steps.sum())), confounder.severity)
    lengthen(job, np.arange(job.shape[0]), steps, np.repeat(same, job.shape[0], axis=0), tokens=True)


def _ramp(job: Job, confounder: Confounder) -> None:
    steps = span_of(job, confounder)
    # Batches grow in steps of an eighth of the way.
    stairs = np.floor(np.linspace(0, 8, int(steps.sum()), endpoint=False)) / 7
    length = 1 + (confounder.severity - 1) * stairs[np.newaxis, :]
    lengthen(job, np.arange(job.shape[0]), steps, np.repeat(length, job.shape[0], axis=0), tokens=False)


def _warm(job: Job, confounder: Confounder) -> None:
    for step in range(min(_WARM_STEPS, job.shape[1])):
        only = np.arange(job.shape[1]) == step
        factor = 1 + (confounder.severity - 1) * float(np.exp(-step / 3))
        job.compute(np.arange(job.shape[0]), only, factor)


def _cold(job: Job, confounder: Confounder) -> None:
    for step in range(min(2 * _WARM_STEPS, job.shape[1])):
        only = np.arange(job.shape[1]) == step
        job.add("data", np.arange(job.shape[0]), only, confounder.severity * float(np.exp(-step / 4)), sigma=0.3)


def _stops(name: str) -> Callable[[Job, Confounder], None]:
    def stop(job: Job, confounder: Confounder) -> None:
        job.add(name, np.arange(job.shape[0]), steps_of(job, confounder), confounder.severity, sigma=0.05)

    return stop


def _spikes(job: Job, confounder: Confounder) -> None:
    late = job.random.random(job.shape) < confounder.severity / 100
    late &= span_of(job, confounder)[np.newaxis, :]
    job.touch("backward")[late] += job.random.exponential(0.3 * job.step_ms, int(late.sum())).astype(np.float32)


#: By kind; those that only show in counters or events are not here.
EFFECTS: Mapping[str, Callable[[Job, Confounder], None]] = {
    "power-cap": _everywhere,
    "slow-code": _everywhere,
    "silicon-spread": _one_chip,
    "more-work": _one_rank_more,
    "variable-length": _all_lengths,
    "batch-ramp": _ramp,
    "warm-up": _warm,
    "cold-cache": _cold,
    "periodic-checkpoint": _stops("checkpoint"),
    "periodic-evaluation": _stops("evaluation"),
    "rare-spikes": _spikes,
}
