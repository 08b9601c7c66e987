"""What is suspected before any cause is told: who, since when, in which phase, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.finding import Basis
from rankscope.rules.change import Shift
from rankscope.rules.detect import LEAST_FRACTION
from rankscope.rules.frame import COMPUTE, BoolArray, Frame, mean
from rankscope.rules.table import Symptom

#: A rank that became slower than it was is told from this price on, if it slowed by `LEAST_FRACTION` of the step: how
#: much of that the job feels depends on how near the next slowest rank is.
LEAST_PRICE = 0.01


@dataclass(frozen=True, slots=True)
class Suspect:
    """A slowness, located and priced. `rows` are rows of the frame; one row is a located rank, several are the job."""

    symptom: Symptom
    rows: tuple[int, ...]
    #: Whether one rank stands out; else `rows` are the ranks it is seen on, all alike.
    located: bool
    mask: BoolArray
    #: Steps of the own past it is compared with; none set where there is no such past.
    baseline: BoolArray
    #: Own time above the reference in ms a step, by phase.
    excess: Mapping[str, float]
    ms_per_step: float
    fraction: float
    begin: int
    needed: int
    from_start: bool
    #: What the place rests on.
    basis: Basis
    #: Host that all of `rows` are on, and none of the others; stage that they are.
    host: str | None = None
    stage: int | None = None
    #: Its excess lies in times inside which ranks may have waited for each other, and nothing tells those waits.
    contaminated: bool = False

    @property
    def excess_ms(self) -> float:
        """Own time above the reference, all phases."""
        return sum(value for value in self.excess.values() if value > 0)

    @property
    def phase(self) -> str | None:
        """The phase that most of it lies in."""
        return max(self.excess, key=lambda name: self.excess[name]) if self.excess else None

    def overlaps(self, other: Suspect) -> bool:
        """Whether both were there in at least half of the shorter one's steps."""
        both = int((self.mask & other.mask).sum())
        return both * 2 >= min(int(self.mask.sum()), int(other.mask.sum()))


def suspect_of(
    frame: Frame,
    symptom: Symptom,
    rows: tuple[int, ...],
    shift: Shift,
    excess: dict[str, float],
    price: float,
    *,
    located: bool,
    host: int | None = None,
    stage: int | None = None,
) -> Suspect | None:
    """A shift as a suspect that costs `price` ms a step; None where that is too little to look at."""
    length = mean(frame.job_ms[shift.mask])
    fraction = price / length if length > 0 else 0.0
    if fraction < (LEAST_PRICE if located and not shift.from_start else LEAST_FRACTION):
        return None
    confirmed = located and frame.timed is not None and bool(frame.timed.last(rows[0], shift.mask))
    return Suspect(
        symptom=symptom,
        rows=rows,
        located=located,
        mask=shift.mask,
        baseline=shift.baseline,
        excess=excess,
        ms_per_step=price,
        fraction=fraction,
        begin=shift.begin,
        needed=shift.needed,
        from_start=shift.from_start,
        basis=Basis.DEVICE_COLLECTIVE if confirmed else frame.basis,
        host=None if host is None else frame.identity(rows[0]).host,
        stage=stage,
        contaminated=not confirmed and _contaminated(frame, rows, excess),
    )


def _contaminated(frame: Frame, rows: tuple[int, ...], excess: Mapping[str, float]) -> bool:
    """Whether most of an excess is "own" computing that may hold waits for other ranks."""
    if frame.cleaned or not frame.contaminated[list(rows)].any():
        return False
    total = sum(value for value in excess.values() if value > 0)
    return sum(max(0.0, excess.get(name, 0.0)) for name in COMPUTE) > 0.5 * total
