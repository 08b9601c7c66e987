"""Operations of a pipeline-parallel job as arrays: node x step x data-parallel rank, and what is missing said."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankscope.errors import RankscopeError
from rankscope.rules.frame import FloatArray, IntArray
from rankscope.rules.whatif_chunks import made_up_chunks, numbered_rows

#: Columns without which there is nothing to replay. Times are seconds; `start_ts` may restart in each step.
REQUIRED = ("dp_rank", "stage", "step", "optype", "start_ts", "duration")
#: Columns that are made up from the order of operations where a file has none: number within its type, model chunk
#: within the stage and within the model, microbatch, global rank.
OPTIONAL = ("seq_id", "mc", "gmc", "mb_id", "rank")
#: Of these a row may have none: only computation belongs to a chunk, and works on a microbatch.
CHUNKS = ("mc", "gmc", "mb_id")
#: A step is judged where every worker has every operation; a rank is left out where it is whole in fewer than this
#: share of the steps.
_PRESENT_SHARE = 0.5
#: Operations x steps x ranks that are replayed at most: 1.6 GB an array.
_CELLS = 200_000_000
#: From here on a double no longer holds every whole number.
_WHOLE = 2.0**53


class OperationsError(RankscopeError):
    """Operations that cannot be replayed: a column is missing, or what is in them contradicts itself."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the step, the same on every data-parallel rank."""

    stage: int
    optype: str
    #: Its number among the operations of its type on this worker.
    number: int
    #: Model chunk (virtual stage) in the whole model; -1 where the file does not say.
    chunk: int


@dataclass(slots=True)
class Operations:
    """Whole steps of one job. Arrays are node x step x data-parallel rank, in seconds."""

    nodes: list[Node]
    steps: list[int]
    dp_ranks: list[int]
    stages: int
    start_s: FloatArray
    duration_s: FloatArray
    #: Global rank of each worker (data-parallel rank, stage), as the file names it.
    ranks: dict[tuple[int, int], int]
    #: What was left out or assumed, one line each.
    notes: list[str] = field(default_factory=list)
    #: From a recording of ours, which holds counters that a replay does not look at.
    recorded: bool = False
    #: Of recordings, whose lanes are ranks: the stage of each, and how long the steps were.
    lane_stages: IntArray | None = None
    step_s: FloatArray | None = None

    @property
    def end_s(self) -> FloatArray:
        """When each operation ended."""
        return self.start_s + self.duration_s


def operations(columns: Mapping[str, NDArray[np.generic]]) -> Operations:
    """Whole steps from rows, one an operation. Raises OperationsError with the column or contradiction named."""
    notes: list[str] = []
    named = _named(columns)
    if not len(named["step"]):
        raise OperationsError("holds no operations")
    numbers = {name: _integers(named[name], name) for name in ("dp_rank", "stage", "step")}
    stages, dense = np.unique(numbers["stage"], return_inverse=True)
    if int(stages[-1]) != len(stages) - 1 or int(stages[0]):
        notes.append(f"stages {', '.join(map(str, stages[:8]))}... are numbered from 0 here")
        numbers["stage"] = dense.astype(np.int64)
    start, duration = (_seconds(named[name], name) for name in ("start_ts", "duration"))
    if float(duration.min()) < 0:
        raise OperationsError("an operation ends before it starts (negative duration)", where="column duration")
    if not float(duration.max()):
        raise OperationsError("no operation takes any time", where="column duration")
    types, code = _coded(named["optype"])
    ranks = _integers(named["rank"], "rank") if "rank" in named else numbers["dp_rank"]
    keep = _folded(numbers, ranks, notes)
    if not keep.all():
        numbers = {name: values[keep] for name, values in numbers.items()}
        start, duration, code, ranks = start[keep], duration[keep], code[keep], ranks[keep]
        named = {name: values[keep] for name, values in named.items()}
    if "seq_id" in named:
        number = _integers(named["seq_id"], "seq_id")
    else:
        number = numbered_rows([numbers["step"], numbers["dp_rank"], numbers["stage"], code], start)
    chunk = _chunks(named, numbers["stage"])
    if "mc" not in named and "gmc" not in named:
        microbatch = _integers(_or_none(named["mb_id"]), "mb_id") if "mb_id" in named else None
        of_type = {name: code == place for place, name in enumerate(types)}
        within = made_up_chunks(numbers, of_type, start, microbatch)
        if within is not None:
            chunk = within * (int(numbers["stage"].max()) + 1) + numbers["stage"]
            notes.append(f"{int(within.max()) + 1} model chunks a stage were told by the order of computations")
    return _gridded(numbers, types, code, number, chunk, ranks, start, duration, notes)


