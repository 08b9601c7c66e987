"""What is said of a rank beside its durations: who it is, where it stands, how much work it had, its process groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rankscope.exporters.otlp_common import Scalar
from rankscope.identity import RankIdentity
from rankscope.records import DeviceRecord, GroupKind, GroupRecord, StepRecord

#: name -> (unit, description)
GAUGES = {
    "rankscope.rank.step": ("{step}", "Number of the last step that the rank ended"),
    "rankscope.rank.info": ("", "Always 1: ties a rank to its attempt, process and GPU"),
    "rankscope.rank.group": ("{rank}", "Size of a process group that the rank is in, with its kind and members"),
    "rankscope.rank.contaminated": (
        "1",
        "1 where the rank's own times may hold waits for other ranks (sharded or tensor-parallel layers), else 0",
    ),
}
SUMS = {
    "rankscope.rank.work": ("{item}", "Work in the rank's steps so far: samples, or tokens, as the batches have it"),
    "rankscope.rank.allocation_retries": ("{retry}", "Times the allocator had to free memory and try again"),
}


@dataclass(slots=True)
class RankFacts:
    """The latest of each, of one rank."""

    identity: RankIdentity
    step: int = -1
    #: So far; None where no step told any.
    work: int | None = None
    allocation_retries: int | None = None
    contaminated: int | None = None
    #: By the name under which its durations go out.
    groups: dict[str, GroupRecord] = field(default_factory=dict)

    def add_step(self, record: StepRecord) -> None:
        """A step ended."""
        self.step = record.step
        if record.work is not None:
            self.work = (self.work or 0) + record.work
        if record.alloc_retries is not None:
            self.allocation_retries = (self.allocation_retries or 0) + record.alloc_retries

    def add_device(self, record: DeviceRecord) -> None:
        """What its device said of that step."""
        if record.contaminated is not None:
            self.contaminated = record.contaminated

    def add_group(self, name: str, record: GroupRecord) -> None:
        """A group that it exchanged with; of many that share one name the latest."""
        self.groups[name] = record

    def gauges(self) -> Iterator[tuple[str, float, dict[str, Scalar | None]]]:
        """(name, value, attributes) of each gauge."""
        identity = self.identity
        rank: dict[str, Scalar | None] = {"rankscope.rank": identity.rank}
        yield "rankscope.rank.step", self.step, rank
        of_rank: dict[str, Scalar | None] = {
            "rankscope.attempt": identity.attempt,
            "rankscope.local_rank": identity.local_rank,
            "rankscope.world_size": identity.world_size,
            "process.pid": identity.pid,
            "hw.id": identity.gpu_uuid,
        }
        yield "rankscope.rank.info", 1.0, rank | of_rank
        if self.contaminated is not None:
            yield "rankscope.rank.contaminated", float(self.contaminated), rank
        for name, record in self.groups.items():
            of_group: dict[str, Scalar | None] = {
                "rankscope.group": name,
                "rankscope.group.kind": _kind(record.group_kind),
                "rankscope.group.members": record.members or None,
            }
            yield "rankscope.rank.group", float(record.size), rank | of_group

    def sums(self) -> Iterator[tuple[str, float, dict[str, Scalar | None]]]:
        """(name, value so far, attributes) of each sum."""
        counted = {"rankscope.rank.work": self.work, "rankscope.rank.allocation_retries": self.allocation_retries}
        for name, value in counted.items():
            if value is not None:
                yield name, float(value), {"rankscope.rank": self.identity.rank}


def _kind(number: int | None) -> str | None:
    """The kind of a group as its label; None where it is not known."""
    known = {kind.value: kind.name.lower() for kind in GroupKind if kind is not GroupKind.UNKNOWN}
    return None if number is None else known.get(number)
