"""Evidence in how a step is put together: copies, compilation, the allocator, pauses, transfers, stages, experts."""

from __future__ import annotations

import numpy as np

from rankscope.records import GroupKind
from rankscope.rules.change import noise_of
from rankscope.rules.evidence import Case, Observation, graded, unseen
from rankscope.rules.frame import mean, peers_median

#: Share of an excess that must lie in one thing to speak, and to speak fully.
_MOST = (0.3, 0.7)
#: Allocation retries a step.
_RETRIES = (0.02, 0.2)
#: Pauses come at equal distances where their distances vary by less than this share of them.
_REGULAR = 0.25
#: Computing of a rank whose tokens vary scatters this many times as much as before.
_SCATTER = (1.3, 2.5)


def _share(case: Case, *names: str) -> float:
    total = case.suspect.excess_ms
    return sum(max(0.0, case.suspect.excess.get(name, 0.0)) for name in names) / total if total > 0 else 0.0


def copies(case: Case) -> Observation:
    """The excess lies in copying batches to the device."""
    share = _share(case, "copy")
    return Observation(graded(share, *_MOST), f"{share:.0%} of the excess is copying to the device", round(share, 3))


def transfer(case: Case) -> Observation:
    """The excess lies in the transfers of collectives, for those who come last too."""
    share = _share(case, "transfer")
    return Observation(graded(share, *_MOST), f"{share:.0%} of the excess is transfer", round(share, 3))


def compiling(case: Case) -> Observation:
    """The excess is compilation, and functions are compiled again."""
    spent = mean(case.frame.host("compile_ns")[case.row][case.mask]) / 1e6
    if not np.isfinite(spent):
        return unseen("no compile times")
    explained = spent / max(case.suspect.excess_ms, 1e-9)
    again = np.nansum(case.frame.host("recompiles")[case.row][case.mask])
    what = f"{spent:.1f} ms a step of compilation, {again:.0f} times because a guard failed"
    return Observation(graded(explained, *_MOST), what, round(spent, 2))


def allocator(case: Case) -> Observation:
    """The allocator had to free memory and try again."""
    counts = case.frame.host("alloc_retries")[case.row]
    now = mean(counts[case.mask])
    if not np.isfinite(now):
        return unseen("no allocation retries")
    before = mean(counts[case.baseline]) if case.has_past else 0.0
    what = f"{now:.2f} allocation retries a step"
    return Observation(graded(now - (before if np.isfinite(before) else 0.0), *_RETRIES), what, round(now, 3))


def pauses(case: Case) -> Observation:
    """The loop itself stops at regular distances, outside all phases."""
    share = _share(case, "pause")
    if share < _MOST[0]:
        return Observation(0.0, "no pauses outside the phases")
    other = np.nan_to_num(case.frame.parts["other"][list(case.suspect.rows)]).max(axis=0)
    places = np.flatnonzero((other > 0.15 * case.frame.typical_ms) & case.mask)
    gaps = np.diff(places)
    if len(gaps) < 2:
        return Observation(0.3, f"{len(places)} pauses outside the phases", len(places))
    typical = float(np.median(gaps))
    regular = float(np.mean(np.abs(gaps - typical) <= _REGULAR * typical))
    often = typical < 1.5 * 2
    strength = 0.4 if often else graded(regular, 0.5, 0.8)
    return Observation(strength, f"a pause every {typical:.0f} steps, {regular:.0%} of them on time", round(typical))


def stage(case: Case) -> Observation:
    """All ranks of one pipeline stage compute longer, whichever GPU they run on."""
    if case.suspect.stage is None:
        return Observation(0.0, "no pipeline stage as a whole")
    what = f"every rank of stage {case.suspect.stage} computes longer ({len(case.suspect.rows)} ranks)"
    return Observation(1.0, what, case.suspect.stage)


def expert(case: Case) -> Observation:
    """The rank holds an expert, and its computing varies from step to step as tokens do, not as a slow clock does."""
    if case.frame.in_group(case.row, GroupKind.EXPERT) < 2:
        return Observation(0.0, "the rank holds no expert")
    # Relative to its peers: a slow clock stretches the scatter with the rest.
    compute = case.frame.compute_ms[case.row] / peers_median(case.frame.compute_ms, case.frame.roles)[case.row]
    now, before = compute[case.mask & np.isfinite(compute)], compute[case.baseline & np.isfinite(compute)]
    if len(now) < 8 or len(before) < 8:
        return Observation(0.4, "the rank holds an expert; no past to compare with")
    times = noise_of(now) / float(np.median(now)) / max(noise_of(before) / float(np.median(before)), 1e-9)
    what = f"its computing scatters {times:.1f} times as much as before"
    return Observation(graded(times, *_SCATTER), what, round(times, 2))
