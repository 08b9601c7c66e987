"""Evidence in the steps themselves: which phase grew, who waited, whether the device starved, what stalled the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankscope.rules.evidence import Case, Observation, graded, unseen
from rankscope.rules.frame import COMPUTE, NS_PER_MS, BoolArray, mean, median, middle
from rankscope.rules.kernel_windows import IDLE_FOR_HOST
from rankscope.rules.lateness import LEAST_MEETINGS

#: Share of an excess that must lie in a phase, or be explained by a stall, to speak and to speak fully.
_MOST = (0.3, 0.7)
#: A host that enqueues last in this share of the held-up collectives is late, and what that alone is worth.
_HOST_LAST = 0.5
_HOST_ONLY = 0.5
#: A device that runs behind its host by less than this share of the step waits for the host.
_STARVED = 0.06


def _share(case: Case, phases: tuple[str, ...]) -> float:
    total = case.suspect.excess_ms
    return sum(max(0.0, case.suspect.excess.get(name, 0.0)) for name in phases) / total if total > 0 else 0.0


def compute(case: Case) -> Observation:
    """The excess lies in forward, backward and optimizer."""
    share = _share(case, COMPUTE)
    return Observation(graded(share, *_MOST), f"{share:.0%} of the excess lies in computing", round(share, 3))


def data_wait(case: Case) -> Observation:
    """The excess lies in waiting for the next batch."""
    share = _share(case, ("data_wait",))
    return Observation(graded(share, *_MOST), f"{share:.0%} of the excess is waiting for data", round(share, 3))


def arrival(case: Case) -> Observation:
    """Nobody leaves a collective before the last one arrives: the late rank is the one that waits least."""
    if not case.suspect.located or not case.peers:
        return unseen("no peers to compare the wait with")
    timed = case.frame.timed
    by_library = timed is not None and timed.last(case.row, case.mask) is not None
    waits = timed.wait_ms if timed is not None and by_library else case.frame.wait_ms
    host, order = _enqueues_last(case)
    if case.suspect.contaminated:
        # Only whose host is late is told: a device that is slow behind a host that runs ahead does not show.
        if host is None or host < _HOST_LAST:
            return unseen("waits for other ranks lie inside own times, where nothing tells them" + order)
        return Observation(_HOST_ONLY, f"its waits are hidden{order}", round(host, 3))
    own = middle(waits[case.row][case.mask])
    others = middle(median(waits[case.peers][:, case.mask]))
    if not (np.isfinite(own) and np.isfinite(others)):
        return unseen("no waits in collectives" + order)
    gap = (others - own) / max(case.suspect.ms_per_step, 1e-9)
    source = " (each collective timed on the device)" if by_library else ""
    what = f"it waits {own:.1f} ms a step for the others, they {others:.1f} ms{source}{order}"
    return Observation(graded(gap, 0.2, 0.6), what, round(own, 2), round(others, 2))


def starved(case: Case) -> Observation:
    """The device had caught up with its host, so that the host, not the device, set the pace.

    A window of the profiler shows it kernel by kernel, and goes before what the boundaries of phases tell.
    """
    told, seen = _lead(case), case.frame.kernel_window(_told_by(case), case.mask)
    if seen is None or seen.idle_for_host is None:
        return told
    strength = graded(seen.idle_for_host, *IDLE_FOR_HOST) if seen.host_bound else 0.0
    what = seen.said if told.strength is None else f"{told.what}; {seen.said}"
    return Observation(strength, what, round(seen.idle_for_host, 3), told.peers)


def _enqueues_last(case: Case) -> tuple[float | None, str]:
    """Share of held-up collectives in which the rank's host enqueued last, and that in words; None, "" if untold."""
    ranking = case.frame.enqueue_order(case.mask)
    row = None if ranking is None else next((r for r in ranking.rows if r.who == case.frame.ranks[case.row]), None)
    if ranking is None or row is None:
        return None, ""
    if ranking.with_last < LEAST_MEETINGS:
        return 0.0, f"; no host enqueues late ({ranking.meetings} collectives of flight recorders)"
    share = row.times_last / ranking.with_last
    return share, f"; its host enqueues last in {row.times_last} of {ranking.with_last} collectives (flight recorders)"


def _told_by(case: Case) -> Sequence[int]:
    """Rows whose windows speak here: of a suspect that is everywhere any rank's does, since one at a time has one."""
    return (case.row,) if case.suspect.located else case.suspect.rows


def _lead(case: Case) -> Observation:
    """The same by how far the device ran behind its host.

    Taken at the begin of forward and backward: later the device waits for its peers, and any host is ahead of it.
    """
    leads = np.fmax(case.frame.device("lead_forward_ns"), case.frame.device("lead_backward_ns")) / NS_PER_MS
    if not case.frame.on_device or not np.isfinite(leads[case.row]).any():
        return unseen("no device clock: cannot tell a slow device from a slow host")
    lead = middle(leads[case.row][case.mask])
    share = lead / case.frame.typical_ms
    peers = middle(median(leads[case.peers][:, case.mask])) if case.suspect.located and case.peers else float("nan")
    strength = 1 - graded(share, _STARVED / 2, 2 * _STARVED)
    if np.isfinite(peers) and peers > 0:
        strength = max(strength, 0.7 * graded(1 - lead / peers, 0.5, 0.8))
    what = f"the device ran {lead:.1f} ms behind the host"
    return Observation(strength, what, round(lead, 2), None if not np.isfinite(peers) else round(peers, 2))


