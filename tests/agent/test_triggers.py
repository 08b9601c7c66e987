"""What raises the rates, of which devices, and what is kept of it."""

from __future__ import annotations

from rankscope.agent.triggers import LINK_ERRORS, Trigger, Triggers
from rankscope.gpu_device import link_of
from rankscope.metrics import METRICS
from rankscope.reading import Event, Reading

GPUS = ("GPU-a", "GPU-b")


def told(triggers: Triggers, *readings: Reading, events: tuple[Event, ...] = ()) -> list[Trigger]:
    """What one round gives."""
    return list(triggers.of(readings, events, GPUS))


def test_throttling_concerns_its_gpu() -> None:
    """Heat and the power brake count, the ordinary power cap, idleness and set clocks do not."""
    readings = [
        Reading("gpu.clock_event_reasons", float(mask), 1, gpu) for mask, gpu in ((0x40, "GPU-a"), (0x7, "GPU-b"))
    ]
    assert told(Triggers(), *readings) == [Trigger("throttled", frozenset({"GPU-a"}))]


def test_a_link_counts_when_its_errors_grow() -> None:
    """What a counter held before is history; growth concerns the GPU of an NVLink, or the host of a network port."""
    triggers = Triggers()
    link = link_of("GPU-b", 7)

    def crc(value: float) -> Reading:
        return Reading("nvlink.crc_errors", value, 1, link)

    def port(value: float) -> Reading:
        return Reading("ib.link_downed", value, 1, "mlx5_0:1")

    assert told(triggers, crc(9), port(3)) == []
    assert told(triggers, crc(9), port(3)) == []
    assert told(triggers, crc(10)) == [Trigger("link-error", frozenset({"GPU-b"}))]
    assert told(triggers, port(4)) == [Trigger("link-error", frozenset({""}))]
    # A reset is no error, and what follows it is.
    assert told(triggers, crc(0)) == []
    assert told(triggers, crc(1)) == [Trigger("link-error", frozenset({"GPU-b"}))]


def test_every_link_counter_is_a_counter_of_the_vocabulary() -> None:
    """A renamed metric would silence the trigger."""
    assert len(LINK_ERRORS) > 20
    assert all(METRICS[name].counter for name in LINK_ERRORS)


def test_an_xid_concerns_its_gpu_and_where_that_is_unknown_all() -> None:
    """History from before the agent's start is no news."""
    events = (
        Event("xid", 1, "", device="GPU-a"),
        Event("xid", 1, "", device="GPU-b", attributes={"history": 1}),
        Event("xid", 1, ""),
        Event("oom-kill", 1, ""),
    )
    assert told(Triggers(), events=events) == [
        Trigger("xid", frozenset({"GPU-a"})),
        Trigger("xid", frozenset({"GPU-a", "GPU-b", ""})),
    ]
