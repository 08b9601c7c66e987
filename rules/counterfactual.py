"""What a finding's steps would be with one rank, host, stage, phase or exchange ideal: the replay, for its JSON."""

from __future__ import annotations

from collections.abc import Mapping

from rankscope.finding import Counterfactual
from rankscope.rules.suspect import Suspect
from rankscope.rules.whatif_operations import OperationsError
from rankscope.rules.whatif_price import Prices
from rankscope.rules.whatif_window import PHASES, whatif_frame

#: Values of one array at most: of long runs the latest steps stand for all.
_VALUES = 400_000
#: Places that are named of each kind, and the least share of the step that is worth naming.
_NAMED = 8
_WORTH = 0.001


def counterfactual(prices: Prices, suspect: Suspect) -> Counterfactual | None:
    """The replay of a suspect's steps; None where none of them is there on every rank."""
    try:
        frame, well = prices.frame, suspect.baseline
        found = whatif_frame(frame, suspect.mask, prices.groups, well=well, most_values=_VALUES)
    except OperationsError:
        return None
    ranks = {str(worker.rank): worker.ms_per_step for worker in found.slowest if worker.ms_per_step is not None}
    phases = {PHASES.get(name, name): ms for name, ms in found.optype_ms.items()}

    def dearest(named: Mapping[str, float]) -> dict[str, float]:
        worth = {name: round(ms, 3) for name, ms in named.items() if ms >= _WORTH * found.actual_ms and ms >= 0.001}
        return dict(sorted(worth.items(), key=lambda item: -item[1])[:_NAMED])

    return Counterfactual(
        steps=found.steps,
        ideal="past" if suspect.baseline.any() else "peers",
        slowdown=round(found.slowdown, 4),
        m_w=_share(found.m_w),
        m_s=_share(found.m_s),
        ranks=dearest(ranks),
        hosts=dearest(found.by_place),
        stages=dearest({str(stage): ms for stage, ms in found.stage_ms.items()}),
        phases=dearest(phases),
        groups=dearest(found.by_group),
    )


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
