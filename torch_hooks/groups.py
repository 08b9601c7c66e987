"""Process groups: what each is for, which ranks are in it, and how long this rank waited for it in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rankscope.records import MISSING, GroupKind, text_bytes

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


class GroupState:
    """One process group as this rank sees it."""

    __slots__ = ("_sequence", "count", "kind", "members", "name", "sequence", "size", "wait_ns")

    def __init__(self, name: str, kind: GroupKind, ranks: Iterable[int], sequence: Callable[[], int] | None) -> None:
        members = sorted(ranks)
        self.name = text_bytes(name, 48)
        self.kind = kind
        self.size = len(members)
        self.members = text_bytes(ranges(members), 80)
        self._sequence = sequence
        #: Of the step under way: operations issued from Python, and host time waited for them.
        self.count = self.wait_ns = 0
        self.sequence = self.now()

    def now(self) -> int:
        """Sequence number of the group's latest operation, or MISSING."""
        try:
            return MISSING if self._sequence is None else int(self._sequence())
        except (RuntimeError, TypeError, ValueError):
            self._sequence = None
            return MISSING


class Groups:
    """The groups of this process. `default` is the whole job's, in which DDP reduces gradients out of our sight."""

    def __init__(self, default: GroupState, *, on_device: bool) -> None:
        self.default = default
        #: Operations issued from Python in the step under way.
        self.count = 0
        #: The group of the latest of them: whom a stream that is made to wait waits for.
        self.latest = default
        self._on_device = on_device
        self._states: list[GroupState] = [default]

    @property
    def used(self) -> tuple[GroupState, ...]:
        """Groups with operations issued from Python in the step under way."""
        return tuple(state for state in self._states if state.count)

    def add(self, state: GroupState) -> None:
        """One more group."""
        self._states.append(state)

    def end_step(
        self, append: Callable[..., None], step: int, own_ns: int, backward_wait_ns: int, backward_count: int
    ) -> None:
        """Write a record for each group that was used in the step; with a device clock the device's say the waits."""
        self.count = 0
        for state in self._states:
            count, waited = state.count, state.wait_ns
            if state is self.default:
                count += backward_count
                waited += backward_wait_ns
            if not count:
                continue
            before, latest = state.sequence, state.now()
            state.sequence = latest
            first = MISSING if before == MISSING or latest <= before else before + 1
            if not self._on_device:
                # Operations whose waits were not seen were waited for somewhere in the "own" phases.
                unseen = state.count > 0 and not state.wait_ns
                append(
                    step,
                    state.size,
                    count,
                    own_ns,
                    waited,
                    0,
                    state.name,
                    state.kind,
                    MISSING,
                    MISSING,
                    unseen,
                    first,
                    MISSING if first == MISSING else latest,
                    state.members,
                )
            state.count = state.wait_ns = 0


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
    return GroupState(name, kind, ranks, getattr(group, "_get_sequence_number_for_group", None))
