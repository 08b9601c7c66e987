"""What is suspected before any cause is told: who, since when, in which phase, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.finding import Basis
from rankscope.rules.frame import BoolArray
from rankscope.rules.table import Symptom


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
