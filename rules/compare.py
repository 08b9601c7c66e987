"""Two runs set side by side: which phases changed by more than noise, and what differs between what they were made of.

A phase has changed where a bootstrap interval of the difference leaves out zero and the difference is worth telling.
The bootstrap draws whole stretches of steps, a tenth of the run each, so that a machine's slow wandering counts as
noise and not as evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankscope.rules.frame import FloatArray, Frame, median
from rankscope.window import Columns, Window

#: Latest judged steps of a run that are compared: enough for a tight interval, few enough for a second's work.
_STEPS = 1_500
_DRAWS = 1_000
#: Half of what the interval leaves out on each side: 99 % for some ten phases at once.
_TAIL = 0.005
#: Differences below this share of the good run's step are not told: two runs of one job on one machine differ by more.
LEAST_SHARE = 0.02
#: Fewer judged steps than these have no interval.
LEAST_STEPS = 20
#: One rank carries a change where the other ranks together have less than this share of it.
_OTHERS = 0.25

#: Placements are told rank by rank up to so many.
_EACH = 4

#: Facts by what they belong to, and the phases that they can move.
_WORK = ("forward", "backward", "optimizer", "other", "step")
_EXCHANGE = ("collective_wait", "backward", "step")
TOPICS: Mapping[str, tuple[str, ...]] = {
    "code": ("forward", "backward", "optimizer", "data_wait", "checkpoint", "evaluation", "other", "step"),
    "packages": ("forward", "backward", "optimizer", "data_wait", "other", "step"),
    "image": _WORK,
    "driver": (*_WORK, "collective_wait"),
    "firmware": (*_WORK, "collective_wait"),
    "nccl": _EXCHANGE,
    "environment": (*_WORK, "collective_wait"),
    "topology": _EXCHANGE,
    "placement": (*_EXCHANGE, "forward", "optimizer", "data_wait"),
    "host": (*_WORK, "data_wait", "checkpoint"),
    "device settings": _WORK,
    "data": ("data_wait", "forward", "backward", "evaluation", "step"),
}


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """One phase in both runs, ms a step; the interval is of `delta_ms`. None where there are too few steps."""

    phase: str
    good_ms: float
    bad_ms: float
    delta_ms: float
    low_ms: float | None
    high_ms: float | None
    changed: bool
    #: The rank that carries nearly all of a change; None where it is on all, or the ranks differ between the runs.
    rank: int | None


@dataclass(frozen=True, slots=True)
class Drift:
    """One fact that differs: between the runs, or inside the bad one (then `good` is what most have there)."""

    topic: str
    name: str
    good: str | None
    bad: str | None
    #: Ranks or hosts of the bad run that have it; empty where all do.
    where: tuple[str, ...]
    #: Changed phases that such a fact can move.
    may_explain: tuple[str, ...]


def compare_phases(good: Window, bad: Window) -> list[PhaseChange]:
    """The step and each of its phases in both runs, the largest change first after the step itself."""
    before, after = _Phases(good), _Phases(bad)
    names = [name for name in before.values if name in after.values]
    usual = before.frame.typical_ms
    ranks = before.frame.ranks if before.frame.ranks == after.frame.ranks else ()
    found = [_change(name, before.values[name], after.values[name], usual, ranks) for name in names]
    rows = [change for change in found if change is not None]
    return sorted(rows, key=lambda change: (change.phase != "step", not change.changed, -abs(change.delta_ms)))


class _Phases:
    """Ranks x judged steps of each phase, ms."""

    def __init__(self, window: Window) -> None:
        self.frame = frame = Frame(window)
        self.values: dict[str, FloatArray] = {}
        if not frame.ranks:
            return
        keep = np.flatnonzero(frame.usable)[-_STEPS:]
        every = {
            "step": frame.step_ms,
            **frame.parts,
            "collective_wait": frame.wait_ms,
            # Inside the phases: what the host did meanwhile.
            "gc": frame.host("gc_ns") / 1e6,
            "sync": frame.host("sync_ns") / 1e6,
            "waiting for a core": frame.host("runqueue_ns") / 1e6,
            "checkpoint": frame.host("checkpoint_ns") / 1e6,
            "evaluation": frame.host("evaluation_ns") / 1e6,
        }
        names = sorted({name for index in range(len(frame.ranks)) for name in frame.of(index).phases})
        for name in names:
            every[f"phase {name}"] = np.stack(
                [_by_step(frame, frame.of(index).phases.get(name)) for index in range(len(frame.ranks))]
            )
        self.values = {name: values[:, keep] for name, values in every.items() if np.isfinite(values[:, keep]).any()}


def _by_step(frame: Frame, phase: Columns | None) -> FloatArray:
    total = np.zeros(len(frame.steps))
    if phase is not None and len(phase):
        columns = phase.columns
        steps = np.array(columns["step"]).astype(np.int64)
        places = np.minimum(np.searchsorted(frame.steps, steps), len(frame.steps) - 1)
        known = frame.steps[places] == steps
        lengths = (np.array(columns["end_ns"]) - np.array(columns["start_ns"])) / 1e6
        np.add.at(total, places[known], lengths[known])
    return total


def _change(name: str, good: FloatArray, bad: FloatArray, usual_ms: float, ranks: Sequence[int]) -> PhaseChange | None:
    """The change of one phase; `ranks` names the rows where both runs have the same."""
    before, after = (_job_wide(name, values) for values in (good, bad))
    if not before.size or not after.size:
        return None
    # What happens seldom has a median of nothing.
    seldom = float((after > 0).mean()) < 0.5 or float((before > 0).mean()) < 0.5
    centre = np.mean if seldom else np.median
    was, now = float(centre(before)), float(centre(after))
    low = high = None
    changed = False
    if min(len(before), len(after)) >= LEAST_STEPS:
        draw = np.random.default_rng(0)
        differences = _drawn(draw, after, seldom=seldom) - _drawn(draw, before, seldom=seldom)
        low, high = (float(edge) for edge in np.quantile(differences, (_TAIL, 1 - _TAIL)))
        changed = (low > 0 or high < 0) and abs(now - was) >= LEAST_SHARE * usual_ms
    rank = _carrier(good, bad, ranks, seldom=seldom) if changed else None
    return PhaseChange(name, was, now, now - was, low, high, changed, rank)


def _job_wide(name: str, values: FloatArray) -> FloatArray:
    """One value a step: the median rank of what all share, the mean of what is each rank's own."""
    there = np.isfinite(values).any(axis=0)
    found = median(values[:, there]) if name == "step" else np.nanmean(values[:, there], axis=0)
    return np.asarray(found)


