"""Made-up windows of a distributed job, for the rules alone: a DDP step with the noise of real machines.

Own work of each rank plus the wait for the slowest, host and device clocks, NVML and host readings, events. It knows
what a step and a counter look like, and shares nothing with the simulator.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.reading import Event
from rankscope.records import DeviceRecord, StepRecord
from rankscope.window import Columns, RankWindow, Series, SeriesKey, Window

MS = 1_000_000
SECOND = 1_000_000_000
BEGIN_NS = 3_000 * SECOND
HOST = "node-a"


def uuid(rank: int) -> str:
    """The UUID of a rank's GPU."""
    return f"GPU-{rank:08x}-0000-4000-8000-{rank:012x}"


@dataclass
class Job:
    """One job; change its arrays (ranks by steps, ms), then call `window`."""

    ranks: int = 4
    steps: int = 160
    seed: int = 1
    step_ms: float = 50.0
    #: Whether there is a device clock; else the host's is all there is.
    device: bool = True
    #: Relative noise of a kernel's duration, of the whole machine, and how one rank differs from another for good.
    jitter: float = 0.02
    drift: float = 0.01
    spread: float = 0.02
    nvml: bool = True
    period_s: float = 0.5
    #: Exposed part of the collective.
    transfer_ms: float = 2.0
    events: list[Event] = field(default_factory=list)
    not_seen: tuple[str, ...] = ()
    job_status: int | None = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        shape = (self.ranks, self.steps)
        common = 1 + self.drift * _wander(self.random, self.steps)
        own = 1 + self.spread * self.random.standard_normal((self.ranks, 1))

        def part(share: float) -> np.ndarray:
            noise = self.random.lognormal(0, self.jitter, shape)
            return share * self.step_ms * own * common * noise

        self.forward, self.backward, self.optimizer = part(0.3), part(0.58), part(0.08)
        self.other = np.abs(self.random.normal(0.2, 0.1, shape))
        # A machine does other things: some steps of some ranks are late.
        late = self.random.random(shape) < 0.01
        self.other += late * self.random.uniform(0.05, 0.6, shape) * self.step_ms
        self.first_steps()
        self.transfer = np.full(self.steps, self.transfer_ms)
        self.data = np.abs(self.random.normal(0.3, 0.2, shape))
        zeros = np.zeros(shape)
        self.checkpoint, self.gc, self.sync_count = zeros.copy(), zeros.copy(), zeros.copy()
        # Four ranks on two cores: milliseconds of waiting for a core, on every rank.
        self.runqueue = self.random.exponential(2.0, shape)
        self.work = np.full(shape, 32.0)
        self.lead = self.step_ms * np.clip(self.random.normal(0.5, 0.1, shape), 0.2, 1)
        self.ready = np.full(shape, 2.0)
        self.readings: dict[tuple[str, str], np.ndarray] = {}

    def first_steps(self) -> None:
        """Warm-up: allocator, rebuilt buckets."""
        self.forward[:, 0] *= 8
        self.backward[:, :2] *= 3

    # ---- faults -------------------------------------------------------------------------------------------------

    def slow_gpu(self, rank: int | None, factor: float, begin: int = 0, end: int | None = None) -> Job:
        """The device's work takes longer, whatever the counters say."""
        rows = slice(None) if rank is None else rank
        for part in (self.forward, self.backward, self.optimizer):
            part[rows, begin:end] *= factor
        return self

    def more_work(self, rank: int, factor: float, begin: int = 0) -> Job:
        """A rank gets larger batches."""
        self.work[rank, begin:] = np.round(32 * factor)
        for part in (self.forward, self.backward):
            part[rank, begin:] *= np.round(32 * factor) / 32
        return self

    def wandering_work(self, spread: float) -> Job:
        """Batches of different sizes on every rank and step."""
        ratio = self.random.uniform(1 - spread, 1 + spread, self.work.shape)
        self.work = np.round(1000 * ratio)
        self.forward *= ratio
        self.backward *= ratio
        return self

    def contended(self, rank: int, lost_ms: float, begin: int = 0) -> Job:
        """Something else runs on a rank's core: its host is late, so its device starves."""
        lost = np.abs(self.random.normal(lost_ms, 0.3 * lost_ms, self.steps - begin))
        self.runqueue[rank, begin:] += lost
        self.forward[rank, begin:] += 0.6 * lost
        self.backward[rank, begin:] += 0.4 * lost
        self.lead[rank, begin:] = 0.2
        return self

    def starved_of_data(self, wait_ms: float, begin: int = 0, workers: int = 1) -> Job:
        """Every rank waits for batches: in every step, or in each one that the same late worker serves."""
        every = np.arange(begin, self.steps, workers)
        shape = (self.ranks, len(every))
        self.data[:, every] += np.abs(self.random.normal(wait_ms * workers, 0.1 * wait_ms, shape))
        self.lead[:, begin:] = 0.3
        self.ready[:, begin:] = 0
        return self

    def pauses(self, kind: np.ndarray, rank: int | None, pause_ms: float, begin: int, every: int) -> Job:
        """Pauses of the host that come back."""
        rows = slice(None) if rank is None else rank
        kind[rows, begin::every] += pause_ms
        return self

    def synchronizing(self, count: int, cost_ms: float, begin: int = 0) -> Job:
        """The host waits for its device in the middle of the step."""
        self.sync_count[:, begin:] = count
        self.forward[:, begin:] += cost_ms
        self.lead[:, begin:] = 0.4
        return self

    def event(self, kind: str, at_step: float, text: str = "", *, rank: int | None = None, **more: Any) -> Job:
        """Something that happened, `at_step` steps into the run."""
        device = more.pop("device", "")
        time_ns = BEGIN_NS + int(at_step * self.step_ms * 1.05 * MS)
        self.events.append(Event(kind, time_ns, text or kind, device=device, rank=rank, host=HOST, attributes=more))
        return self

    # ---- readings -----------------------------------------------------------------------------------------------

    def read(self, metric: str, device: str, values: np.ndarray) -> Job:
        """Give the readings of a metric, one for each of `times`."""
        self.readings[metric, device] = values
        return self

    def gpu_readings(self, times: np.ndarray) -> None:
        """What healthy GPUs say."""
        for rank in range(self.ranks):
            count = len(times)
            told = {
                "gpu.clock_event_reasons": np.zeros(count),
                "gpu.sm_clock_mhz": 1980 - 15.0 * self.random.integers(0, 2, count),
                "gpu.temperature_celsius": 60 + rank + self.random.normal(0, 1, count),
                "gpu.slowdown_temperature_celsius": np.full(count, 87.0),
                "gpu.power_watts": self.random.normal(600, 10, count),
                "gpu.throttle_hw_thermal_ns": np.full(count, 5e9),
                "gpu.throttle_sw_thermal_ns": np.zeros(count),
                "gpu.ecc_uncorrected_volatile": np.full(count, 3.0),
                "gpu.ecc_uncorrected_aggregate": np.full(count, 40.0),
            }
            for metric, values in told.items():
                self.readings.setdefault((metric, uuid(rank)), values)

    def host_readings(self, times: np.ndarray) -> None:
        """What a busy but healthy host says."""
        seconds = (times - times[0]) / 1e9
        count = len(times)
        told = {
            "host.pressure_cpu_some_ns": 0.3e9 * seconds,
            "host.pressure_io_some_ns": 0.01e9 * seconds,
            "host.pressure_io_full_ns": 0.005e9 * seconds,
        }
        for metric, values in told.items():
            self.readings.setdefault((metric, ""), values)
        for rank in range(self.ranks):
            device = f"rank:{rank}"
            self.readings.setdefault(("process.workers_blocked", device), np.zeros(count))
            self.readings.setdefault(("process.blkio_ns", device), 1e5 * seconds)
            self.readings.setdefault(("process.worker_cpu_ns", device), 0.1e9 * seconds)
            self.readings.setdefault(("process.involuntary_switches", device), 20 * seconds)

    def active(self, times: np.ndarray, begin: int, end: int | None = None) -> np.ndarray:
        """Which readings fall into steps [begin, end)."""
        starts = self.starts()
        first = starts[begin] if begin else -math.inf
        last = starts[end] if end is not None else math.inf
        return (times >= first) & (times < last)

    def throttled(self, rank: int, begin: int = 0, end: int | None = None, *, clock: float = 1580) -> Job:
        """The counters of a GPU that slows itself for heat."""
        times = self.times()
        self.gpu_readings(times)
        hot = self.active(times, begin, end)
        gpu = uuid(rank)
        self.readings["gpu.clock_event_reasons", gpu] = np.where(hot, 0x48, 0).astype(float)
        self.readings["gpu.sm_clock_mhz", gpu][hot] = clock
        self.readings["gpu.temperature_celsius", gpu][hot] = 88
        gained = np.concatenate(([0], np.diff(times))) * hot
        self.readings["gpu.throttle_hw_thermal_ns", gpu] = 5e9 + np.cumsum(gained)
        return self

    def locked(self, rank: int, clock: float, begin: int = 0, *, bit: bool = True) -> Job:
        """The counters of a GPU whose clock someone set."""
        times = self.times()
        self.gpu_readings(times)
        low = self.active(times, begin)
        self.readings["gpu.sm_clock_mhz", uuid(rank)][low] = clock
        if bit:
            self.readings["gpu.clock_event_reasons", uuid(rank)] = np.where(low, 0x2, 0).astype(float)
        return self

    def capped(self, begin: int = 0) -> Job:
        """Every GPU at its power cap."""
        times = self.times()
        self.gpu_readings(times)
        held = self.active(times, begin)
        for rank in range(self.ranks):
            self.readings["gpu.clock_event_reasons", uuid(rank)] = np.where(held, 0x4, 0).astype(float)
            self.readings["gpu.sm_clock_mhz", uuid(rank)][held] -= 200
        return self

    def slow_disk(self, begin: int = 0) -> Job:
        """Storage that cannot follow: blocked workers, pressure."""
        times = self.times()
        slow = self.active(times, begin)
        gained = np.concatenate(([0], np.diff(times))) * slow
        self.readings["host.pressure_io_some_ns", ""] = np.cumsum(0.6 * gained)
        for rank in range(self.ranks):
            self.readings["process.workers_blocked", f"rank:{rank}"] = slow.astype(float)
            self.readings["process.blkio_ns", f"rank:{rank}"] = np.cumsum(0.5 * gained)
        return self

    def memory_error(self, rank: int, at: int) -> Job:
        """The volatile uncorrected counter moves."""
        times = self.times()
        self.gpu_readings(times)
        self.readings["gpu.ecc_uncorrected_volatile", uuid(rank)] = 3.0 + self.active(times, at)
        return self

    # ---- the window ---------------------------------------------------------------------------------------------

    def own(self) -> np.ndarray:
        """Own time of each rank and step."""
        host = self.checkpoint + self.gc
        return self.data + self.forward + self.backward + self.optimizer + self.other + host

    def lengths(self) -> np.ndarray:
        """Length of each step of the job: the slowest rank and the exposed transfer."""
        return self.own().max(axis=0) + self.transfer

    def starts(self) -> np.ndarray:
        """When each step begins, ns."""
        return BEGIN_NS + np.concatenate(([0.0], np.cumsum(self.lengths())[:-1])) * MS

    def times(self) -> np.ndarray:
        """When readings are taken."""
        end = self.starts()[-1] + self.lengths()[-1] * MS
        return np.arange(BEGIN_NS, end, self.period_s * SECOND)

    def window(self) -> Window:
        """The window of it all."""
        times = self.times()
        if self.nvml:
            self.gpu_readings(times)
        else:
            self.readings = {key: values for key, values in self.readings.items() if "gpu." not in key[0]}
        self.host_readings(times)
        series = {
            SeriesKey(HOST, metric, device): Series(
                array("q", times.astype(np.int64).tolist()), array("d", np.broadcast_to(values, times.shape))
            )
            for (metric, device), values in self.readings.items()
        }
        starts, lengths, own = self.starts(), self.lengths(), self.own()
        ranks = {
            rank: RankWindow(
                identity=RankIdentity(
                    "job",
                    0,
                    rank,
                    self.ranks,
                    rank,
                    HOST,
                    100 + rank,
                    1,
                    "boot",
                    uuid(rank),
                    "async" if self.device else "host",
                ),
                steps=self._host_columns(rank, starts, lengths, own),
                device=self._device_columns(rank, lengths, own) if self.device else Columns({}),
            )
            for rank in range(self.ranks)
        }
        return Window(
            job="job",
            ranks=ranks,
            series=series,
            events=sorted(self.events, key=lambda event: event.time_ns),
            anchors={HOST: ClockAnchor(BEGIN_NS, 1_790_000_000 * SECOND)},
            begin_ns=BEGIN_NS,
            end_ns=int(starts[-1] + lengths[-1] * MS),
            world_size=self.ranks,
            not_seen=self.not_seen,
            job_status=self.job_status,
            gpus={HOST: [uuid(rank) for rank in range(self.ranks)] if self.nvml else []},
        )

    def _host_columns(self, rank: int, starts: np.ndarray, lengths: np.ndarray, own: np.ndarray) -> Columns:
        numbers = np.arange(self.steps)
        wait = lengths - own[rank]
        if self.device:
            # The host launches and runs ahead; what is left of the step it waits at the end of backward.
            forward, own_backward = np.full(self.steps, 3.0), np.full(self.steps, 5.0)
            other, optimizer = self.gc[rank] + 0.2, np.full(self.steps, 1.0)
            backward = lengths - self.data[rank] - forward - other - optimizer - self.checkpoint[rank]
        else:
            forward, own_backward = self.forward[rank], self.backward[rank]
            other, optimizer = self.other[rank] + self.gc[rank], self.optimizer[rank]
            backward = own_backward + wait
        values = {
            "step": numbers,
            "start_ns": starts,
            "end_ns": starts + lengths * MS,
            "data_wait_ns": self.data[rank] * MS,
            "forward_ns": forward * MS,
            "backward_ns": backward * MS,
            "optimizer_ns": optimizer * MS,
            "checkpoint_ns": self.checkpoint[rank] * MS,
            "evaluation_ns": np.zeros(self.steps),
            "other_ns": other * MS,
            "backward_own_ns": own_backward * MS,
            "sync_ns": (self.sync_count[rank] > 0) * 0.7 * lengths * MS,
            "sync_count": self.sync_count[rank],
            "gc_ns": self.gc[rank] * MS,
            "gc_count": (self.gc[rank] > 0).astype(float),
            "runqueue_ns": self.runqueue[rank] * MS,
            "work": self.work[rank],
            "loader_ready": self.ready[rank],
            "loader_workers": np.full(self.steps, 1.0),
        }
        return _columns(StepRecord, values, self.steps)

    def _device_columns(self, rank: int, lengths: np.ndarray, own: np.ndarray) -> Columns:
        values = {
            "step": np.arange(self.steps),
            "step_ns": lengths * MS,
            "data_wait_ns": self.data[rank] * MS,
            "forward_ns": self.forward[rank] * MS,
            "backward_own_ns": self.backward[rank] * MS,
            "backward_wait_ns": (lengths - own[rank]) * MS,
            "optimizer_ns": self.optimizer[rank] * MS,
            "other_ns": (self.other[rank] + self.gc[rank] + self.checkpoint[rank]) * MS,
            "lead_forward_ns": self.lead[rank] * MS,
            "lead_backward_ns": self.lead[rank] * MS,
            "lead_optimizer_ns": self.lead[rank] * MS,
            "lead_end_ns": self.lead[rank] * MS,
        }
        # The last steps' events are not read any more, nor has the first an event at its begin.
        chosen = slice(1, self.steps - 2)
        return _columns(DeviceRecord, {name: each[chosen] for name, each in values.items()}, self.steps - 3)


def _wander(random: np.random.Generator, steps: int) -> np.ndarray:
    """Slow common noise: a machine shared with others (first-order autoregressive)."""
    noise = random.standard_normal(steps)
    for index in range(1, steps):
        noise[index] = 0.9 * noise[index - 1] + 0.44 * noise[index]
    return noise


def _columns(kind: type, values: dict[str, np.ndarray], count: int) -> Columns:
    missing = array("d", [math.nan]) * count
    return Columns(
        {
            each.name: array("d", np.asarray(values[each.name], dtype=float)) if each.name in values else missing
            for each in fields(kind)
        }
    )