def launch(case: Case) -> Observation:
    """The device caught up with its host, which it did not before: the host launches more slowly than it computes."""
    leads = np.fmax(case.frame.device("lead_forward_ns"), case.frame.device("lead_backward_ns")) / NS_PER_MS
    if not case.frame.on_device or not np.isfinite(leads[case.row]).any():
        return unseen("no device clock: cannot tell a slow device from a slow host")
    if not case.has_past:
        return unseen("no own past to compare the host's lead with")
    now, before = middle(leads[case.row][case.mask]), middle(leads[case.row][case.baseline])
    caught_up = 1 - graded(now / case.frame.typical_ms, _STARVED / 2, 2 * _STARVED)
    lost = graded(1 - now / before, 0.3, 0.7) if before > 0 else 0.0
    what = f"the host ran {now:.1f} ms ahead of its device ({before:.1f} ms before)"
    strength = min(caught_up, lost)
    seen, past = (case.frame.kernel_window(_told_by(case), mask) for mask in (case.mask, case.baseline))
    if seen is not None:
        what += f"; {seen.said}"
        if not seen.host_bound:
            strength = 0.0
        elif past is not None:
            # Kernel by kernel, before and after: whatever the boundaries of phases show.
            strength = 0.0 if past.host_bound else 1.0
    return Observation(strength, what, round(now, 2))


def _stall(case: Case, field: str, name: str) -> Observation:
    """What a stall of the host explains of the excess, above what it was before."""
    values = case.frame.host(field)
    if not np.isfinite(values[case.row]).any():
        return unseen(f"no {name} times of rank {case.frame.ranks[case.row]}")
    rows = list(case.suspect.rows)
    worst = np.max(np.nan_to_num(values[rows]), axis=0) / NS_PER_MS

    def level(mask: BoolArray) -> float:
        return float(worst[mask].mean()) if mask.any() else 0.0

    now, before = level(case.mask), level(case.baseline)
    explained = (now - before) / max(case.suspect.excess_ms, 1e-9)
    return Observation(graded(explained, *_MOST), f"{name}: {now:.1f} ms a step", round(now, 2), None)


def garbage(case: Case) -> Observation:
    """Python's garbage collector stopped the training thread."""
    return _stall(case, "gc_ns", "garbage collection")


def checkpoint(case: Case) -> Observation:
    """The training thread wrote a checkpoint."""
    return _stall(case, "checkpoint_ns", "checkpoints")


def sync(case: Case) -> Observation:
    """The host waits for its device in the middle of steps, more often than before and than its peers."""
    counts = case.frame.host("sync_count")
    now = mean(counts[case.row][case.mask])
    if not np.isfinite(now):
        return unseen("no counts of device synchronisation")
    before = mean(counts[case.row][case.baseline]) if case.has_past else 0.0
    peers = mean(counts[case.peers][:, case.mask]) if case.peers and case.suspect.located else 0.0
    usual = max(value if np.isfinite(value) else 0.0 for value in (before, peers))
    blocked = mean(case.frame.host("sync_ns")[case.row][case.mask]) / NS_PER_MS
    what = f"the host waited for its device {now:.1f} times a step, {blocked:.1f} ms together"
    # A loop that synchronises in every n-th step only is still the loop's own doing.
    often = max(0.05, 0.5 * mean((counts[case.row][case.mask] > 0).astype(float)))
    return Observation(graded(now - usual, 0.02, often), what, round(now, 2), round(peers, 2))


def work(case: Case) -> Observation:
    """The rank was given larger batches, and takes as much longer as they are larger."""
    sizes = case.frame.host("work")
    now = middle(sizes[case.row][case.mask])
    if not np.isfinite(now):
        return unseen("the size of batches is not known")
    if not case.suspect.located:
        spread = np.ptp(sizes[:, case.mask], axis=0) / np.maximum(median(sizes[:, case.mask]), 1)
        uneven = middle(spread)
        told = "work" in case.suspect.excess
        return Observation(1.0 if told else 0.0, f"batches differ by {uneven:.0%} between ranks", round(uneven, 3))
    peers = middle(median(sizes[case.peers][:, case.mask])) if case.peers else float("nan")
    before = middle(sizes[case.row][case.baseline]) if case.has_past else float("nan")
    before_peers = middle(median(sizes[case.peers][:, case.baseline])) if case.has_past and case.peers else before
    ratio = now / peers if np.isfinite(peers) and peers > 0 else 1.0
    past = before / before_peers if np.isfinite(before) and before_peers > 0 else 1.0
    compute_ms = middle(case.frame.compute_ms[case.row][case.mask])
    expected = compute_ms * (1 - past / ratio) if ratio > 0 else 0.0
    explained = expected / max(case.suspect.excess_ms, 1e-9)
    what = f"batches of {now:g} against {peers:g} on the peers"
    return Observation(graded(explained, *_MOST), what, now, None if not np.isfinite(peers) else peers)
