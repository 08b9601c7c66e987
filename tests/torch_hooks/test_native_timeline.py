"""The device's timeline in Python and in C: the same records for the same marks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_hooks.both_paths import NS, PHASES, Device, compiled, new_ring, written

from rankscope.records import GroupKind, Phase
from rankscope.torch_hooks import reference

MARKED = st.one_of(
    st.tuples(st.just("mark"), st.tuples(PHASES, PHASES, NS)),
    st.tuples(st.just("mark"), st.tuples(st.just(3), st.just(4), NS)),
    st.tuples(st.just("wait_begins"), st.tuples(st.sampled_from([4, 12]), NS)),
    st.tuples(st.just("wait_ends"), st.tuples(st.integers(0, 3), NS)),
    st.tuples(st.just("end_step"), st.tuples(NS)),
    st.tuples(st.just("flush"), st.tuples()),
    st.tuples(st.just("used"), st.tuples(st.integers(0, 2), st.integers(0, 3))),
    st.tuples(st.just("reach"), st.integers(0, 10**8)),
    st.tuples(st.just("allow"), st.booleans()),
    st.tuples(st.just("seen"), st.booleans()),
    # More steps than may be outstanding.
    st.tuples(st.just("behind"), st.integers(1, 40)),
)


def play_timeline(
    module: Any, calls: list[tuple[str, Any]], passed: list[int], world_size: int, *, coarse: bool
) -> tuple[list[Any], bytes]:
    """What a timeline asked of its device, and the ring."""
    seen: list[Any] = []
    kinds = (GroupKind.DATA, GroupKind.SHARD, GroupKind.PIPELINE)
    states = [module.GroupState(kind.name.encode(), kind, 2, b"0-1") for kind in kinds]
    device = Device(passed)
    with tempfile.TemporaryDirectory() as directory:
        ring = new_ring(directory, 16)
        timeline = module.DeviceTimeline(device, ring, world_size, coarse=coarse)
        watched: list[Any] | None = states
        for name, value in calls:
            if name == "mark":
                timeline.mark(*value)
            elif name == "wait_begins":
                timeline.wait_begins(*value)
            elif name == "wait_ends":
                timeline.wait_ends(states[value[0]] if value[0] < len(states) else None, value[1])
            elif name == "end_step":
                timeline.end_step(value[0], watched)
            elif name == "flush":
                timeline.flush(watched)
            elif name == "used":
                states[value[0]].count = value[1]
            elif name == "reach":
                device.reached = 10**15 + value
            elif name == "allow":
                device.allowed = value
            elif name == "seen":
                watched = states if value else None
            else:
                for step in range(value):
                    timeline.mark(Phase.FORWARD, Phase.BACKWARD, step)
                    timeline.end_step(step, watched)
            seen.append((device.given_back, timeline.dropped_steps))
        return seen, written(ring)


@settings(deadline=None)
@given(
    st.lists(MARKED, max_size=40),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
    st.integers(1, 2),
    st.booleans(),
)
def test_same_device_times_for_the_same_marks(
    calls: list[tuple[str, Any]], passed: list[int], world_size: int, coarse: bool
) -> None:
    """Boundaries, waits, groups, graph captures and a device far behind: both write the same records."""
    one, other = (play_timeline(module, calls, passed, world_size, coarse=coarse) for module in (compiled(), reference))
    assert one == other


def test_a_device_that_fails_leaves_the_timeline_whole(tmp_path: Path) -> None:
    """Each call of the device may raise, at any step: no event is read twice, nothing crashes."""
    native: Any = compiled()

    class Failing(Device):
        def done(self, event: int) -> bool:
            if event > self.reached:
                raise RuntimeError("device lost")
            return True

    device = Failing([5])
    timeline = native.DeviceTimeline(device, new_ring(tmp_path), 2)
    failures = 0
    for step in range(100):
        timeline.mark(Phase.BACKWARD, Phase.OTHER, step)
        try:
            timeline.end_step(step, None)
        except RuntimeError:
            failures += 1
    assert failures == 100
    assert timeline.dropped_steps == 0
