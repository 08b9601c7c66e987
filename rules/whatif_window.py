"""A recorded window as operations of data-parallel workers, so that the same replay prices ranks, phases and hosts.

Each rank's step is its own phases one after the other; behind backward stands the collective that all take part in: a
rank enters it when its own backward is done and leaves it when the last has come and the transfer is over. So waits
need no common clock: what the rank that waited least still waited is the transfer.
"""

from __future__ import annotations

import numpy as np

from rankscope.rules.frame import FloatArray, Frame
from rankscope.rules.whatif_operations import Node, Operations, OperationsError
from rankscope.rules.whatif_pipeline import BACKWARD, FORWARD, SCATTER
from rankscope.window import Window

#: (operation, phase) in the order of a step; the collective stands behind backward.
_BEFORE = (("data-wait", "data_wait"), (FORWARD, "forward"), (BACKWARD, "backward"))
_AFTER = (("optimizer", "optimizer"), ("checkpoint", "checkpoint"), ("evaluation", "evaluation"), ("other", "other"))
#: Values of one array at most: some 16 MB. Of longer runs the latest steps are replayed.
_VALUES = 2_000_000


def operations_of_window(window: Window) -> Operations:
    """Operations of the judged steps that every rank has. Raises OperationsError where there is none."""
    frame = Frame(window)
    if not frame.ranks:
        raise OperationsError("no rank recorded a step, so there is nothing to replay")
    parts = [(name, frame.parts[phase]) for name, phase in _BEFORE if phase in frame.parts]
    parts.append((SCATTER, frame.wait_ms))
    parts += [(name, frame.parts[phase]) for name, phase in _AFTER if phase in frame.parts]
    # Forward and backward make a step; what is missing beside them took no time.
    whole = frame.usable & np.isfinite(frame.parts[_phase(FORWARD)]).all(axis=0)
    whole &= np.isfinite(frame.parts[_phase(BACKWARD)]).all(axis=0)
    chosen = np.flatnonzero(whole)[-max(1, _VALUES // (len(frame.ranks) * len(parts))) :]
    if not chosen.size:
        raise OperationsError("no judged step is there on every rank, so there is nothing to replay")
    durations = np.stack([np.nan_to_num(values[:, chosen].T) for _, values in parts]) / 1e3
    names = [name for name, _ in parts]
    notes = []
    if int(whole.sum()) > chosen.size:
        notes.append(f"the latest {chosen.size} of {int(whole.sum())} steps were replayed")
    if not frame.on_device:
        notes.append("host times: where a rank's thread waits, not what its GPU does")
    return Operations(
        nodes=[Node(0, name, 0, 0) for name in names],
        steps=[int(frame.steps[place]) for place in chosen],
        dp_ranks=list(frame.ranks),
        stages=1,
        start_s=_starts(durations),
        duration_s=durations,
        ranks={(rank, 0): rank for rank in frame.ranks},
        notes=notes,
        recorded=True,
    )


def _phase(optype: str) -> str:
    return dict(_BEFORE)[optype]


def _starts(durations: FloatArray) -> FloatArray:
    """Each operation starts when the one before it in the rank's step is over."""
    ends = np.cumsum(durations, axis=0)
    return np.asarray(ends - durations)
