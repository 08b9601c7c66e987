"""The comparison of a job's collectives as JSON (docs/schemas/collectives.schema.json). Missing is null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankscope.agent.flight_files import DumpFiles
from rankscope.agent.inspector_files import InspectorFiles
from rankscope.finding import Basis
from rankscope.rules.flight_lateness import Clocks
from rankscope.rules.lateness import Lateness, Ranking
from rankscope.rules.timed import Joined, Process, SlowLink

SCHEMA = "rankscope.collectives/1"
_MAX_NOTES = 50


def timed_document(
    read: InspectorFiles,
    joined: Sequence[Joined],
    processes: Mapping[tuple[str, int], Process],
    ranking: Ranking[Process],
    links: Sequence[SlowLink],
) -> dict[str, Any]:
    """What operations timed by the library say: who came last, and which links are slow."""
    device = all(each.on_device for each in read.operations)
    names = {each.communicator: each.name for each in read.operations}
    partial = sum(not each.whole for each in joined)
    notes = list(read.notes)
    if partial:
        notes.append(f"{partial} collectives were not seen on all of their ranks: nobody is judged by them")
    if not device:
        notes.append("some times are not the device's own (timing source): they hold the host's delays as well")
    return {
        "schema": SCHEMA,
        "summary": _summary(ranking, links, processes, names),
        "source": f"NCCL Inspector {', '.join(read.versions)}",
        "basis": str(Basis.DEVICE_COLLECTIVE if device else Basis.HOST),
        "collectives": {"judged": ranking.meetings, "with_last": ranking.with_last, "partial": partial},
        "late": None if ranking.late is None else _process(ranking.late.who),
        "ranks": [_process(each.who) | _lateness(each) for each in ranking.rows],
        "slow_links": [_link(each, processes, names) for each in links],
        "clock": None,
        "notes": notes[:_MAX_NOTES],
    }


def flight_document(dumps: DumpFiles, clocks: Clocks, ranking: Ranking[int]) -> dict[str, Any]:
    """What flight recorders say: whose host enqueued last."""
    notes = list(dumps.notes)
    late = ranking.late
    if clocks.error_ns is None:
        late = None
        notes.append(
            "the ranks' clocks could not be compared (no ends of common operations): --one-clock where one host ran all"
        )
    notes.append("the order of the hosts: a slow device behind a host that runs ahead does not show in it")
    notes.append("a rank that waits inside sharded or tensor-parallel layers enqueues late for no fault of its own")
    if late is not None:
        often = f"{late.times_last} of {ranking.with_last} collectives that somebody held up"
        summary = f"Rank {late.who} enqueues last in {often}; it costs {_ms(late.held_up_ns)}."
    elif clocks.error_ns is None:
        summary = "Who enqueues last cannot be told: the ranks' clocks could not be compared."
    else:
        summary = f"No rank stands out in {ranking.meetings} collectives."
    return {
        "schema": SCHEMA,
        "summary": summary,
        "source": "flight recorder",
        "basis": str(Basis.HOST),
        "collectives": {"judged": ranking.meetings, "with_last": ranking.with_last, "partial": None},
        "late": None if late is None else _rank(late.who),
        "ranks": [_rank(each.who) | _lateness(each) for each in ranking.rows],
        "slow_links": [],
        "clock": {
            "error_us": None if clocks.error_ns is None else clocks.error_ns / 1e3,
            "offsets_us": {str(rank): offset / 1e3 for rank, offset in sorted(clocks.offsets_ns.items())},
        },
        "notes": notes[:_MAX_NOTES],
    }


def _lateness(each: Lateness[Any]) -> dict[str, Any]:
    return {
        "collectives": each.meetings,
        "times_last": each.times_last,
        "typical_lateness_us": round(each.typical_ns / 1e3, 1),
        "held_up_us": round(each.held_up_ns / 1e3, 1),
        "waited_us": round(each.waited_ns / 1e3, 1),
    }


def _process(who: Process) -> dict[str, Any]:
    return {"rank": who.rank, "host": who.host, "pid": who.pid}


def _rank(rank: int) -> dict[str, Any]:
    return {"rank": rank, "host": None, "pid": None}


def _link(link: SlowLink, processes: Mapping[tuple[str, int], Process], names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "communicator": link.communicator,
        "name": names.get(link.communicator) or None,
        "operation": link.operation,
        "size_bytes": link.size_bytes,
        "ranks": [_process(each) for rank in link.ranks if (each := processes.get((link.communicator, rank)))],
        "bus_gbs": round(link.bus_gbs, 3),
        "usual_gbs": round(link.usual_gbs, 3),
        "against": link.against,
    }


def _summary(
    ranking: Ranking[Process],
    links: Sequence[SlowLink],
    processes: Mapping[tuple[str, int], Process],
    names: Mapping[str, str],
) -> str:
    late = ranking.late
    if late is not None:
        text = (
            f"{str(late.who)[0].upper()}{str(late.who)[1:]} comes last in {late.times_last} of {ranking.with_last} "
            f"collectives that somebody held up; it costs {_ms(late.held_up_ns)}."
        )
    else:
        text = f"No rank stands out in {ranking.meetings} collectives."
    if links:
        link = links[0]
        ranks = [processes.get((link.communicator, rank)) for rank in link.ranks]
        hosts = ", ".join(sorted({each.host for each in ranks if each is not None}))
        name = names.get(link.communicator) or link.communicator
        other = "others of its kind" if link.against == "peers" else "before"
        text += f" {link.operation} in {name} ({hosts}) reaches {link.bus_gbs:.1f} GB/s, {other} {link.usual_gbs:.1f}."
    return text


def _ms(ns: float) -> str:
    return f"{ns / 1e6:.1f} ms"
