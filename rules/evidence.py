"""What a suspect is held against: families of evidence, each looked at once, each there, not there, or not seen.

A family joins what is one event (a throttle bit, its counter and the temperature): it counts once, by its strongest
piece. "Not seen" is not "not there": it changes nothing, and is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankscope.rules.frame import BoolArray, Frame, Intervals
from rankscope.rules.suspect import Suspect
from rankscope.rules.table import Symptom
from rankscope.rules.telemetry import Telemetry

#: From this strength on a family counts as there.
_THERE = 0.5
#: Peers that a GPU is compared with: more do not move a median.
_PEERS = 32


@dataclass(frozen=True, slots=True)
class Observation:
    """One family on one suspect. `strength` runs from 0 (looked for, not there) to 1; None: could not be seen."""

    strength: float | None
    what: str
    value: float | str | None = None
    peers: float | str | None = None
    #: Where it was seen, for what is looked for anywhere in the job.
    rank: int | None = None
    host: str | None = None
    #: Port of the host, or link of the rank's GPU.
    device: str | None = None
    #: Link between two hosts, where neither end can be told to be the cause.
    link: str | None = None


def unseen(what: str) -> Observation:
    """A family whose source gave nothing."""
    return Observation(None, what)


def graded(value: float, low: float, high: float) -> float:
    """0 at `low` and below, 1 at `high` and above, straight between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


@dataclass(frozen=True, slots=True)
class Gpu:
    """One rank's GPU and when it was under suspicion, on its host's clock."""

    host: str
    uuid: str
    over: Intervals
    before: Intervals


@dataclass(frozen=True, slots=True)
class Case:
    """One rank of a suspect, with everything evidence may look at."""

    frame: Frame
    telemetry: Telemetry
    suspect: Suspect
    row: int

    @property
    def mask(self) -> BoolArray:
        """Steps under suspicion."""
        return self.suspect.mask

    @property
    def baseline(self) -> BoolArray:
        """Steps of the own past."""
        return self.suspect.baseline

    @property
    def has_past(self) -> bool:
        """Whether there is an own past to compare with."""
        return bool(self.suspect.baseline.any())

    @property
    def host(self) -> str:
        """The rank's host."""
        return self.frame.identity(self.row).host

    @property
    def over(self) -> Intervals:
        """When, on the rank's host."""
        return self.frame.intervals(self.row, self.suspect.mask)

    @property
    def before(self) -> Intervals:
        """The own past, on the rank's host."""
        return self.frame.intervals(self.row, self.suspect.baseline)

    @property
    def peers(self) -> list[int]:
        """Rows of the ranks not under suspicion."""
        return [row for row in range(self.frame.shape[0]) if row not in self.suspect.rows]

    def gpu(self, row: int) -> Gpu | None:
        """A row's GPU, or None where no one said which it is."""
        identity = self.frame.identity(row)
        if identity.gpu_uuid is None:
            return None
        return Gpu(
            identity.host,
            identity.gpu_uuid,
            self.frame.intervals(row, self.suspect.mask),
            self.frame.intervals(row, self.suspect.baseline),
        )

    def peer_gpus(self) -> list[Gpu]:
        """GPUs of the ranks not under suspicion; of many, some, evenly spread."""
        return [gpu for row in _speakers(tuple(self.peers), _PEERS) if (gpu := self.gpu(row)) is not None]


Family = Callable[[Case], Observation]


def observe(
    families: Mapping[str, Family],
    frame: Frame,
    telemetry: Telemetry,
    suspect: Suspect,
    anywhere: Mapping[str, Family],
) -> dict[str, Observation]:
    """Every family on a suspect. Where it is on several ranks, the one of middling strength speaks for them.

    Those of `anywhere` look at the whole job at once, and only where it is the transfers that grew, or, on the host's
    clock, everybody's wait in collectives.
    """
    seen = {}
    waits = suspect.symptom is Symptom.ALL_SLOW and suspect.phase == "collective_wait"
    if suspect.symptom is Symptom.TRANSFER_SLOW or waits:
        whole = Case(frame, telemetry, suspect, suspect.rows[0])
        seen = {name: family(whole) for name, family in anywhere.items()}
    for name, family in families.items():
        rows = _speakers(suspect.rows)
        each = [family(Case(frame, telemetry, suspect, row)) for row in rows]
        seen[name] = _on_one_host(_together(each), each, [frame.identity(row).host for row in rows])
    return seen


def _speakers(rows: tuple[int, ...], limit: int = 16) -> Sequence[int]:
    """Some of many ranks, evenly spread: what all ranks show, these show."""
    if len(rows) <= limit:
        return rows
    return [rows[place] for place in np.linspace(0, len(rows) - 1, limit).astype(int)]


def _together(each: Sequence[Observation]) -> Observation:
    seen = [observation for observation in each if observation.strength is not None]
    if not seen:
        return each[0]
    seen.sort(key=lambda observation: observation.strength or 0.0)
    return seen[len(seen) // 2]


def _on_one_host(together: Observation, each: Sequence[Observation], hosts: Sequence[str]) -> Observation:
    """What speaks for several ranks, with its host where it was seen on every rank of one host and on no other."""
    there = {host for host, one in zip(hosts, each, strict=True) if (one.strength or 0.0) >= _THERE}
    elsewhere = {host for host, one in zip(hosts, each, strict=True) if (one.strength or 0.0) < _THERE}
    if len(there) == 1 and elsewhere and not there & elsewhere and together.host is None:
        return replace(together, host=there.pop())
    return together


def middling(values: Sequence[float | None]) -> float | None:
    """Median of what was seen among peers."""
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else None
