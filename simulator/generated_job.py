"""A job's steps as arrays, ranks by steps: what each rank does itself, and what it then waits for the others.

Own times are laid out first and changed by faults and confounders; `close` lets the groups wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankscope.simulator.generated_groups import FloatArray, Layout, layout
from rankscope.simulator.noise import Noise, load
from rankscope.simulator.scenario import Scenario

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
#: Parts of a healthy step without transfer and copy: as in rankscope.simulator.rank.
_FORWARD, _BACKWARD, _OPTIMIZER = 0.3, 0.58, 0.08
_TRANSFER_SHARE = 0.05
_COPY_SHARE = 0.02
#: How one rank differs from another for good: chips and places differ by a per cent or two.
_SPREAD = 0.01
#: The first step builds what the others use: allocator, buckets, communicators.
_FIRST_STEP = 6.0
_NOISE = load()


@dataclass(slots=True)
class Waits:
    """What `close` found: ms, ranks by steps."""

    inner: FloatArray
    bubble: FloatArray
    backward: FloatArray
    length: FloatArray


@dataclass
class Job:
    """Own times in ms, ranks by steps. Arrays that nothing has touched are one number, spread out."""

    scenario: Scenario
    random: np.random.Generator = field(init=False)
    groups: Layout = field(init=False)
    noise: Noise = field(init=False)

    def __post_init__(self) -> None:
        workload = self.scenario.workload
        self.random = np.random.default_rng(self.scenario.seed)
        self.groups = layout(workload)
        self.noise = _NOISE.widened(workload.noise)
        self.shape = (workload.ranks, workload.steps)
        self.step_ms = workload.step_ms
        self.copy_ms = workload.copy_ms or _COPY_SHARE * workload.step_ms
        self.transfer_ms = workload.transfer_ms or _TRANSFER_SHARE * workload.step_ms
        self.host_of = np.arange(workload.ranks) // self.scenario.node.gpus
        self.hosts = int(self.host_of[-1]) + 1
        self._parts: dict[str, FloatArray] = {}
        self._compute()
        self._waits_of_the_host()
        #: Transfer of each rank's groups: by kind, as a factor on the usual time.
        self.crossing = self._ones()
        self.crossing_inner = self._ones()
        self.length_ms = np.zeros(workload.steps)

    # ---- own times ----------------------------------------------------------------------------------------------

    def _ones(self) -> FloatArray:
        return np.broadcast_to(np.float32(1.0), self.shape)

    def _compute(self) -> None:
        noise, random = self.noise, self.random
        ranks, steps = self.shape
        common = noise.common_sigma * wander(random, steps, noise.common_autocorrelation)
        own = 1 + _SPREAD * np.clip(random.standard_normal((ranks, 1)), -2, 2)
        late = random.random(self.shape, dtype=np.float32) < noise.spike_rate
        base = ((1 + common) * own).astype(np.float32)
        work = self.step_ms - self.transfer_ms - self.copy_ms
        whole = _FORWARD + _BACKWARD + _OPTIMIZER
        for name, share in (("forward", _FORWARD), ("backward", _BACKWARD), ("optimizer", _OPTIMIZER)):
            jitter = 1 + noise.compute_sigma * random.standard_normal(self.shape, dtype=np.float32)
            share_ms = np.float32(share / whole * max(work, 0.1 * self.step_ms))
            self._parts[name] = (base * jitter * share_ms).astype(np.float32)
        self._parts["backward"][late] += random.exponential(noise.spike_size * self.step_ms, int(late.sum()))
        self._parts["forward"][:, 0] *= _FIRST_STEP
        self._parts["backward"][:, 0] *= _FIRST_STEP
        jitter = 1 + 5 * noise.compute_sigma * np.abs(random.standard_normal(self.shape, dtype=np.float32))
        self._parts["copy"] = (np.float32(self.copy_ms) * jitter).astype(np.float32)

    def _waits_of_the_host(self) -> None:
        noise, random = self.noise, self.random
        self._parts["runqueue"] = (
            random.standard_exponential(self.shape, dtype=np.float32)
            * noise.runqueue_share
            * self.scenario.workload.host_ms
        ).astype(np.float32)
        self._parts["lead"] = np.maximum(
            0.05 * self.step_ms,
            self.step_ms * (noise.lead_share + noise.lead_sigma * random.standard_normal(self.shape, dtype=np.float32)),
        ).astype(np.float32)
        self._parts["work"] = self._full(float(self.scenario.workload.batch))
        self._parts["ready"] = self._full(2.0)

    def _full(self, value: float) -> FloatArray:
        return np.broadcast_to(np.float32(value), self.shape)

    def part(self, name: str) -> FloatArray:
        """An array to look at; zeros where nothing put anything there."""
        return self._parts.get(name, self._full(0.0))

    def touch(self, name: str) -> FloatArray:
        """An array to change in place."""
        found = self.part(name)
        if not found.flags.writeable:
            found = found.copy()
            self._parts[name] = found
        return found

    def plain(self, name: str) -> bool:
        """Whether nothing has touched an array: it is one number."""
        return not self.part(name).flags.writeable

    def add(self, name: str, rows: Sequence[int] | IntArray, steps: BoolArray, ms: float, sigma: float = 0.1) -> None:
        """Put about `ms` more there, each time a little different."""
        where = np.ix_(np.asarray(rows), np.flatnonzero(steps))
        found = self.touch(name)
        shape = found[where].shape
        found[where] += np.abs(self.random.normal(ms, sigma * ms, shape)).astype(np.float32)

    def scale(self, name: str, rows: Sequence[int] | IntArray, steps: BoolArray, factor: float) -> None:
        """Make it longer by a factor."""
        where = np.ix_(np.asarray(rows), np.flatnonzero(steps))
        self.touch(name)[where] *= np.float32(factor)

    def compute(self, rows: Sequence[int] | IntArray, steps: BoolArray, factor: float) -> None:
        """Make everything the device computes longer."""
        for name in ("forward", "backward", "optimizer"):
            self.scale(name, rows, steps, factor)

    def cross(self, rows: Sequence[int] | IntArray, steps: BoolArray, factor: float, *, inner: bool) -> None:
        """Make transfers that these ranks take part in longer; `inner`: those within their host only."""
        name = "crossing_inner" if inner else "crossing"
        found = getattr(self, name)
        if not found.flags.writeable:
            found = found.copy()
            setattr(self, name, found)
        where = np.ix_(np.asarray(rows), np.flatnonzero(steps))
        found[where] = np.maximum(found[where], np.float32(factor))

    # ---- the groups ---------------------------------------------------------------------------------------------

    def close(self) -> Waits:
        """Let the groups wait for each other, once faults are in."""
        noise, groups, random = self.noise, self.groups, self.random
        steps = self.shape[1]
        compute = self.part("forward") + self.part("backward") + self.part("gap")
        inner = np.zeros(self.shape, dtype=np.float32)
        sigma = noise.transfer_sigma * wander(random, steps, noise.transfer_autocorrelation)
        usual = np.exp(np.clip(sigma, -2, np.log(noise.transfer_tail) * 1.5)).astype(np.float32) * np.float32(
            self.transfer_ms
        )
        for group, share in ((groups.tensor, 1.0), (groups.expert, 0.5)):
            if group is not None:
                parts = compute if group is groups.tensor else self.part("forward") + inner
                crossed = group.largest(self.crossing_inner)
                inner += group.largest(parts) - parts + np.float32(0.3 * share) * usual * crossed
        bubble = np.zeros(self.shape, dtype=np.float32)
        if groups.pipeline is not None:
            stage = compute + inner
            chain = groups.pipeline
            micro = self.scenario.workload.microbatches
            members = stage[chain.places] / micro
            whole = members.sum(axis=1) + (micro - 1) * members.max(axis=1)
            bubble = (whole if len(whole) == 1 else whole[chain.of]) - stage
        stalls = self.part("checkpoint") + self.part("evaluation") + self.part("stall") + self.part("gc")
        before = self.part("data") + self.part("copy") + compute + inner + bubble
        crossed = np.maximum(self.crossing, self.crossing_inner)
        if groups.data is not None:
            transfer = np.broadcast_to(usual * groups.data.largest(crossed), self.shape)
            arrived = groups.data.largest(before + stalls)
        else:
            transfer = np.zeros(self.shape, dtype=np.float32)
            arrived = before + stalls
        # Whoever is behind holds everybody up at the next step: by the end of it all are together again.
        ends = arrived + transfer + self.part("optimizer")
        length = ends.max(axis=0)
        backward = np.broadcast_to(length, self.shape) - before - stalls - self.part("optimizer")
        self.length_ms = length.astype(np.float64)
        return Waits(
            inner=inner,
            bubble=bubble,
            backward=np.maximum(backward, 0),
            length=np.broadcast_to(length, self.shape),
        )


def wander(random: np.random.Generator, steps: int, together: float) -> NDArray[np.float64]:
    """First-order autoregressive noise of variance 1."""
    noise = random.standard_normal(steps)
    scale = float(np.sqrt(1 - together**2))
    for index in range(1, steps):
        noise[index] = together * noise[index - 1] + scale * noise[index]
    return noise
