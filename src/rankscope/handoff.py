"""What a hand-off of an incident holds beside the verdict: what was ruled out, and what can be done at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A class that was looked at and is not it, with the piece of evidence that speaks most against it."""

    class_slug: str
    title: str
    side: str
    family: str
    why: str
    log_odds: float
    #: Its probability beside the others.
    probability: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that can be done. Costs are GPU-hours; None where the recording does not tell."""

    what: str
    #: Once, and for each day it is left so.
    cost_once_gpu_hours: float | None
    cost_per_day_gpu_hours: float | None
    #: What the figures rest on, and what speaks for or against it.
    remark: str


@dataclass(frozen=True, slots=True)
class Price:
    """What comes back of each step if one rank, phase or host were like its peers, by replay."""

    what: str
    ms_per_step: float
    share_of_step: float


@dataclass(frozen=True, slots=True)
class HandOff:
    """All that a page needs beside verdict and window."""

    ruled_out: Sequence[RuledOut] = ()
    #: Neither told nor ruled out: title and probability.
    still_open: Sequence[tuple[str, float]] = ()
    choices: Sequence[Choice] = ()
    #: Dearest first; one thing may be in several: a slow rank is in its phase and its host too.
    prices: Sequence[Price] = ()
    #: What the run was made of, a line each.
    made_of: Mapping[str, str] = field(default_factory=dict)
