"""Process groups of a generated job: which ranks share a layer, a stage, experts or gradients; and who waits for whom.

Ranks are dealt out as Megatron does: neighbours share layers, then data-parallel copies, then pipeline stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankscope.records import GroupKind
from rankscope.simulator.scenario import Workload

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """All groups of one kind: `of[r]` is the number of rank r's group, `places` lists its members' ranks by number."""

    kind: GroupKind
    of: IntArray
    places: IntArray

    @property
    def size(self) -> int:
        """Members of each."""
        return int(self.places.shape[1])

    def largest(self, values: FloatArray) -> FloatArray:
        """For each rank and step the largest value within its group."""
        most: FloatArray = values[self.places].max(axis=1)
        return most if len(most) == 1 else most[self.of]

    def members(self, rank: int) -> str:
        """Global ranks of a rank's group as ranges ("0-3,8")."""
        ranks = self.places[self.of[rank]].tolist()
        parts: list[list[int]] = []
        for each in ranks:
            if parts and each == parts[-1][1] + 1:
                parts[-1][1] = each
            else:
                parts.append([each, each])
        return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


@dataclass(frozen=True, slots=True)
class Layout:
    """The groups of a job; None where a kind has groups of one."""

    data: Group | None
    tensor: Group | None
    expert: Group | None
    pipeline: Group | None
    #: Stage of each rank.
    stage: IntArray


def layout(workload: Workload) -> Layout:
    """Deal the ranks out."""
    ranks = np.arange(workload.ranks)
    tensor, stages = workload.tensor, workload.stages
    copies = workload.ranks // (tensor * stages)
    shard = ranks % tensor
    copy = (ranks // tensor) % copies
    stage = ranks // (tensor * copies)
    data_kind = GroupKind.SHARD if workload.kind == "fsdp" else GroupKind.DATA
    return Layout(
        data=_group(data_kind, stage * tensor + shard, copies),
        tensor=_group(GroupKind.TENSOR, stage * copies + copy, tensor),
        expert=_group(
            GroupKind.EXPERT,
            (stage * tensor + shard) * (copies // workload.experts) + copy // workload.experts,
            workload.experts,
        ),
        pipeline=_group(GroupKind.PIPELINE, copy * tensor + shard, stages),
        stage=stage,
    )


def _group(kind: GroupKind, of: IntArray, size: int) -> Group | None:
    if size < 2:
        return None
    return Group(kind, of, np.argsort(of, kind="stable").reshape(-1, size))
