"""Findings that hold and events that happened, as series with bounded labels."""

from __future__ import annotations

import sample_window

from rankscope.agent.standing import MAX_EVENTS, PERIOD_NS, Standing
from rankscope.exporters.otlp_metrics import series_attributes
from rankscope.reading import Event, Reading


def said(standing: Standing, now_ns: int) -> dict[str, list[Reading]]:
    """Readings by metric."""
    found: dict[str, list[Reading]] = {}
    for reading in standing.readings(now_ns):
        found.setdefault(reading.metric, []).append(reading)
    return found


def test_a_finding_is_said_while_it_holds() -> None:
    """Once a period, with class, side, advice, rank and GPU as attributes; no more once it is gone."""
    _, verdict = sample_window.thermal()
    standing = Standing()
    standing.hold(verdict.findings)
    first = said(standing, 0)
    assert [reading.value for reading in first["finding.confidence"]] == [f.confidence for f in verdict.findings]
    finding = verdict.findings[0]
    assert series_attributes("finding.confidence", first["finding.confidence"][0].device) == {
        "rankscope.class": finding.class_slug,
        "rankscope.side": "hardware",
        "rankscope.advice": str(finding.advice),
        "rankscope.rank": str(finding.where.rank),
        "hw.id": finding.where.gpu_uuid,
    }
    assert first["finding.ms_per_step"][0].value == finding.impact.ms_per_step
    assert said(standing, PERIOD_NS - 1) == {}
    standing.hold(())
    assert said(standing, PERIOD_NS) == {}


def test_events_are_counted_by_kind_and_xids_by_number_and_gpu() -> None:
    """A counter a kind; a storm of devices ends in one series for the rest."""
    standing = Standing()
    gpu = "GPU-00000000-0000-4000-8000-000000000000"
    standing.count([Event("xid", 1, "x", device=gpu, attributes={"number": 79}), Event("burst", 1, "b", device="sda")])
    standing.count([Event("xid", 2, "x", device=gpu, attributes={"number": 79})])
    counts = {reading.device: reading.value for reading in said(standing, 0)["event.count"]}
    assert counts == {f"xid|79|{gpu}": 2.0, "burst||": 1.0}
    assert series_attributes("event.count", f"xid|79|{gpu}") == {
        "rankscope.event.kind": "xid",
        "rankscope.xid": "79",
        "hw.id": gpu,
    }
    standing.count([Event("xid", 3, "x", attributes={"number": number}) for number in range(1000)])
    counts = {reading.device: reading.value for reading in said(standing, PERIOD_NS)["event.count"]}
    assert len(counts) == MAX_EVENTS + 1
    assert sum(counts.values()) == 1003


def test_how_ranks_end_is_counted_by_rank() -> None:
    """A rank that hangs, fails or ends is a series of its own; what else is told of a rank is not."""
    standing = Standing()
    kinds = ("rank-hung", "rank-exception", "rank-exited", "rank-attached")
    standing.count(Event(kind, 1, "x", rank=rank) for kind in kinds for rank in (0, 3))
    counts = {reading.device: reading.value for reading in said(standing, 0)["event.count"]}
    assert counts == {f"{kind}|||{rank}": 1.0 for kind in kinds[:3] for rank in (0, 3)} | {"rank-attached||": 2.0}
    assert series_attributes("event.count", "rank-hung|||3") == {
        "rankscope.event.kind": "rank-hung",
        "rankscope.rank": "3",
    }


def test_an_xid_of_two_sources_counts_once() -> None:
    """The driver's library and the kernel log tell of the same errors; what one of them missed is not lost."""
    standing = Standing()
    gpu = "GPU-00000000-0000-4000-8000-000000000000"
    for source in ("nvml", "kernel-log", "kernel-log"):
        standing.count([Event("xid", 1, "x", device=gpu, attributes={"number": 48, "source": source})])
    assert [reading.value for reading in said(standing, 0)["event.count"]][-1] == 2.0


def test_a_counter_begins_at_zero() -> None:
    """A store that knows only the value after the first event sees no rise: zero comes before it, once."""
    standing = Standing()
    standing.count([Event("xid", 1, "x", attributes={"number": 79})])
    first = said(standing, 5 * PERIOD_NS)["event.count"]
    assert [(reading.time_ns, reading.value) for reading in first] == [(4 * PERIOD_NS, 0.0), (5 * PERIOD_NS, 1.0)]
    assert [reading.value for reading in said(standing, 6 * PERIOD_NS)["event.count"]] == [1.0]


def test_what_was_before_the_agent_is_not_counted() -> None:
    """An old Xid that the kernel log still holds is no new one: it would page again with every job that begins."""
    standing = Standing()
    standing.count([Event("xid", 1, "x", attributes={"number": 79, "source": "kernel-log", "history": 1})])
    assert said(standing, 0) == {}
