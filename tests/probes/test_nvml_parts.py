"""MIG instances, processes, GPM and what is fixed of a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched_nvml import WatchNode

from rankscope.gpu_device import process_on
from rankscope.probes import nvml_gpm
from rankscope.probes.nvml_facts import ranges
from rankscope.probes.nvml_gpm import FLOOR_NS, GpmWindow
from rankscope.simulator.state import NodeState


def test_instances_that_come_and_go_are_followed(node: NodeState, watch: WatchNode) -> None:
    """A MIG instance made while we watch is a device from then on; one that is gone is read no more, without a fuss."""
    gpu = node.gpus[1]
    watched = watch(node)
    watched.read_until(lambda: watched.latest("gpu.mig_mode", gpu.uuid) == 0, "health")
    first, second = gpu.split([(60, 40 << 30), (32, 20 << 30)])
    gpu.set_process(4711, 5 << 30, mig=1)
    watched.read_until(lambda: watched.latest("gpu.mig_mode", gpu.uuid) == 1, "health")
    watched.read_until(lambda: watched.latest("gpu.memory_used_bytes", second.uuid) == 5 << 30, "slow")
    watched.read_until(
        lambda: watched.latest("gpu_process.memory_used_bytes", process_on(second.uuid, 4711)) == 5 << 30, "processes"
    )
    assert {e.device for e in watched.events if e.kind == "gpu-described"} >= {first.uuid, second.uuid}
    second.present = False
    gpu.set_process(0, 0)
    before = len(watched.readings)
    watched.read("health")
    for group in ("slow", "processes", "gpm"):
        watched.read_until(lambda: any(r.device == first.uuid for r in watched.readings[before:]), group)
    watched.read_until(lambda: watched.latest("gpu.processes", first.uuid) == 0, "processes")
    assert not [event for event in watched.events if event.kind in ("gpu-lost", "probe-failed")]


def test_how_gpus_stand_to_each_other_is_told_once(tmp_path: Path, watch: WatchNode) -> None:
    """Peers by index, near nodes, and what the links lead to; nothing more is told while nothing changes."""
    node = NodeState.create(tmp_path / "n", profile="H100-SXM5-80GB", gpus=6)
    watched = watch(node)
    facts = watched.probe.facts

    def complete() -> bool:
        return all("p2p" in facts(gpu.uuid) and "numa_node" in facts(gpu.uuid) for gpu in node.gpus)

    watched.read_until(complete, "description")
    assert facts(node.gpus[5].uuid)["topology"] == "0=system,1=system,2=system,3=system,4=node"
    assert facts(node.gpus[0].uuid)["p2p"] == "1=nvlink,2=nvlink,3=nvlink,4=nvlink,5=nvlink"
    assert facts(node.gpus[5].uuid)["numa_node"] == "1"
    assert str(facts(node.gpus[0].uuid)["nvlink_remote"]).startswith("switch 0000:05:00: 0,4,8,12,16; ")
    told = watched.kinds().count("gpu-described")
    for _ in range(20):
        watched.read("description")
    assert watched.kinds().count("gpu-described") == told


@given(st.sets(st.integers(0, 300)))
def test_ranges_name_the_same_numbers(numbers: set[int]) -> None:
    """Read back, the text holds every number and no other."""
    back: set[int] = set()
    for part in filter(None, ranges(sorted(numbers)).split(",")):
        first, _, last = part.partition("-")
        back |= set(range(int(first), int(last or first) + 1))
    assert back == numbers


class FakeGpm:
    """Stands for the library: counts calls, and gives each metric its own number."""

    def __init__(self) -> None:
        self.samples = 0

    def take(self, buffer: object) -> None:
        """One sample of the counters."""
        self.samples += 1

    @staticmethod
    def nvmlGpmSampleAlloc(buffer: object) -> int:  # noqa: N802
        """As NVML names it."""
        return 0

    @staticmethod
    def nvmlGpmMetricsGet(get: object) -> int:  # noqa: N802
        """As NVML names it."""
        return 0


def windows(times_ns: Iterable[int]) -> list[bool]:
    """Whether each read at these times gave metrics."""
    fake = FakeGpm()
    window = GpmWindow(fake, fake.take)
    return [window.read(now_ns) is not None for now_ns in times_ns]


def test_gpm_keeps_the_floor_between_samples() -> None:
    """The first read has nothing to compare; one that comes too soon leaves the last sample where it is."""
    assert windows([0, FLOOR_NS, FLOOR_NS + 1, FLOOR_NS + 2, 2 * FLOOR_NS + 3]) == [False, False, True, False, True]


def test_gpm_is_read_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another device has its turn, a read goes without instead of waiting for it."""
    turn = threading.Lock()
    monkeypatch.setattr(nvml_gpm, "_turn", turn)
    with turn:
        assert windows([0, 2 * FLOOR_NS]) == [False, False]
    assert windows([0, 2 * FLOOR_NS]) == [False, True]
