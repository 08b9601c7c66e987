"""Operations on process groups that Python issues, and the waits for them: three choke points.

`ProcessGroup`'s own methods (every front end of torch.distributed calls them, FSDP2 and pipelines included),
`Work.wait`, and the functional `wait_tensor`. DDP's reducer is C++ and passes them by; its wait is the end of backward.
"""

from __future__ import annotations

import importlib
from functools import partial
from threading import get_ident
from typing import Any

from rankscope.records import MISSING, CollectiveRecord, GroupKind, Phase, RecordKind
from rankscope.torch_hooks.groups import SHARDING, state_of
from rankscope.torch_hooks.hot import GroupState
from rankscope.torch_hooks.patches import Undo
from rankscope.torch_hooks.step_clock import StepClock

#: Methods that issue an operation, in torch 2.6 to 2.13; those that a torch lacks are left out.
OPERATIONS = (
    "allreduce",
    "allreduce_coalesced",
    "allgather",
    "allgather_coalesced",
    "_allgather_base",
    "allgather_into_tensor_coalesced",
    "all_gather_single",
    "all_gather_single_coalesced",
    "reduce",
    "reduce_scatter",
    "_reduce_scatter_base",
    "reduce_scatter_tensor_coalesced",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "alltoall",
    "alltoall_base",
    "all_to_all_single",
    "broadcast",
    "gather",
    "scatter",
    "barrier",
    "send",
    "recv",
    "recv_anysource",
)
_PEER_TO_PEER = frozenset(("send", "recv", "recv_anysource"))
#: Works not waited for yet whose group is remembered.
_MOST_WORKS = 512
#: Point-to-point records of one step: a schedule of 32 microbatches on an inner stage has 128.
_MOST_RECORDS = 256


class CollectiveWatch(Undo):
    """Counts operations by group and times the waits of the training thread."""

    def __init__(self, clock: StepClock) -> None:
        super().__init__()
        self._clock = clock
        self._states: dict[int, GroupState] = {}
        self._works: dict[int, tuple[GroupState, str, int, int]] = {}
        self._last: tuple[GroupState, str, int, int] | None = None
        self._append = clock.ring.appender(RecordKind.COLLECTIVE, CollectiveRecord.layout)
        self._recorded_step = self._recorded = 0
        self.broken: Exception | None = None
        self.installed = False

    def install(self) -> None:
        """Hook into the process groups that are there and those to come."""
        self.installed = True
        distributed = importlib.import_module("torch.distributed")
        clock = self._clock
        group = distributed.group.WORLD
        default = state_of(group, range(distributed.get_world_size()), default=True)
        self._states[id(group)] = default
        clock.watch_groups(default)
        self.try_all((("collectives", self._operations), ("waits for collectives", self._waits)))

    def _operations(self) -> None:
        group_type = importlib.import_module("torch.distributed").ProcessGroup
        for name in OPERATIONS:
            if hasattr(group_type, name):
                self.replace(name, (group_type,), partial(self._operation, name))

    def _operation(self, name: str, original: Any) -> Any:
        thread, states, works, clock = self._clock.thread, self._states, self._works, self._clock
        to_peer, shards = name in _PEER_TO_PEER, name in SHARDING

        def operation(group: Any, *arguments: Any, **keywords: Any) -> Any:
            work = original(group, *arguments, **keywords)
            if get_ident() == thread and work is not None and clock.groups is not None:
                try:
                    state = states.get(id(group)) or self._meet(group, name)
                    state.count += 1
                    if shards:
                        state.kind = GroupKind.SHARD
                    clock.issued += 1
                    clock.groups.latest = state
                    if len(works) > _MOST_WORKS:
                        works.clear()
                    if to_peer:
                        works[id(work)] = (state, name, clock.now(), _peer(arguments))
                    else:
                        works[id(work)] = (state, name, 0, MISSING)
                except Exception as error:
                    self._break(error)
            return work

        return operation

    def _meet(self, group: Any, operation: str) -> GroupState:
        """A group that is used for the first time."""
        distributed = importlib.import_module("torch.distributed")
        # Kept alive by torch as long as it is used; where one is made anew at its address, the names agree anyway.
        state = state_of(group, distributed.get_process_group_ranks(group), default=False)
        if operation in _PEER_TO_PEER and state.kind == GroupKind.UNKNOWN:
            state.kind = GroupKind.PIPELINE
        self._states[id(group)] = state
        if self._clock.groups is not None:
            self._clock.groups.states.append(state)
        return state

    def _waits(self) -> None:
        distributed = importlib.import_module("torch.distributed")
        self.replace("wait", (distributed.Work,), partial(self._wait, True))
        self.replace("_broadcast_coalesced", (distributed,), partial(self._wait, False))

    def _wait(self, pop: bool, original: Any) -> Any:
        clock, works = self._clock, self._works
        thread = clock.thread
        wait, bubble = int(Phase.COLLECTIVE_WAIT), int(Phase.BUBBLE)

        def waiting(work: Any, *arguments: Any, **keywords: Any) -> Any:
            groups = clock.groups
            if get_ident() != thread or groups is None:
                return original(work, *arguments, **keywords)
            known = works.pop(id(work), None) if pop else None
            phase = bubble if known is not None and known[2] else wait
            timeline = clock.timeline
            began = clock.wait_begins(phase)
            if timeline is not None:
                timeline.wait_begins(phase, began)
            try:
                return original(work, *arguments, **keywords)
            finally:
                try:
                    waited = clock.wait_ends(began, phase)
                    state = groups.default if known is None else known[0]
                    state.wait_ns += waited
                    if timeline is not None:
                        timeline.wait_ends(state, began + waited)
                    if known is not None and known[2]:
                        self._record(known, began, waited)
                except Exception as error:
                    self._break(error)

        return waiting

    def wait_begins(self) -> None:
        """The compute stream is made to wait for another one, by nobody we know: for the latest operation."""
        timeline = self._clock.timeline
        if timeline is not None and self._clock.groups is not None:
            timeline.wait_begins(int(Phase.COLLECTIVE_WAIT), self._clock.now())

    def wait_ends(self) -> None:
        """It has been made to wait."""
        timeline, groups = self._clock.timeline, self._clock.groups
        if timeline is not None and groups is not None:
            timeline.wait_ends(groups.latest, self._clock.now())

    def _record(self, known: tuple[GroupState, str, int, int], began: int, waited: int) -> None:
        """Write a point-to-point operation: when it was issued, and how long this rank waited for it."""
        step = self._clock.step
        if step != self._recorded_step:
            self._recorded_step, self._recorded = step, 0
        self._recorded += 1
        if self._recorded > _MOST_RECORDS:
            return
        state, name, enqueued, peer = known
        kind = int(GroupKind.PIPELINE)
        self._append(
            step, MISSING, enqueued, began, began + waited, waited, MISSING, peer, 0, kind, name.encode(), state.name
        )

    def _break(self, error: Exception) -> None:
        self.broken = error
        self._clock.forget_groups()


def process_group_is_there(torch: Any) -> bool:
    """Whether this process has joined a job."""
    distributed = torch.distributed
    return bool(distributed.is_available() and distributed.is_initialized())


def _peer(arguments: tuple[Any, ...]) -> int:
    """The other rank of `send(tensors, rank, tag)`."""
    return arguments[1] if len(arguments) > 1 and isinstance(arguments[1], int) else MISSING
