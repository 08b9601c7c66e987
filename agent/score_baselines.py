"""Simple rules that others use, on the same windows as the verdicts: what an evidence table has to be better than.

Each answers with a side ("healthy" where it says nothing) and a rank. All accuse hardware: that is how they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rankscope.agent.score_truth import HEALTHY, Truth
from rankscope.finding import Side
from rankscope.rules.frame import Frame, median, middle
from rankscope.window import Window

Answer = tuple[str, int | None]
#: NVIDIA's resiliency extension flags a rank whose score (best median against its own) is below this.
_SCORE = 0.75
#: A step this many standard deviations long is an anomaly; as many in a row make an alarm.
_Z, _IN_A_ROW = 3.0, 3
#: The slowest rank is accused where it takes this much longer than the median rank.
_SLOWER = 1.03


def xids_alone(window: Window, _frame: Frame) -> Answer:
    """Any Xid of a GPU of the job accuses that GPU, old ones too: as rules on the log do."""
    ranks = {of.identity.gpu_uuid: rank for rank, of in window.ranks.items()}
    for event in window.events:
        if event.kind == "xid" and event.device in ranks:
            return Side.HARDWARE, ranks[event.device]
    return HEALTHY, None


def slowest_rank(_window: Window, frame: Frame) -> Answer:
    """The rank with the longest median compute is accused where it stands out at all."""
    own = median(frame.compute_ms[:, frame.usable], axis=1)
    if len(own) < 2 or not np.isfinite(own).all():
        return HEALTHY, None
    worst = int(np.argmax(own))
    return (Side.HARDWARE, frame.ranks[worst]) if own[worst] > _SLOWER * middle(own) else (HEALTHY, None)


def relative_score(_window: Window, frame: Frame) -> Answer:
    """Best median compute against each rank's own, below 0.75: the resiliency extension's relative score."""
    own = median(frame.compute_ms[:, frame.usable], axis=1)
    if len(own) < 2 or not np.isfinite(own).all():
        return HEALTHY, None
    scores = own.min() / own
    worst = int(np.argmin(scores))
    return (Side.HARDWARE, frame.ranks[worst]) if scores[worst] < _SCORE else (HEALTHY, None)


def step_z_score(_window: Window, frame: Frame) -> Answer:
    """Steps far from the mean in a row; the rank that waits least in them is accused."""
    steps = frame.job_ms[frame.usable]
    if len(steps) < 20 or steps.std() <= 0:
        return HEALTHY, None
    high = (steps - steps[:20].mean()) / max(steps[:20].std(), 1e-9) > _Z
    run = np.convolve(high, np.ones(_IN_A_ROW), "valid") >= _IN_A_ROW
    if not run.any():
        return HEALTHY, None
    waits = median(frame.wait_ms[:, frame.usable][:, high], axis=1)
    return Side.HARDWARE, frame.ranks[int(np.argmin(np.nan_to_num(waits, nan=np.inf)))]


BASELINES: Mapping[str, Callable[[Window, Frame], Answer]] = {
    "Xids alone": xids_alone,
    "slowest rank": slowest_rank,
    "relative score below 0.75": relative_score,
    "z-score of the step": step_z_score,
}


def baselines(window: Window, truth: Truth) -> dict[str, tuple[bool, bool | None]]:
    """Every baseline: whether its side is right, and its place (None where no rank is to be named)."""
    frame = Frame(window)
    ranks = {each.rank for each in truth.expected if each.injected}
    found: dict[str, tuple[bool, bool | None]] = {}
    for name, rule in BASELINES.items():
        side, rank = rule(window, frame) if frame.ranks and frame.usable.any() else (HEALTHY, None)
        found[name] = (side in truth.sides, rank in ranks if ranks - {None} else None)
    return found
