"""A recorded window as a model for the replay, so that it prices ranks, phases, stages, hosts and process groups.

The lanes are ranks. Each rank's step is its own phases one after the other; inside the layers it meets the ranks that
it shares them with, after them its pipeline, and at the end all others. Who waited least in an exchange waited for
nothing but the transfer, so that no common clock is needed.
"""

from __future__ import annotations

import numpy as np

from rankscope.records import GroupKind
from rankscope.rules.frame import BoolArray, FloatArray, Frame, IntArray
from rankscope.rules.whatif import WhatIf, analysed
from rankscope.rules.whatif_chunks import BACKWARD, FORWARD
from rankscope.rules.whatif_groups import Groups, groups_of, inner_wait_ms, step_plan
from rankscope.rules.whatif_operations import Node, Operations, OperationsError
from rankscope.rules.whatif_pipeline import SCATTER, Model
from rankscope.window import Window

#: (operation, phase): own parts inside the layers, and the rest of a step.
_INSIDE = ((FORWARD, "forward"), (BACKWARD, "backward"))
_OUTSIDE = (
    ("data-wait", "data_wait"),
    ("copy", "copy"),
    ("optimizer", "optimizer"),
    ("checkpoint", "checkpoint"),
    ("evaluation", "evaluation"),
    ("other", "other"),
)
#: Phase of each operation, for those who read findings.
PHASES = dict((*_INSIDE, *_OUTSIDE)) | {SCATTER: "collective_wait"}
#: The exchange of a kind of group inside the layers, by the word for it.
_EXCHANGES = {
    GroupKind.TENSOR: "tensor-all-reduce",
    GroupKind.CONTEXT: "context-all-gather",
    GroupKind.EXPERT: "expert-all-to-all",
}
_PIPELINE = "pipeline"
#: Values of one array at most: some 16 MB. Of longer runs the latest steps are replayed.
_VALUES = 2_000_000
#: Process groups that are priced by name, those first whose transfers take longest.
_GROUPS = 8
#: Hosts that are priced, those first whose ranks work longest.
_HOSTS = 16
_MS = 1e3


def whatif_window(window: Window) -> WhatIf:
    """The replay of all judged steps of a window. Raises OperationsError where there is none."""
    frame = Frame(window)
    if not frame.ranks:
        raise OperationsError("no rank recorded a step, so there is nothing to replay")
    return whatif_frame(frame, frame.usable, groups_of(frame))


def whatif_frame(
    frame: Frame, mask: BoolArray, groups: Groups, *, well: BoolArray | None = None, most_values: int = _VALUES
) -> WhatIf:
    """The replay of some steps of a frame, the ideal taken from those of `well` where there are any.

    Raises OperationsError where no step of `mask` is there on every rank.
    """
    built = model_of_frame(frame, mask, groups, most_values=most_values)
    if well is not None and (past := _whole(frame, well)).size:
        built.well_s = _durations(frame, past[-_most(frame, groups, most_values) :], groups)
    return analysed(built, _slowest_hosts(frame, built), _dearest_groups(frame, built, groups))


def model_of_frame(frame: Frame, mask: BoolArray, groups: Groups, *, most_values: int = _VALUES) -> Model:
    """The steps of `mask` that every rank has, as a model of ranks. Raises OperationsError."""
    whole = _whole(frame, mask)
    chosen = whole[-_most(frame, groups, most_values) :]
    if not chosen.size:
        raise OperationsError("no judged step is there on every rank, so there is nothing to replay")
    durations = _durations(frame, chosen, groups)
    plan = step_plan(groups, len(_INSIDE), len(_OUTSIDE))
    stages = 1 if groups.stage is None else int(groups.stage.max()) + 1
    notes = []
    if whole.size > chosen.size:
        notes.append(f"the latest {chosen.size} of {whole.size} steps were replayed")
    if not frame.on_device:
        notes.append("host times: where a rank's thread waits, not what its GPU does")
    lane_stages: IntArray = np.zeros(len(frame.ranks), dtype=np.int64) if groups.stage is None else groups.stage
    of = Operations(
        nodes=[Node(0, name, 0, 0) for name in _names(groups)],
        steps=[int(frame.steps[place]) for place in chosen],
        dp_ranks=list(frame.ranks),
        stages=stages,
        start_s=np.zeros_like(durations),
        duration_s=durations,
        ranks={(rank, int(stage)): rank for rank, stage in zip(frame.ranks, lane_stages, strict=True)},
        notes=notes,
        recorded=True,
        lane_stages=lane_stages,
        step_s=_lengths(frame, chosen),
    )
    return Model(of, plan, durations, np.zeros_like(durations), groups.replica)


