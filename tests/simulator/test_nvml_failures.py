"""How a sick GPU looks through NVML: hung calls, a GPU that is lost, stale handles, Xid events."""

from __future__ import annotations

import time

import pytest
from simulated_nvml import ChildFactory, NodeFactory

from rankscope.simulator.state import XID_EVENT

INVALID_ARGUMENT, NOT_FOUND, TIMEOUT, GPU_IS_LOST, UNKNOWN = 2, 6, 10, 15, 999
FOR_EVER = 1 << 63


@pytest.mark.parametrize("whole_node", [False, True])
def test_a_hang_blocks_until_it_ends(whole_node: bool, make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A call on a hung GPU does not return until the hang ends; a neighbour answers, unless the whole group hangs."""
    node = make_node()
    target = node if whole_node else node.gpus[0]
    hung, neighbour = nvml_child(node), nvml_child(node)
    target.hang_until_monotonic_ns = FOR_EVER
    hung.send("nvmlDeviceGetPowerUsage(d0)")
    neighbour.send("nvmlDeviceGetPowerUsage(d1)")
    assert neighbour.answered(0.3 if whole_node else 20) is not whole_node
    assert not hung.answered(0.3)
    target.hang_until_monotonic_ns = 0
    assert hung.receive() == node.gpus[0].power_average_mw
    assert neighbour.receive() == node.gpus[1].power_average_mw


def test_a_hang_can_end_by_itself(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A hang until a moment of the monotonic clock holds calls until then and no longer."""
    node = make_node()
    child = nvml_child(node)
    end = time.monotonic_ns() + 200_000_000
    node.gpus[0].hang_until_monotonic_ns = end
    child("nvmlDeviceGetPowerUsage(d0)")
    assert time.monotonic_ns() >= end


def test_a_lost_gpu_fails_and_the_rest_go_on(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Every call on a lost GPU is GPU_IS_LOST, lookups too; the count stays until NVML starts anew."""
    node = make_node(gpus=3)
    child = nvml_child(node)
    node.gpus[1].lost = True
    assert child.error("nvmlDeviceGetPowerUsage(d1)") == GPU_IS_LOST
    assert child.error("fields(d1, [83])") == GPU_IS_LOST
    assert child.error("nvmlDeviceGetHandleByIndex(1)") == GPU_IS_LOST
    assert child.error(f"nvmlDeviceGetHandleByUUID({node.gpus[1].uuid!r})") == GPU_IS_LOST
    assert child("nvmlDeviceGetCount()") == 3
    assert child("nvmlDeviceGetPowerUsage(d2)") == node.gpus[2].power_average_mw


def test_after_a_new_init_the_lost_gpu_is_gone(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A new initialisation enumerates what is left: the count shrinks, indices close up, the UUID is not found."""
    node = make_node(gpus=3)
    child = nvml_child(node)
    node.gpus[1].lost = True
    child("nvmlShutdown(); nvmlInit()")
    assert child("nvmlDeviceGetCount()") == 2
    assert child("nvmlDeviceGetUUID(nvmlDeviceGetHandleByIndex(1))") == node.gpus[2].uuid
    assert child.error(f"nvmlDeviceGetHandleByUUID({node.gpus[1].uuid!r})") == NOT_FOUND


def test_handles_of_an_earlier_init_are_stale(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A handle kept over shutdown and init is refused, never taken for another GPU."""
    child = nvml_child(make_node())
    child("nvmlShutdown(); nvmlInit()")
    assert child.error("nvmlDeviceGetPowerUsage(d0)") == INVALID_ARGUMENT
    child("d0 = nvmlDeviceGetHandleByIndex(0)")
    assert child.error("nvmlDeviceGetPowerUsage(d0)") == 0


def test_a_gpu_can_answer_with_any_error(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """The scenario can make calls on one GPU fail with a code of its choice, and make them work again."""
    node = make_node()
    child = nvml_child(node)
    node.gpus[0].fail_with = UNKNOWN
    assert child.error("nvmlDeviceGetPowerUsage(d0)") == UNKNOWN
    assert child.error("nvmlDeviceGetPowerUsage(d1)") == 0
    node.gpus[0].fail_with = 0
    assert child.error("nvmlDeviceGetPowerUsage(d0)") == 0


REGISTER = f"s = nvmlEventSetCreate(); nvmlDeviceRegisterEvents(d0, {XID_EVENT}, s)"
EVENT = "(lambda e: [nvmlDeviceGetUUID(e.device), e.eventType, e.eventData])(nvmlEventSetWait_v2(s, {}))"


def test_an_xid_wakes_the_waiter(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """EventSetWait_v2 blocks and then delivers the Xid with its GPU and number; afterwards there is none."""
    node = make_node()
    child = nvml_child(node)
    child(REGISTER)
    child.send(EVENT.format(20_000))
    assert not child.answered(0.1)
    node.push_event(0, 48)
    assert child.receive() == [node.gpus[0].uuid, XID_EVENT, 48]
    assert child.error("nvmlEventSetWait_v2(s, 1)") == TIMEOUT


def test_only_registered_and_later_events_arrive(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Events before the registration and of other GPUs are not delivered; the rest come in order."""
    node = make_node()
    node.push_event(0, 13)
    child = nvml_child(node)
    child(REGISTER)
    node.push_event(1, 31)
    node.push_event(0, 63)
    node.push_event(0, 94)
    assert [child(EVENT.format(1000))[2] for _ in range(2)] == [63, 94]
    assert child.error("nvmlEventSetWait_v2(s, 1)") == TIMEOUT


def test_a_lost_gpu_ends_the_wait_after_its_xid(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """The pending Xid 79 is delivered first; then waiting on a set with a lost GPU is GPU_IS_LOST."""
    node = make_node()
    child = nvml_child(node)
    child(REGISTER)
    node.push_event(0, 79)
    node.gpus[0].lost = True
    assert child("nvmlEventSetWait_v2(s, 1000).eventData") == 79
    assert child.error("nvmlEventSetWait_v2(s, 1000)") == GPU_IS_LOST


def test_a_freed_set_is_refused(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Waiting on a set that was freed is an invalid argument and not a crash."""
    child = nvml_child(make_node())
    child(REGISTER)
    child("nvmlEventSetFree(s)")
    assert child.error("nvmlEventSetWait_v2(s, 1)") == INVALID_ARGUMENT
