"""Process groups: what each is for, which ranks are in it, and how long this rank waited for it in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rankscope.records import GroupKind, text_bytes
from rankscope.torch_hooks.hot import GroupState

#: Words in a group's description, as device meshes and trainers write them ("mesh_tp", "TENSOR_MODEL_PARALLEL_GROUP"),
#: and what they mean. The first that fits counts.
_WORDS = (
    (("expert", "ep"), GroupKind.EXPERT),
    (("tensor", "tp"), GroupKind.TENSOR),
    (("pipeline", "pipe", "pp"), GroupKind.PIPELINE),
    (("context", "cp", "sp"), GroupKind.CONTEXT),
    (("shard", "fsdp", "zero"), GroupKind.SHARD),
    (("data", "dp", "replicate", "ddp", "hsdp"), GroupKind.DATA),
)
#: Operations of sharded training; of nothing else in plain use.
SHARDING = frozenset(("_allgather_base", "all_gather_single", "_reduce_scatter_base", "reduce_scatter_single"))


def kind_of(description: str) -> GroupKind:
    """What a group is for, by the words of its description; UNKNOWN where they say nothing."""
    words = set("".join(letter if letter.isalnum() else " " for letter in description.lower()).split())
    return next((kind for names, kind in _WORDS if words.intersection(names)), GroupKind.UNKNOWN)


def ranges(ranks: list[int]) -> str:
    """Sorted ranks as text: [0, 1, 2, 8] is "0-2,8"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def state_of(group: Any, ranks: Iterable[int], *, default: bool) -> GroupState:
    """The state of one of torch's process groups."""
    description = str(getattr(group, "group_desc", "") or "")
    name = "default" if default else description or str(getattr(group, "group_name", "?"))
    kind = GroupKind.DATA if default else kind_of(description)
    return make_state(name, kind, ranks, getattr(group, "_get_sequence_number_for_group", None))


def make_state(
    name: str, kind: GroupKind, ranks: Iterable[int], sequence: Callable[[], int] | None = None
) -> GroupState:
    """A group of these global ranks; `sequence` asks torch for the number of its latest operation."""
    members = sorted(ranks)
    return GroupState(text_bytes(name, 48), int(kind), len(members), text_bytes(ranges(members), 80), sequence)
