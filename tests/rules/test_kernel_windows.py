"""Windows of the profiler as evidence: what a device idled for, kernel by kernel, decides between host and device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rankscope.finding import Finding, Overhead, Side
from rankscope.reading import Event
from rankscope.rules import judge
from rankscope.rules.kernel_windows import kernel_windows
from rankscope.simulator.generate import generate
from rankscope.simulator.scenario import Fault, Node, Scenario, Workload
from rankscope.window import Window


def job(fault: Fault) -> Window:
    """A generated job of four ranks with a fault from step 80 on."""
    workload = Workload(ranks=4, steps=200, step_ms=100.0)
    scenario = Scenario(name="w", seed=1, workload=workload, node=Node(gpus=4), faults=(fault,), confounders=())
    return generate(scenario)


def with_window(window: Window, rank: int, step: int, bound: str, **more: object) -> Window:
    """The same with a window of a rank that ended in a step, as the agent's child analysed it."""
    of = window.ranks[rank].steps.columns
    at_ns = int(of["end_ns"][step])
    told: dict[str, str | int | float | None] = {
        "bound": bound,
        "idle_fraction": 0.35 if bound == "host" else 0.02,
        "host_wait_fraction": 0.9,
        "stall_kernel": "sgemm",
        "stall_us": 4_200.0,
        "stall_operator": "aten::item",
        "stall_source": "train.py:41",
        "stall_host_doing": "aten::item",
    }
    text = f"rank {rank}, steps 1 to 3: {bound}-bound; longest stall 4.2 ms before sgemm"
    events = [
        Event("profiler-window", at_ns, "", rank=rank, attributes={"step": step, "cost_ns": 1}),
        # Read a minute later: the step counts, not the time.
        Event("kernel-stalls", at_ns + 60 * 10**9, text, rank=rank, attributes=told | more),  # type: ignore[arg-type]
    ]
    return replace(window, events=[*window.events, *events])


def first(window: Window) -> Finding:
    """The first finding."""
    return judge(window, Overhead()).findings[0]


LAUNCH = Fault(class_slug="launch-bound", severity=20.0, from_step=80, to_step=200)
THERMAL = Fault(class_slug="gpu-thermal-slowdown", severity=1.3, gpu=2, from_step=80, to_step=200, counters=False)


def test_a_window_names_the_operator_and_the_line() -> None:
    """A host-bound window of one rank, beside a device-bound one of before: the finding says where the host was."""
    window = with_window(with_window(job(LAUNCH), 1, 40, "device"), 3, 150, "host")
    found = first(window)
    assert (found.class_slug, found.side) == ("launch-bound", Side.CODE)
    (piece,) = [piece for piece in found.evidence if piece.family == "launch"]
    assert "aten::item, at train.py:41" in piece.what
    assert "longest stalls before sgemm (4.2 ms" in piece.what
    plain = first(job(LAUNCH))
    assert found.confidence >= plain.confidence


def test_a_busy_device_is_not_called_launch_bound() -> None:
    """The same job where the window shows a busy device: the boundaries of phases are overruled."""
    found = first(with_window(job(LAUNCH), 3, 150, "device"))
    assert found.class_slug != "launch-bound"


@pytest.mark.parametrize(("bound", "strength"), [("host", 1.0), ("device", 0.0)])
def test_a_window_of_the_slow_rank_tells_host_from_device(bound: str, strength: float) -> None:
    """On the rank that is slow it speaks for or against a device that starves; without counters no cause is told."""
    from rankscope.rules.evidence import Case
    from rankscope.rules.evidence_step import starved
    from rankscope.rules.frame import Frame
    from rankscope.rules.locate import suspects
    from rankscope.rules.telemetry import Telemetry
    from rankscope.rules.whatif_price import Prices

    window = with_window(job(THERMAL), 2, 150, bound)
    frame = Frame(window)
    suspect = next(each for each in suspects(Prices(frame)) if each.located)
    seen = starved(Case(frame, Telemetry(window), suspect, suspect.rows[0]))
    assert seen.strength == strength
    assert "sgemm" in seen.what
    assert judge(window, Overhead()).verdict != "hardware"


def test_windows_of_other_steps_and_ranks_say_nothing() -> None:
    """Only a window of the rank and the steps under suspicion counts; one that could not be read counts for nothing."""
    window = with_window(with_window(job(THERMAL), 2, 20, "host"), 1, 150, "host")
    assert "sgemm" not in str(first(window).evidence)
    unread = Event("kernel-stalls", 5, "the window of rank 2: its reader ended with 2", rank=2)
    assert kernel_windows([unread]) == []


def test_odd_attributes_are_taken_as_missing() -> None:
    """A recording is read with care: texts in place of numbers, and steps that are none."""
    event = Event(
        "kernel-stalls", 9, "x", rank=0, attributes={"bound": "host", "idle_fraction": "much", "stall_us": None}
    )
    (found,) = kernel_windows([event])
    assert (found.idle_for_host, found.step, found.said) == (None, None, "x")