def _drawn(draw: np.random.Generator, values: FloatArray, *, seldom: bool) -> FloatArray:
    """The statistic over as many steps as there are, drawn in stretches."""
    count = len(values)
    stretch = max(round(count ** (1 / 3)), count // 10)
    starts = draw.integers(0, count, size=(_DRAWS, -(-count // stretch)))
    places = (starts[:, :, np.newaxis] + np.arange(stretch)) % count
    sample = values[places.reshape(_DRAWS, -1)[:, :count]]
    return np.asarray(sample.mean(axis=1) if seldom else np.median(sample, axis=1))


def _carrier(good: FloatArray, bad: FloatArray, ranks: Sequence[int], *, seldom: bool) -> int | None:
    if len(ranks) < 2:
        return None
    centre = np.nanmean if seldom else np.nanmedian
    grown = np.array([centre(after) - centre(before) for before, after in zip(good, bad, strict=True)])
    order = np.argsort(-np.abs(grown))
    top, rest = float(abs(grown[order[0]])), np.abs(grown[order[1:]])
    return ranks[int(order[0])] if float(rest.max()) <= _OTHERS * top else None


def compare_facts(
    good: Mapping[str, Mapping[str, str]],
    bad: Mapping[str, Mapping[str, str]],
    changed: Sequence[str],
    topic_of: Mapping[str, str],
) -> list[Drift]:
    """Facts that differ. `good` and `bad` are fact -> place (rank or host) -> value; `topic_of`: what each is about."""
    found: list[Drift] = []
    for name in sorted({*good, *bad}):
        topic = topic_of[name]
        may = tuple(phase for phase in changed if phase in TOPICS.get(topic, ()) or phase.startswith("phase "))
        before, after = _shared(good.get(name, {})), _shared(bad.get(name, {}))
        values = bad.get(name, {})
        if before != after:
            odd = tuple(sorted(place for place, value in values.items() if value != before)) if values else ()
            where = odd if 0 < len(odd) < len(values) else ()
            found.append(Drift(topic, name, before, after, where, may))
        if len(set(values.values())) > 1 and len(set(good.get(name, {}).values())) <= 1:
            most = _shared(values)
            for value in sorted({*values.values()} - {most}):
                where = tuple(sorted(place for place, one in values.items() if one == value))
                if not any(drift.name == name and drift.bad == value for drift in found):
                    found.append(Drift(topic, name, most, value, where, may))
    found = _gathered(found)
    order = list(TOPICS)
    return sorted(found, key=lambda drift: (-len(drift.may_explain), order.index(drift.topic), drift.name))


def _gathered(found: Sequence[Drift]) -> list[Drift]:
    """Placements of many ranks as one line: another allocation moves them all."""
    kinds: dict[str, list[Drift]] = {}
    for drift in found:
        if drift.topic == "placement" and drift.name.startswith("rank "):
            kinds.setdefault(drift.name.split(" ", 2)[2], []).append(drift)
    kept = [drift for drift in found if not any(drift in of for of in kinds.values() if len(of) > _EACH)]
    for kind, of in kinds.items():
        if len(of) > _EACH:
            where = tuple(" ".join(drift.name.split(" ")[:2]) for drift in of)
            before, after = ({drift.good for drift in of}, {drift.bad for drift in of})
            said = [", ".join(sorted(value for value in values if value)[:3]) for values in (before, after)]
            kept.append(Drift("placement", f"{kind} of {len(of)} ranks", said[0], said[1], where, of[0].may_explain))
    return kept


def _shared(values: Mapping[str, str]) -> str | None:
    """What most places have; None where none has it."""
    counts: dict[str, int] = {}
    for value in values.values():
        counts[value] = counts.get(value, 0) + 1
    return max(sorted(counts), key=lambda value: counts[value], default=None)


def spelled(value: Any) -> str:
    """A fact as text."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)
