"""What each class of fault does to a generated job's own times. Counters are another matter (generated_readings)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rankscope.simulator.generated_job import BoolArray, IntArray, Job
from rankscope.simulator.scenario import Fault

#: Share of the usual step that a link takes down for, each time it flaps.
_FLAP_STEPS = 12
#: Largest ratio between sequence lengths that a spread gives.
_LENGTH_LIMIT = 8.0


def rows_of(job: Job, fault: Fault) -> IntArray:
    """Ranks that a fault is on."""
    ranks = np.arange(job.shape[0])
    if fault.host is not None:
        on_host: IntArray = ranks[job.host_of == fault.host]
        return on_host
    if fault.stage is not None:
        in_stage: IntArray = ranks[job.groups.stage == fault.stage]
        return in_stage
    place = fault.rank if fault.rank is not None else fault.gpu
    if place is None:
        return ranks
    return ranks[place : place + 1]


def span_of(job: Job, fault: Fault) -> BoolArray:
    """Steps from its begin to its end."""
    steps = np.arange(job.shape[1])
    return (steps >= fault.from_step) & (steps < fault.to_step)


def steps_of(job: Job, fault: Fault) -> BoolArray:
    """Steps in which it is at work."""
    steps = np.arange(job.shape[1])
    due: BoolArray = span_of(job, fault) & ((steps - fault.from_step) % fault.every == 0)
    return due


def _slow(job: Job, fault: Fault) -> None:
    job.compute(rows_of(job, fault), span_of(job, fault), fault.severity)


def _neighbour(job: Job, fault: Fault) -> None:
    """The other process runs in turns: steps differ more than they would on a slow GPU."""
    rows, steps = rows_of(job, fault), span_of(job, fault)
    job.compute(rows, steps, fault.severity)
    job.add("forward", rows, steps, 0.1 * (fault.severity - 1) * job.step_ms, sigma=0.8)


def _copies(job: Job, fault: Fault) -> None:
    job.scale("copy", rows_of(job, fault), span_of(job, fault), fault.severity)


def _inner_link(job: Job, fault: Fault) -> None:
    job.cross(rows_of(job, fault), span_of(job, fault), fault.severity, inner=True)


def _outer_link(job: Job, fault: Fault) -> None:
    job.cross(rows_of(job, fault), span_of(job, fault), fault.severity, inner=False)


def flaps(job: Job, fault: Fault) -> BoolArray:
    """Steps in which a flapping link is down or training again: two in `_FLAP_STEPS`."""
    steps = np.arange(job.shape[1])
    return span_of(job, fault) & ((steps - fault.from_step) % _FLAP_STEPS < 2)


def _flap(job: Job, fault: Fault) -> None:
    job.cross(rows_of(job, fault), flaps(job, fault), 3 * fault.severity, inner=False)


def _host_part(job: Job, rows: IntArray, steps: BoolArray, extra_ms: float, *, waits: bool) -> None:
    """The host takes longer to launch a step: beyond what it led by, the device waits for it."""
    room = 0.3 * job.step_ms
    late = max(0.0, extra_ms - room) + 0.1 * min(extra_ms, room)
    job.add("gap", rows, steps, late, sigma=0.25)
    job.touch("lead")[np.ix_(rows, np.flatnonzero(steps))] = 0.02 * job.step_ms
    if waits:
        job.add("runqueue", rows, steps, extra_ms, sigma=0.25)


def _contention(job: Job, fault: Fault) -> None:
    extra = fault.severity * job.scenario.workload.host_ms * 2
    _host_part(job, rows_of(job, fault), span_of(job, fault), extra, waits=True)


def _launching(job: Job, fault: Fault) -> None:
    extra = (fault.severity - 1) * job.scenario.workload.host_ms
    _host_part(job, rows_of(job, fault), span_of(job, fault), extra, waits=False)


def _misbound(job: Job, fault: Fault) -> None:
    _copies(job, fault)
    _launching(job, fault)


def _memory(job: Job, fault: Fault) -> None:
    """Pages come back from swap: now and then, and not on all ranks of the host at once."""
    rows, span = rows_of(job, fault), span_of(job, fault)
    for row in rows:
        hit = span & (job.random.random(job.shape[1]) < 0.3)
        job.add("stall", [int(row)], hit, fault.severity, sigma=0.5)


def _fetch(job: Job, fault: Fault) -> None:
    """Loaders deliver a batch in longer than a step: what the workers together cannot hide is waited for."""
    workload = job.scenario.workload
    taken = fault.severity * workload.data_ms / max(1, workload.workers)
    late = taken - (job.step_ms if workload.workers else 0.0)
    rows, steps = rows_of(job, fault), span_of(job, fault)
    if late > 0:
        job.add("data", rows, steps, late, sigma=0.15)
        job.touch("lead")[np.ix_(rows, np.flatnonzero(steps))] = 0.02 * job.step_ms
        job.touch("ready")[np.ix_(rows, np.flatnonzero(steps))] = 0


def _synchronising(job: Job, fault: Fault) -> None:
    rows, steps = rows_of(job, fault), steps_of(job, fault)
    job.touch("sync_count")[np.ix_(rows, np.flatnonzero(steps))] += np.float32(fault.severity)
    cost = min(0.4 * job.step_ms, fault.severity * 0.5 * job.scenario.workload.host_ms)
    job.add("gap", rows, steps, cost)
    job.add("sync", rows, steps, 0.6 * job.step_ms)
    job.touch("lead")[np.ix_(rows, np.flatnonzero(steps))] = 0.02 * job.step_ms


def _pause(name: str) -> Callable[[Job, Fault], None]:
    def strike(job: Job, fault: Fault) -> None:
        job.add(name, rows_of(job, fault), steps_of(job, fault), fault.severity)

    return strike


def _recompiling(job: Job, fault: Fault) -> None:
    rows, steps = rows_of(job, fault), steps_of(job, fault)
    job.add("stall", rows, steps, fault.severity)
    job.add("compile", rows, steps, 0.95 * fault.severity, sigma=0.02)
    job.touch("recompiles")[np.ix_(rows, np.flatnonzero(steps))] += 1


def _retrying(job: Job, fault: Fault) -> None:
    rows, steps = rows_of(job, fault), steps_of(job, fault)
    job.add("gap", rows, steps, fault.severity)
    job.touch("retries")[np.ix_(rows, np.flatnonzero(steps))] += 1


def lengthen(job: Job, rows: IntArray, steps: BoolArray, length: np.ndarray, *, tokens: bool) -> None:
    """Batches of another size: more samples cost in proportion, longer sequences a little more than that."""
    cost = 0.8 * length + 0.2 * length**2 if tokens else length
    where = np.ix_(rows, np.flatnonzero(steps))
    for name in ("forward", "backward"):
        job.touch(name)[where] *= cost.astype(np.float32)
    job.touch("work")[where] *= (np.round(64 * length) / 64).astype(np.float32)


def lengths(job: Job, shape: tuple[int, ...], ratio: float) -> np.ndarray:
    """Lengths around 1 of which the longest of a hundred is about `ratio` times the shortest."""
    sigma = np.log(min(ratio, _LENGTH_LIMIT)) / 5
    return np.exp(np.clip(job.random.normal(0, sigma, shape), -2.5 * sigma, 2.5 * sigma))


def _more_work(job: Job, fault: Fault) -> None:
    rows, steps = rows_of(job, fault), span_of(job, fault)
    count = int(steps.sum())
    if fault.rank is not None:
        lengthen(job, rows, steps, np.full((1, count), fault.severity), tokens=False)
    else:
        lengthen(job, rows, steps, lengths(job, (len(rows), count), fault.severity**2), tokens=True)


def _more_tokens(job: Job, fault: Fault) -> None:
    rows, steps = rows_of(job, fault), span_of(job, fault)
    wobble = fault.severity * np.exp(job.random.normal(0, 0.05, (len(rows), int(steps.sum()))))
    where = np.ix_(rows, np.flatnonzero(steps))
    job.touch("forward")[where] *= wobble.astype(np.float32)
    job.touch("backward")[where] *= wobble.astype(np.float32)


#: Slowdowns by class. What ends a job is in generated_endings; what only counts changes nothing here.
EFFECTS: Mapping[str, Callable[[Job, Fault], None]] = {
    "gpu-thermal-slowdown": _slow,
    "gpu-hw-slowdown": _slow,
    "gpu-clocks-locked": _slow,
    "gpu-power-brake": _slow,
    "gpu-power-limit-low": _slow,
    "gpu-sync-boost": _slow,
    "cooling-plant": _slow,
    "mig-misconfigured": _slow,
    "noisy-neighbour": _neighbour,
    "nvlink-degraded": _inner_link,
    "pcie-downgraded": _copies,
    "pcie-replays": _copies,
    "network-link-flap": _flap,
    "network-link-errors": _outer_link,
    "network-congestion": _outer_link,
    "cpu-contention": _contention,
    "cpu-frequency-low": _launching,
    "memory-pressure": _memory,
    "page-cache-thrash": _fetch,
    "slow-storage": _fetch,
    "network-filesystem-slow": _fetch,
    "numa-misbound": _misbound,
    "input-bound": _fetch,
    "pageable-copies": _copies,
    "host-sync": _synchronising,
    "launch-bound": _launching,
    "gc-pause": _pause("gc"),
    "checkpoint-stall": _pause("checkpoint"),
    "logging-stall": _pause("stall"),
    "recompilation": _recompiling,
    "allocator-retries": _retrying,
    "work-imbalance": _more_work,
    "stage-imbalance": _slow,
    "expert-imbalance": _more_tokens,
}