def check_columns(columns: Mapping[str, object]) -> None:
    """Raise OperationsError where a needed column is missing, with the name that is nearest to it."""
    names = sorted(columns)
    for name in REQUIRED:
        if name not in columns:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"the nearest is {near[0]!r}" if near else f"it has {_few(names)}"
            raise OperationsError(f"has no column {name!r}", todo=f"{hint}; needed are {', '.join(REQUIRED)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(name[:30] for name in names[:12]) + (" ..." if len(names) > 12 else "") if names else "none"


def _named(columns: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    check_columns(columns)
    return {name: np.asarray(columns[name]) for name in (*REQUIRED, *OPTIONAL) if name in columns}


def _integers(values: NDArray[np.generic], name: str) -> IntArray:
    floats = _seconds(values, name)
    if not np.array_equal(floats, np.round(floats)):
        raise OperationsError("holds numbers that are not whole", where=f"column {name}")
    if float(np.abs(floats).max(initial=0.0)) >= _WHOLE:
        raise OperationsError("holds numbers beyond 2^53", where=f"column {name}")
    return floats.astype(np.int64)


def _or_none(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Numbers of which some may be absent (a null, an empty cell): those are -1."""
    if values.dtype.kind in "US":
        values = np.where(np.char.strip(values.astype(str)) == "", "nan", values)
    try:
        floats = values.astype(np.float64)
    except (TypeError, ValueError):
        return values  # whoever reads them says what is wrong
    return np.where(np.isnan(floats), -1.0, floats)


def _seconds(values: NDArray[np.generic], name: str) -> FloatArray:
    try:
        floats = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise OperationsError(f"holds what is no number ({error})", where=f"column {name}") from None
    bad = ~np.isfinite(floats)
    if bad.any():
        raise OperationsError(f"has no number in row {int(np.argmax(bad)) + 1}", where=f"column {name}")
    return floats


def _coded(names: NDArray[np.generic]) -> tuple[list[str], IntArray]:
    """(distinct names, place of each row's among them); without a sort, of millions of rows a handful of names."""
    places: dict[object, int] = {}
    code = np.fromiter((places.setdefault(name, len(places)) for name in names.tolist()), np.int64, len(names))
    return [str(name) for name in places], code


def _folded(numbers: Mapping[str, IntArray], ranks: IntArray, notes: list[str]) -> NDArray[np.bool_]:
    """Rows of one rank a worker: tensor-parallel ranks of a stage work in lockstep, so one speaks for all."""
    worker = numbers["dp_rank"] * (int(numbers["stage"].max()) + 1) + numbers["stage"]
    _, place = np.unique(worker, return_inverse=True)
    first = np.full(int(place.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, place, ranks)
    keep: NDArray[np.bool_] = ranks == first[place]
    if not keep.all():
        notes.append("of several ranks of one worker (data-parallel rank and stage) the first was taken")
    return keep


def _chunks(named: Mapping[str, NDArray[np.generic]], stage: IntArray) -> IntArray:
    """Chunk of the whole model: as the file says, else from the chunk within the stage; -1 where neither is said."""
    whole = _integers(_or_none(named["gmc"]), "gmc") if "gmc" in named else np.full(len(stage), -1)
    if "mc" in named:
        within = _integers(_or_none(named["mc"]), "mc")
        return np.where((whole < 0) & (within >= 0), within * (int(stage.max()) + 1) + stage, whole)
    return whole if "gmc" in named else stage


def _gridded(
    numbers: Mapping[str, IntArray],
    types: Sequence[str],
    code: IntArray,
    number: IntArray,
    chunk: IntArray,
    ranks: IntArray,
    start: FloatArray,
    duration: FloatArray,
    notes: list[str],
) -> Operations:
    """Rows onto the grid, steps that are not whole left out."""
    most = int(number.max()) + 1
    if int(number.min()) < 0:
        raise OperationsError("holds a negative number", where="column seq_id")
    keys = (numbers["stage"] * len(types) + code) * most + number
    found, first_row, node = np.unique(keys, return_index=True, return_inverse=True)
    names = np.stack([numbers["stage"], code, number], axis=1)[first_row]
    steps, step = np.unique(numbers["step"], return_inverse=True)
    dp_ranks, dp = np.unique(numbers["dp_rank"], return_inverse=True)
    shape = (len(found), len(steps), len(dp_ranks))
    if math.prod(shape) > _CELLS:
        raise OperationsError(
            f"{len(found)} operations x {len(steps)} steps x {len(dp_ranks)} ranks are more than one machine holds",
            todo="give fewer steps",
        )
    cell = np.ravel_multi_index((node, step, dp), shape)
    counts = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    if int(counts.max()) > 1:
        place = np.argwhere(counts > 1)[0]
        raise OperationsError(
            f"{types[names[place[0]][1]]} {names[place[0]][2]} of stage {names[place[0]][0]} comes twice in step "
            f"{steps[place[1]]} of data-parallel rank {dp_ranks[place[2]]}",
            todo="name each operation once (column seq_id)",
        )
    nodes, steps_kept, ranks_kept = _whole(counts > 0, notes)
    begins, lengths = np.zeros(shape), np.zeros(shape)
    begins[node, step, dp], lengths[node, step, dp] = start, duration
    chunks = chunk[first_row]
    cut = np.ix_(nodes, steps_kept, ranks_kept)
    begins = begins[cut]
    # A start may count from the step's begin or from any other moment.
    begins -= begins.min(axis=(0, 2), keepdims=True)
    _, one = np.unique(numbers["dp_rank"] * (int(numbers["stage"].max()) + 1) + numbers["stage"], return_index=True)
    workers = {(int(numbers["dp_rank"][row]), int(numbers["stage"][row])): int(ranks[row]) for row in one}
    return Operations(
        nodes=[Node(int(names[n][0]), str(types[names[n][1]]), int(names[n][2]), int(chunks[n])) for n in nodes],
        steps=[int(steps[s]) for s in steps_kept],
        dp_ranks=[int(dp_ranks[d]) for d in ranks_kept],
        stages=int(numbers["stage"].max()) + 1,
        start_s=begins,
        duration_s=lengths[cut],
        ranks=workers,
        notes=notes,
    )


def _whole(present: NDArray[np.bool_], notes: list[str]) -> tuple[IntArray, IntArray, IntArray]:
    """Nodes, steps and data-parallel ranks such that each node is in each step of each rank."""
    lanes = present.reshape(len(present), -1).T
    seen = lanes.any(axis=1)
    # What most lanes hold is the step; lanes that hold anything else are cut short or ran another schedule.
    packed = np.ascontiguousarray(np.packbits(lanes, axis=1))
    kinds, kind = np.unique(packed.view(f"V{packed.shape[1]}").reshape(-1), return_inverse=True)
    usual = int(np.argmax(np.bincount(kind[seen], minlength=len(kinds))))
    whole = kind == usual
    grid = whole.reshape(present.shape[1:])
    ranks = grid.mean(axis=0) >= _PRESENT_SHARE * grid.mean(axis=0).max()
    steps = grid[:, ranks].all(axis=1)
    if not steps.any():
        raise OperationsError(
            "no step is whole on every data-parallel rank", todo="give at least one step with all its operations"
        )
    if not steps.all():
        notes.append(f"{int((~steps).sum())} of {len(steps)} steps are not whole and were left out")
    if not ranks.all():
        notes.append(f"{int((~ranks).sum())} of {len(ranks)} data-parallel ranks lack operations and were left out")
    return np.flatnonzero(lanes[int(np.argmax(whole))]), np.flatnonzero(steps), np.flatnonzero(ranks)
