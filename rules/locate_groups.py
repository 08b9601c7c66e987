"""What is slow between ranks: a pipeline stage that the others wait for, and transfers that take long for all."""

from __future__ import annotations

import numpy as np

from rankscope.rules.change import Shift
from rankscope.rules.detect import transfer_shift
from rankscope.rules.frame import COMPUTE, Frame, median, middle
from rankscope.rules.suspect import Suspect, suspect_of
from rankscope.rules.table import Symptom
from rankscope.rules.whatif_price import Prices

#: A stage that computes this much longer than the next is out of balance: the first and last have a little more.
_STAGE_SHARE = 0.1


def slow_stages(prices: Prices) -> list[Suspect]:
    """A pipeline stage that computes longer than the others: the others wait for it in every microbatch."""
    frame = prices.frame
    if frame.stages is None:
        return []
    count = int(frame.stages.max()) + 1
    rows_of = [tuple(int(row) for row in np.flatnonzero(frame.stages == stage)) for stage in range(count)]
    if count < 2 or any(len(rows) < 1 for rows in rows_of):
        return []
    # Every rank of it: one slow GPU does not make a stage.
    own = np.stack([frame.compute_ms[list(rows)].min(axis=0) for rows in rows_of])[:, frame.usable]
    usual = median(own, axis=1)
    worst = int(np.argmax(usual))
    second = int(np.argsort(usual)[-2])
    over = float(usual[worst] - usual[second])
    if over < _STAGE_SHARE * float(usual[worst]):
        return []
    shift = Shift.without_past(frame.usable, over)
    excess = {}
    for name in COMPUTE:
        heavy, next_to = (middle(frame.parts[name][list(rows_of[stage])][:, shift.mask]) for stage in (worst, second))
        excess[name] = float(np.nan_to_num(heavy - next_to))
    price = prices.returned_ms(shift.mask, rows_of[worst], layers_ms=over)
    suspect = suspect_of(
        frame, Symptom.ONE_STAGE_SLOW, rows_of[worst], shift, excess, price, located=False, stage=worst
    )
    return [suspect] if suspect is not None else []


def slow_transfers(frame: Frame) -> list[Suspect]:
    """Collectives take longer though all arrive together.

    Where the host's cores do the moving (no GPU's own clock), they are the reason, and it is told by what they wait.
    """
    if frame.identity(0).device_clock != "cuda":
        return []
    shift = transfer_shift(frame)
    if shift is None:
        return []
    rows = tuple(range(frame.shape[0]))
    suspect = suspect_of(
        frame, Symptom.TRANSFER_SLOW, rows, shift, {"transfer": shift.excess}, shift.excess, located=False
    )
    return [suspect] if suspect is not None else []
