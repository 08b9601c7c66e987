"""Each class of slowness is told from its neighbours, at the right place, and its twins change the answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from synthetic_job import Job

from rankscope.finding import Advice, Basis, Finding, Overhead, Side, Verdict
from rankscope.rules import judge

FROM = 50
SEVERITIES = (1.05, 1.10, 1.25, 2.0)


def verdict(job: Job) -> Verdict:
    """The verdict on a made-up job."""
    return judge(job.window(), Overhead())


def only(job: Job) -> Finding:
    """The one finding on a made-up job."""
    found = verdict(job).findings
    assert len(found) == 1, [(each.class_slug, each.where.rank) for each in found]
    return found[0]


@pytest.mark.parametrize("device", [True, False], ids=["device-clock", "host-clock"])
@pytest.mark.parametrize("severity", SEVERITIES)
class TestOneRank:
    """One rank of four slows in the middle of the run."""

    def test_thermal(self, severity: float, device: bool) -> None:
        """Slowness with the bits, counters and temperature of heat is that GPU, side hardware."""
        found = only(Job(device=device).slow_gpu(2, severity, FROM).throttled(2, FROM))
        assert (found.class_slug, found.side, found.where.rank) == ("gpu-thermal-slowdown", Side.HARDWARE, 2)
        assert found.where.gpu_uuid is not None
        assert found.basis is (Basis.DEVICE_COMPUTE if device else Basis.HOST)
        assert found.advice is Advice.ACT
        assert found.detected_step is not None
        assert FROM <= found.detected_step <= FROM + 25

    def test_same_slowness_with_clean_counters(self, severity: float, device: bool) -> None:
        """The twin without counters is located and priced, and never called hardware."""
        told = verdict(Job(device=device).slow_gpu(2, severity, FROM))
        assert told.verdict == "unknown"
        assert [each.where.rank for each in told.findings] == [2]
        assert told.findings[0].side is Side.UNKNOWN
        assert told.would_settle

    def test_clock_locked(self, severity: float, device: bool) -> None:
        """A clock set from outside is the environment's, not the board's."""
        found = only(Job(device=device).slow_gpu(1, severity, FROM).locked(1, 1980 / severity, FROM))
        assert (found.class_slug, found.side, found.where.rank) == (
            "gpu-clocks-locked",
            Side.ENVIRONMENT,
            1,
        )

    def test_more_work(self, severity: float, device: bool) -> None:
        """Larger batches on one rank are the code's, and with them a hot GPU is not accused."""
        found = only(Job(device=device).more_work(3, severity, FROM))
        assert (found.class_slug, found.side, found.where.rank) == ("work-imbalance", Side.CODE, 3)


@pytest.mark.parametrize("severity", [1.10, 1.25, 2.0])
def test_clock_locked_from_the_start(severity: float) -> None:
    """Without an own past the peers and the bit suffice."""
    found = only(Job().slow_gpu(1, severity).locked(1, 1980 / severity))
    assert (found.class_slug, found.where.rank) == ("gpu-clocks-locked", 1)
    assert "from the first step" in found.summary


def test_clock_flat_and_low_without_the_bit() -> None:
    """Locked clocks need not raise the bit: a clock that came to lie flat and low on a cool GPU says the same."""
    assert only(Job().slow_gpu(1, 1.3, FROM).locked(1, 1520, FROM, bit=False)).class_slug == "gpu-clocks-locked"


@pytest.mark.parametrize("severity", [1.03, 1.08, 1.15])
def test_silicon_spread(severity: float) -> None:
    """A GPU that is slower by nature, its clock lower from the start and no bit set, is ordinary."""
    assert verdict(Job(spread=0.01).slow_gpu(1, severity).locked(1, 1980 / severity, bit=False)).verdict == "healthy"


def test_slow_from_the_start_beyond_silicon() -> None:
    """No silicon differs by half: that is told, though unexplained."""
    found = only(Job().slow_gpu(1, 1.5))
    assert (found.side, found.where.rank) == (Side.UNKNOWN, 1)


def test_hot_gpu_of_a_rank_with_more_work() -> None:
    """More work heats a GPU until it throttles: the work is the cause of most of it."""
    told = verdict(Job().more_work(3, 1.5, FROM).throttled(3, FROM))
    assert all(each.side is not Side.HARDWARE for each in told.findings if each.confidence >= 0.8)


