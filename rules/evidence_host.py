"""Evidence on the host: cores that the training thread had to wait for, storage that its loaders had to wait for."""

from __future__ import annotations

import numpy as np

from rankscope.rules.evidence import Case, Observation, graded, middling, unseen
from rankscope.rules.frame import NS_PER_MS, Intervals, mean

#: Share of an excess that waiting for a core must explain to speak, and to speak fully. Some milliseconds of it are
#: ordinary wherever ranks share cores, so only what is above the own past and the peers counts.
_EXPLAINS = (0.2, 0.6)
#: Preemptions this many times the usual ones.
_PREEMPTED = (2.0, 6.0)
#: Share of the time in which some task waited for storage.
_PRESSED = (0.1, 0.4)
#: A disk that takes this many times as long for a request as before, or (without a past) this many ms.
_SLOWER = (2.0, 6.0)
_AWAIT_MS = (20.0, 100.0)


def cpu(case: Case) -> Observation:
    """The training thread was runnable but had to wait for a core, more than before and more than its peers."""
    waits = case.frame.host("runqueue_ns") / NS_PER_MS
    now = mean(waits[case.row][case.mask])
    if not np.isfinite(now):
        return _cpu_by_process(case)
    before = mean(waits[case.row][case.baseline]) if case.has_past else float("nan")
    peers = mean(waits[case.peers][:, case.mask]) if case.peers else float("nan")
    usual = max((value for value in (before, peers) if np.isfinite(value)), default=0.0)
    if not case.has_past and not case.peers:
        # Neither past nor peers: only a wait that makes up much of the step can be told from the ordinary.
        usual = 0.1 * case.frame.typical_ms
    explained = (now - usual) / max(case.suspect.excess_ms, 1e-9)
    strength = max(graded(explained, *_EXPLAINS), 0.4 * _preempted(case))
    what = f"the training thread waited {now:.1f} ms a step for a core (usual {usual:.1f} ms)"
    return Observation(strength, what, round(now, 2), None if not np.isfinite(peers) else round(peers, 2))


def _per_step(case: Case, row: int, metric: str, over: Intervals, steps: int) -> float | None:
    identity = case.frame.identity(row)
    grown = case.telemetry.growth(identity.host, metric, f"rank:{identity.rank}", over)
    return None if grown is None or steps <= 0 else grown / steps


def _usual(case: Case, metric: str) -> tuple[float | None, float | None, float | None]:
    """A process counter a step: now, before, on the peers."""
    now = _per_step(case, case.row, metric, case.over, int(case.mask.sum()))
    before = _per_step(case, case.row, metric, case.before, int(case.baseline.sum()))
    peers = middling(
        [
            _per_step(case, row, metric, case.frame.intervals(row, case.mask), int(case.mask.sum()))
            for row in case.peers[:16]
        ]
    )
    return now, before, peers


def _cpu_by_process(case: Case) -> Observation:
    now, before, peers = _usual(case, "process.runqueue_ns")
    if now is None:
        return unseen(f"no run-queue times of rank {case.frame.ranks[case.row]}")
    usual = max((value for value in (before, peers) if value is not None), default=0.0)
    explained = (now - usual) / NS_PER_MS / max(case.suspect.excess_ms, 1e-9)
    what = f"the main thread waited {now / NS_PER_MS:.1f} ms a step for a core (usual {usual / NS_PER_MS:.1f} ms)"
    peers_ms = None if peers is None else round(peers / NS_PER_MS, 2)
    return Observation(graded(explained, *_EXPLAINS), what, round(now / NS_PER_MS, 2), peers_ms)


def _preempted(case: Case) -> float:
    now, before, peers = _usual(case, "process.involuntary_switches")
    usual = max((value for value in (before, peers) if value is not None), default=None)
    if now is None or usual is None or now < 1:
        return 0.0
    return graded(now / max(usual, 0.5), *_PREEMPTED)


def storage(case: Case) -> Observation:
    """Loaders or the host waited for storage, and did not before: the strongest of four pieces."""
    pieces = [_blocked(case), _blkio(case), _pressure(case), _disk(case)]
    seen = [piece for piece in pieces if piece.strength is not None]
    if not seen:
        return unseen("no storage readings: pressure, disks, blocked workers")
    return max(seen, key=lambda piece: piece.strength or 0.0)


