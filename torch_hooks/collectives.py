"""Operations on process groups that Python issues, and the waits for them: three choke points.

`ProcessGroup`'s own methods (every front end of torch.distributed calls them, FSDP2 and pipelines included),
`Work.wait`, and the functional `wait_tensor`. DDP's reducer is C++ and passes them by; its wait is the end of backward.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from rankscope.records import MISSING, CollectiveRecord, GroupKind, MarkKind, Phase, RecordKind
from rankscope.torch_hooks.groups import SHARDING, state_of
from rankscope.torch_hooks.hot import GroupState, HotCollectives, operation_gate, wait_gate
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
#: Point-to-point records of one step: a schedule of 32 microbatches on an inner stage has 128.
_MOST_RECORDS = 256


class CollectiveWatch(HotCollectives):
    """Hooks into process groups, and decides what is decided seldom about them."""

    clock: StepClock

    def __init__(self, clock: StepClock) -> None:
        super().__init__(clock, clock.thread, self._stop)
        self._patches = Undo()
        self._append = clock.ring.appender(RecordKind.COLLECTIVE, CollectiveRecord.layout)
        self._recorded_step = self._recorded = 0
        self.installed = False
        #: Called once DDP's reducer is at work in this process: it is C++, and waits at the end of backward.
        self.on_reducer: Callable[[], None] | None = None
        self._reducer_patch = Undo()

    def install(self) -> list[str]:
        """Hook into the process groups that are there and those to come; returns what could not be, one line each."""
        self.installed = True
        distributed = importlib.import_module("torch.distributed")
        group = distributed.group.WORLD
        default = state_of(group, range(distributed.get_world_size()), default=True)
        self.states[id(group)] = default
        self.watch(default)
        self._patches.try_all((("collectives", self._operations), ("waits for collectives", self._waits)))
        self._reducer_patch.try_all((("DDP's reducer", self._reducer),))
        if self._reducer_patch.unavailable:
            self._say_reducer()
        return self._patches.unavailable + self._reducer_patch.unavailable

    def watch(self, default: GroupState) -> None:
        """From now on operations are counted; `default` is the whole job's group."""
        self.default = self.latest = default
        self.clock.group_states = [default]

    def remove(self) -> None:
        """Give torch back as it was."""
        self._reducer_patch.remove()
        self._patches.remove()

    def _operations(self) -> None:
        group_type = importlib.import_module("torch.distributed").ProcessGroup
        for name in OPERATIONS:
            if hasattr(group_type, name):
                self._patches.replace(name, (group_type,), partial(self._operation, name))

    def _operation(self, name: str, original: Any) -> Any:
        return operation_gate(original, self, name, name in SHARDING, name in _PEER_TO_PEER)

    def _waits(self) -> None:
        distributed = importlib.import_module("torch.distributed")
        self._patches.replace("wait", (distributed.Work,), lambda original: wait_gate(original, self, True))
        self._patches.replace("_broadcast_coalesced", (distributed,), lambda original: wait_gate(original, self, False))

    def _reducer(self) -> None:
        reducer_type = importlib.import_module("torch.distributed").Reducer
        self._reducer_patch.replace("prepare_for_backward", (reducer_type,), self._first_reducer)

    def _first_reducer(self, original: Any) -> Any:
        def prepare_for_backward(*arguments: Any, **keywords: Any) -> Any:
            try:
                self._reducer_patch.remove()
                self._say_reducer()
            except Exception as error:
                self.give_up(error)
            return original(*arguments, **keywords)

        return prepare_for_backward

    def _say_reducer(self) -> None:
        if self.on_reducer is not None:
            self.on_reducer()

    def meet(self, group: Any, name: str) -> GroupState:
        """A group that is used for the first time."""
        distributed = importlib.import_module("torch.distributed")
        # Kept alive by torch as long as it is used; where one is made anew at its address, the names agree anyway.
        state = state_of(group, distributed.get_process_group_ranks(group), default=False)
        if name in _PEER_TO_PEER and state.kind == GroupKind.UNKNOWN:
            state.kind = GroupKind.PIPELINE
        self.states[id(group)] = state
        if self.clock.group_states is not None:
            self.clock.group_states.append(state)
        return state

    def sent(self, state: GroupState, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """An operation with one other rank, `send(tensors, rank, tag)`: group, name, when it was issued, which rank."""
        peer = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], int) else MISSING
        return state, name, self.clock.now(), peer

    def record(self, known: tuple[Any, ...], began_ns: int, waited_ns: int) -> None:
        """Write such an operation: when it was issued, and how long this rank waited for it."""
        step = self.clock.step
        if step != self._recorded_step:
            self._recorded_step, self._recorded = step, 0
        self._recorded += 1
        if self._recorded > _MOST_RECORDS:
            return
        state, name, enqueued_ns, peer = known
        ended_ns, kind = began_ns + waited_ns, int(GroupKind.PIPELINE)
        times = (enqueued_ns, began_ns, ended_ns, waited_ns)
        self._append(step, MISSING, *times, MISSING, peer, 0, kind, name.encode(), state.name)

    def stream_waits(self) -> None:
        """The compute stream is made to wait for another one, by nobody we know: for the latest operation."""
        if self.clock.timeline is not None and self.default is not None:
            self.clock.timeline.wait_begins(int(Phase.COLLECTIVE_WAIT), self.clock.now())

    def stream_waited(self) -> None:
        """It has been made to wait."""
        if self.clock.timeline is not None and self.default is not None:
            self.clock.timeline.wait_ends(self.latest, self.clock.now())

    def _stop(self, error: Exception) -> None:
        """An error of ours: operations are counted no more, which is said."""
        self.default = self.clock.group_states = None
        self.clock.mark(MarkKind.DEGRADED, f"collectives: {type(error).__name__}: {error}")


def process_group_is_there(torch: Any) -> bool:
    """Whether this process has joined a job."""
    distributed = torch.distributed
    return bool(distributed.is_available() and distributed.is_initialized())