def _names(groups: Groups) -> list[str]:
    """The operations of a step in the order of its plan."""
    return [
        *(name for name, _ in _INSIDE),
        *(_EXCHANGES[each.kind] for each in groups.inner),
        *([_PIPELINE] if groups.pipeline is not None else []),
        *(name for name, _ in _OUTSIDE),
        SCATTER,
    ]


def _most(frame: Frame, groups: Groups, values: int) -> int:
    return max(1, values // (len(frame.ranks) * len(_names(groups))))


def _whole(frame: Frame, mask: BoolArray) -> IntArray:
    """Steps of `mask` that every rank has: forward and backward make a step; what is missing beside took no time."""
    there = np.isfinite(frame.parts["forward"]).all(axis=0) & np.isfinite(frame.parts["backward"]).all(axis=0)
    return np.flatnonzero(mask & there)


def _durations(frame: Frame, chosen: IntArray, groups: Groups) -> FloatArray:
    """What each operation takes once everybody is there: node x step x rank, in s."""
    names = _names(groups)
    durations = np.zeros((len(names), chosen.size, len(frame.ranks)))
    for place, name in enumerate(names):
        if name in PHASES and name != SCATTER:
            durations[place] = np.nan_to_num(frame.parts[PHASES[name]][:, chosen].T) / _MS
    inner = inner_wait_ms(frame)[:, chosen].T / _MS
    if groups.inner:
        # Whoever came last waited for nothing but the transfer; one clock does not tell several exchanges apart.
        durations[len(_INSIDE)] = groups.inner[0].least(inner)
    waits = np.nan_to_num(frame.wait_ms[:, chosen].T, nan=np.inf) / _MS - inner
    least = waits.min(axis=1, keepdims=True)
    durations[-1] = np.where(np.isfinite(least), np.maximum(0.0, least), 0.0)
    return durations


def _lengths(frame: Frame, chosen: IntArray) -> FloatArray:
    return np.asarray(np.nan_to_num(frame.step_ms[:, chosen]).max(axis=0) / _MS, dtype=np.float64)


def _slowest_hosts(frame: Frame, built: Model) -> dict[str, set[int]]:
    """Ranks of the hosts that work longest, by name; nothing where there is one host."""
    count = int(frame.hosts.max()) + 1
    own = built.transfer_s[:-1].sum(axis=0).mean(axis=0)
    spent = np.bincount(frame.hosts, weights=own) / np.bincount(frame.hosts)
    found = {}
    for host in np.argsort(-spent, kind="stable")[:_HOSTS] if count > 1 else ():
        rows = np.flatnonzero(frame.hosts == host)
        found[frame.identity(int(rows[0])).host] = {frame.ranks[row] for row in rows}
    return found


def _dearest_groups(frame: Frame, built: Model, groups: Groups) -> dict[str, tuple[str, set[int]]]:
    """(operation, ranks) of the process groups whose transfers take longest, by name."""
    found: list[tuple[float, str, str, set[int]]] = []
    names = [node.optype for node in built.operations.nodes]
    for each in groups.inner[:1]:
        spent = built.transfer_s[names.index(_EXCHANGES[each.kind])].mean(axis=0)
        for number, name in enumerate(each.names):
            rows = np.flatnonzero(each.of == number)
            ranks = {frame.ranks[row] for row in rows}
            found.append((float(spent[rows[0]]), f"{each.kind.name.lower()} {name}", names[len(_INSIDE)], ranks))
    found = sorted(found, key=lambda each: -each[0])[:_GROUPS]
    kinds = " and ".join(each.kind.name.lower() for each in groups.copies) or "all"
    single = len(groups.copies) == 1 and len(groups.copies[0].names) == 1
    name = f"{kinds} {groups.copies[0].names[0]}" if single else f"{kinds} groups"
    return {label: (optype, ranks) for _, label, optype, ranks in found} | {name: (SCATTER, set(frame.ranks))}