def test_throttle_bits_that_were_always_there() -> None:
    """What was set before the slowness began does not explain it."""
    told = verdict(Job().slow_gpu(2, 1.25, FROM).throttled(2))
    assert all(each.side is not Side.HARDWARE for each in told.findings if each.confidence >= 0.8)


@pytest.mark.parametrize("device", [True, False], ids=["device-clock", "host-clock"])
@pytest.mark.parametrize("begin", [0, FROM])
@pytest.mark.parametrize(
    ("make", "slug", "side", "rank"),
    [
        (lambda job, begin: job.contended(1, 15, begin), "cpu-contention", Side.ENVIRONMENT, 1),
        (lambda job, begin: job.starved_of_data(20, begin), "input-bound", Side.CODE, None),
        (lambda job, begin: job.starved_of_data(12, begin, workers=4), "input-bound", Side.CODE, None),
        (
            lambda job, begin: job.starved_of_data(20, begin).slow_disk(begin),
            "slow-storage",
            Side.ENVIRONMENT,
            None,
        ),
        (lambda job, begin: job.pauses(job.gc, None, 60, begin + 5, 8), "gc-pause", Side.CODE, None),
        (lambda job, begin: job.pauses(job.gc, 2, 60, begin + 5, 8), "gc-pause", Side.CODE, 2),
        (
            lambda job, begin: job.pauses(job.checkpoint, None, 250, begin + 5, 25),
            "checkpoint-stall",
            Side.CODE,
            None,
        ),
        (
            lambda job, begin: job.pauses(job.checkpoint, 0, 250, begin + 5, 25),
            "checkpoint-stall",
            Side.CODE,
            0,
        ),
    ],
    ids=["cpu", "input", "input-4-workers", "storage", "gc", "gc-one", "checkpoint", "checkpoint-rank-0"],
)
def test_host_and_code(
    make: Callable[[Job, int], Job], slug: str, side: Side, rank: int | None, begin: int, device: bool
) -> None:
    """Faults of host and code are told apart, whether they came in the middle or were there from the start."""
    found = only(make(Job(device=device), begin))
    assert (found.class_slug, found.side, found.where.rank) == (slug, side, rank)


@pytest.mark.parametrize("device", [True, False], ids=["device-clock", "host-clock"])
def test_host_sync(device: bool) -> None:
    """Waiting for the device inside the step is the code's."""
    found = only(Job(device=device).synchronizing(4, 5, FROM))
    assert (found.class_slug, found.where.rank) == ("host-sync", None)


def test_host_bound_without_sync_is_not_host_sync() -> None:
    """The same cost without a single synchronisation is not blamed on one."""
    told = verdict(Job().synchronizing(0, 5, FROM))
    assert "host-sync" not in [each.class_slug for each in told.findings]


def test_batches_that_wander() -> None:
    """Uneven batches slow the job though no rank is slow for long."""
    found = only(Job().wandering_work(0.3))
    assert (found.class_slug, found.where.rank) == ("work-imbalance", None)


def test_steps_that_synchronise_anyway_beside_a_hot_gpu() -> None:
    """A loop that synchronises once a step makes waits longer when a GPU slows: that is not its cause."""
    job = Job().slow_gpu(2, 1.25, FROM).throttled(2, FROM)
    job.sync_count[:] = 1
    assert verdict(job).findings[0].class_slug == "gpu-thermal-slowdown"


@pytest.mark.parametrize(
    "job",
    [
        Job().throttled(2, FROM),
        Job().locked(2, 1500, FROM),
        Job().slow_disk(FROM),
        Job().memory_error(2, FROM),
    ],
    ids=["thermal", "clocks", "storage", "ecc"],
)
def test_counters_without_slowness(job: Job) -> None:
    """Counters that speak while no step is slower: at most something to watch, and the verdict is healthy."""
    told = verdict(job)
    assert told.verdict == "healthy"
    assert all(each.advice is Advice.WATCH and each.confidence < 0.8 for each in told.findings)


def test_power_cap_on_all() -> None:
    """All GPUs at their power cap and slower for it: ordinary at full load."""
    assert verdict(Job().slow_gpu(None, 1.3, FROM).capped(FROM)).verdict == "healthy"


def test_whole_job_slower_for_nothing_seen() -> None:
    """All ranks much slower alike and nothing to explain it: unknown, and no rank or GPU is accused."""
    told = verdict(Job().slow_gpu(None, 1.6, FROM))
    assert told.verdict == "unknown"
    assert told.findings[0].where.rank is None


