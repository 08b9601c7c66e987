"""Ranks and hosts that stand out from their peers, or became slower than they were."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rankscope.rules.change import Shift
from rankscope.rules.detect import host_shifts, rank_shifts
from rankscope.rules.frame import FloatArray, Frame, mean, median, middle, peers_median
from rankscope.rules.suspect import Suspect, suspect_of
from rankscope.rules.table import Symptom
from rankscope.rules.whatif_price import Prices


def slow_hosts(prices: Prices) -> list[Suspect]:
    """Hosts all of whose ranks became slower together."""
    frame = prices.frame
    found = []
    for host in host_shifts(frame):
        rows = list(host.rows)
        price = prices.returned_ms(host.shift.mask, rows, layers_ms=host.shift.excess)
        excess = {}
        for name, values in frame.parts.items():
            common = median(values[rows])
            if host.shift.from_start:
                # No past: against the other hosts.
                others = [row for row in range(frame.shape[0]) if row not in host.rows]
                before = middle(median(values[others])[host.shift.mask])
            else:
                before = middle(common[host.shift.baseline])
            excess[name] = float(np.nan_to_num(middle(common[host.shift.mask]) - before))
        suspect = suspect_of(
            frame, Symptom.ONE_HOST_SLOW, host.rows, host.shift, excess, price, located=False, host=host.host
        )
        if suspect is not None:
            found.append(suspect)
    return found


def slow_ranks(prices: Prices, *, data: bool) -> list[Suspect]:
    """Ranks that stand out, each with the phases its excess lies in."""
    frame = prices.frame
    found: dict[int, Suspect] = {}
    shifts = rank_shifts(frame, data=data)
    reference = {name: peers_median(values, frame.roles) for name, values in frame.parts.items()} if shifts else {}
    for rank in sorted(shifts, key=lambda each: -each.shift.excess):
        excess = _excess_by_phase(frame, rank.row, rank.shift, reference)
        inside = rank.what == "work"
        relief = {"layers_ms" if inside else "rest_ms": rank.shift.excess}
        price = prices.returned_ms(rank.shift.mask, (rank.row,), **relief)
        symptom = Symptom.DRIFT if rank.shift.drift else Symptom.ONE_RANK_SLOW
        suspect = suspect_of(frame, symptom, (rank.row,), rank.shift, excess, price, located=True)
        if suspect is not None and (rank.row not in found or found[rank.row].ms_per_step < suspect.ms_per_step):
            found[rank.row] = suspect
    return list(found.values())


def _excess_by_phase(frame: Frame, row: int, shift: Shift, reference: Mapping[str, FloatArray]) -> dict[str, float]:
    excess = {}
    for name, values in frame.parts.items():
        centre = mean if name == "data_wait" else middle
        if frame.shape[0] > 1:
            # Where nobody has the same role, the own past is all there is to compare with.
            own = values[row] - np.nan_to_num(reference[name][row])
        else:
            own = values[row]
        before = centre(own[shift.baseline]) if shift.baseline.any() else 0.0
        level = centre(own[shift.mask]) - (before if np.isfinite(before) else 0.0)
        excess[name] = level if np.isfinite(level) else 0.0
    return excess
