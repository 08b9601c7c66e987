"""The hot path in Python: what `_native` does where it was not built, or is declined."""

from rankscope.torch_hooks.boundaries import Boundaries
from rankscope.torch_hooks.device_timeline import DeviceTimeline
from rankscope.torch_hooks.gates import Listener, backward_gate, collate_gate, next_gate
from rankscope.torch_hooks.group_state import GroupState
from rankscope.torch_hooks.hot_collectives import HotCollectives, operation_gate, wait_gate
from rankscope.torch_hooks.hot_loop import HotLoop

__all__ = [
    "Boundaries",
    "DeviceTimeline",
    "GroupState",
    "HotCollectives",
    "HotLoop",
    "Listener",
    "backward_gate",
    "collate_gate",
    "next_gate",
    "operation_gate",
    "wait_gate",
]