def test_two_faults() -> None:
    """A hot GPU and a rank that pauses are both found, the dearer first."""
    job = Job(steps=240).slow_gpu(2, 1.5, 120)
    told = verdict(job.pauses(job.gc, 0, 50, 20, 10).throttled(2, 120))
    assert [each.class_slug for each in told.findings] == ["gpu-thermal-slowdown", "gc-pause"]


def test_fault_that_ended() -> None:
    """A slowness that is over keeps its time, and asks for no action."""
    found = only(Job(steps=240).slow_gpu(2, 1.4, 60, 140).throttled(2, 60, 140))
    assert found.class_slug == "gpu-thermal-slowdown"
    assert found.until_ns is not None
    assert found.advice is Advice.WATCH


def test_without_nvml_nothing_is_called_hardware() -> None:
    """Without GPU readings the place is still told, the cause is not, and what could not be seen is said."""
    job = Job(nvml=False).slow_gpu(2, 1.25, FROM)
    told = verdict(job)
    assert told.verdict == "unknown"
    assert told.findings[0].where.rank == 2
    assert any("clock event reasons" in line for line in told.findings[0].not_seen)
    clean = verdict(Job().slow_gpu(2, 1.25, FROM))
    assert told.findings[0].confidence < clean.findings[0].confidence


def test_late_batches_hidden_in_the_collective() -> None:
    """Only the latest rank's device is idle while all hosts wait for batches: it is the loader's, on all ranks."""
    job = Job().starved_of_data(30, FROM)
    # The devices of the others wait in the collective meanwhile; their hosts wait for data all the same.
    window = job.window()
    for rank in (0, 1, 3):
        device = window.ranks[rank].device.columns
        for place, waited in enumerate(device["data_wait_ns"]):
            device["data_wait_ns"][place] = 0.0
            device["backward_wait_ns"][place] += waited
    found = judge(window, Overhead()).findings
    assert [(each.class_slug, each.where.rank) for each in found] == [("input-bound", None)]


def test_data_late_on_one_rank() -> None:
    """A loader that is slow on one rank only is found there."""
    job = Job()
    job.data[2, FROM:] += 25
    job.ready[2, FROM:] = 0
    job.lead[2, FROM:] = 0.3
    found = only(job)
    assert (found.class_slug, found.where.rank, found.where.phase) == ("input-bound", 2, "data_wait")


def test_collective_held_up_by_one_host() -> None:
    """A rank whose host thread comes late for its core slows the collective, with no device slower: still that rank."""
    job = Job(transfer_ms=2.0)
    job.transfer[FROM:] += 12
    job.runqueue[1, FROM:] += 20
    found = only(job)
    assert (found.class_slug, found.where.rank, found.basis) == ("cpu-contention", 1, Basis.HOST)


def test_rank_that_drifts() -> None:
    """A rank that becomes slower little by little is found, with no level to point at."""
    job = Job(steps=300)
    factor = 1 + 0.5 * np.clip((np.arange(300) - 60) / 240, 0, 1)
    for part in (job.forward, job.backward):
        part[2] *= factor
    told = verdict(job)
    assert [(each.class_slug, each.where.rank) for each in told.findings] == [("slow-rank-unexplained", 2)]


def test_many_ranks() -> None:
    """One slow GPU among 64 is named, and no other."""
    found = only(Job(ranks=64, steps=200, period_s=1.0).slow_gpu(37, 1.25, FROM).throttled(37, FROM))
    assert (found.class_slug, found.where.rank) == ("gpu-thermal-slowdown", 37)


def test_price_is_what_the_job_gets_back() -> None:
    """The price is the step's loss to this rank, not the rank's own excess: the next slowest bounds it."""
    job = Job(spread=0.0, jitter=0.005, drift=0.0).slow_gpu(1, 1.10).slow_gpu(2, 1.30, FROM).throttled(2, FROM)
    found = verdict(job).findings[0]
    assert found.where.rank == 2
    assert found.impact.ms_per_step == pytest.approx(0.2 * 0.96 * 50, rel=0.15)
    assert found.impact.gpu_hours_per_day == pytest.approx(4 * 24 * (found.impact.fraction_of_step or 0), rel=0.01)


def test_evidence_of_one_event_counts_once() -> None:
    """A throttle bit, its counter and the temperature are one family."""
    found = only(Job().slow_gpu(2, 1.25, FROM).throttled(2, FROM))
    families = [piece.family for piece in found.evidence]
    assert len(families) == len(set(families))
    assert families[0] == "thermal"
