"""Which chunk of its stage a computation belongs to, where the operations do not say: virtual pipeline stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankscope.rules.frame import BoolArray, FloatArray, IntArray

FORWARD, BACKWARD = "forward-compute", "backward-compute"


def made_up_chunks(
    numbers: Mapping[str, IntArray], of_type: Mapping[str, BoolArray], start: FloatArray, microbatch: IntArray | None
) -> IntArray | None:
    """Chunk within the stage of every row (0 for what computes nothing); None where each stage has one.

    A microbatch comes to a stage once a chunk: forwards in the chunks' order, backwards in the opposite one. Where no
    microbatches are named, the first stage tells how many chunks there are - of m microbatches it receives each but
    for the first chunk - and the order is that of the interleaved schedule (Narayanan et al. 2021).
    """
    if FORWARD not in of_type or BACKWARD not in of_type:
        return None
    within = np.zeros(len(start), dtype=np.int64)
    lane = (numbers["step"], numbers["dp_rank"], numbers["stage"])
    told = microbatch is not None and bool((microbatch[of_type[FORWARD] | of_type[BACKWARD]] >= 0).all())
    stages = int(numbers["stage"].max()) + 1
    chunks = _received_again(numbers, of_type) if not told else 0
    if not told and chunks < 2:
        return None
    for name in (FORWARD, BACKWARD):
        rows = np.flatnonzero(of_type[name])
        keys = [key[rows] for key in lane]
        if told and microbatch is not None:
            place = numbered_rows([*keys, microbatch[rows]], start[rows])
            chunks = int(place.max()) + 1
        else:
            place = numbered_rows(keys, start[rows]) % (stages * chunks) // stages
        within[rows] = place if name == FORWARD else chunks - 1 - place
    return within if chunks > 1 else None


def _received_again(numbers: Mapping[str, IntArray], of_type: Mapping[str, BoolArray]) -> int:
    """Chunks a stage, from what the first stage received of forwards; 1 where that says nothing."""
    first = numbers["stage"] == 0
    if "forward-recv" not in of_type or not int(numbers["stage"].max()):
        return 1
    forwards = int((of_type[FORWARD] & first).sum())
    received = int((of_type["forward-recv"] & first).sum())
    new = forwards - received
    return forwards // new if received > 0 and new > 0 and not forwards % new else 1


def numbered_rows(keys: Sequence[IntArray], start: FloatArray) -> IntArray:
    """Number of each row among those with the same keys, by start."""
    order = np.lexsort((start, *reversed(keys)))
    changed = np.ones(len(order), dtype=bool)
    changed[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    begins = np.flatnonzero(changed)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    return number