def _blocked(case: Case) -> Observation:
    rank = f"rank:{case.frame.ranks[case.row]}"
    now = case.telemetry.average(case.host, "process.workers_blocked", rank, case.over)
    if now is None:
        return unseen("no states of loader workers")
    before = case.telemetry.average(case.host, "process.workers_blocked", rank, case.before) or 0.0
    what = f"{now:.1f} loader workers blocked on storage on average"
    return Observation(graded(now - before, 0.1, 0.5), what, round(now, 2), None)


def _blkio(case: Case) -> Observation:
    now, before, _ = _usual(case, "process.blkio_ns")
    if now is None:
        return unseen("no storage delays of the rank's processes")
    blocked = (now - (before or 0.0)) / NS_PER_MS
    what = f"the rank's processes were blocked on storage for {now / NS_PER_MS:.1f} ms a step"
    explained = blocked / max(case.suspect.excess_ms, 1e-9)
    return Observation(graded(explained, *_EXPLAINS), what, round(now / NS_PER_MS, 2), None)


def _pressure(case: Case) -> Observation:
    rates = [
        (case.telemetry.rate(case.host, metric, "", case.over), case.telemetry.rate(case.host, metric, "", case.before))
        for metric in ("host.pressure_io_some_ns", "host.pressure_io_full_ns")
    ]
    seen = [(now / 1e9, (before or 0.0) / 1e9) for now, before in rates if now is not None]
    if not seen:
        return unseen("no I/O pressure")
    now, before = max(seen, key=lambda pair: pair[0] - pair[1])
    what = f"some task of the host waited for storage in {now:.0%} of the time (before: {before:.0%})"
    return Observation(graded(now - before, *_PRESSED), what, round(now, 3), None)


def _disk(case: Case) -> Observation:
    slowest: Observation | None = None
    for device in case.telemetry.devices(case.host, "disk.reads"):
        now = _await_ms(case, device, case.over)
        if now is None:
            continue
        before = _await_ms(case, device, case.before)
        strength = graded(now, *_AWAIT_MS) if before is None else graded(now / max(before, 1.0), *_SLOWER)
        what = f"reads of {device} took {now:.1f} ms" + ("" if before is None else f" (before: {before:.1f} ms)")
        piece = Observation(0.8 * strength, what, round(now, 2), None)
        if slowest is None or (piece.strength or 0.0) > (slowest.strength or 0.0):
            slowest = piece
    return slowest or unseen("no disk was read")


def _await_ms(case: Case, device: str, over: Intervals) -> float | None:
    reads = case.telemetry.growth(case.host, "disk.reads", device, over)
    took = case.telemetry.growth(case.host, "disk.read_ns", device, over)
    # A handful of reads says nothing about a disk.
    if reads is None or took is None or reads < 10:
        return None
    return took / reads / NS_PER_MS


def loader(case: Case) -> Observation:
    """No batch was ready when one was asked for."""
    ready = mean(case.frame.host("loader_ready")[case.row][case.mask])
    if not np.isfinite(ready):
        return unseen("the loader does not say how many batches are ready")
    what = f"{ready:.1f} batches ready when one was asked for"
    return Observation(1 - graded(ready, 0.3, 1.0), what, round(ready, 2), None)


def worker_cpu(case: Case) -> Observation:
    """The loader's workers are busy computing: what they compute more explains the wait, or takes all their time."""
    now, before, _ = _usual(case, "process.worker_cpu_ns")
    if now is None:
        return unseen("no CPU time of loader workers")
    workers = mean(case.frame.host("loader_workers")[case.row][case.mask])
    step = mean(case.frame.job_ms[case.mask]) * NS_PER_MS
    busy = now / (step * workers) if np.isfinite(workers) and workers > 0 else 0.0
    # Several workers prepare several batches at once: a batch is late by its own share of what they compute.
    at_once = workers if np.isfinite(workers) and workers >= 1 else 1.0
    more = 0.0 if before is None else (now - before) / NS_PER_MS / at_once / max(case.suspect.excess_ms, 1e-9)
    grown = graded(more, *_EXPLAINS)
    strength = max(grown, graded(busy, 0.4, 0.8))
    return Observation(strength, f"loader workers computed {now / NS_PER_MS:.1f} ms a step", round(now / NS_PER_MS, 2))
