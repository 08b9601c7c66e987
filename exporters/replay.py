"""Sending a recording again: its window encoded as the agent would have, and delivered through an outbox in memory.

Every reading and event goes out with the time it had, so a store that has it already sees nothing new. The histograms
of steps are cumulative from the begin of the window and are cut every CHUNK_NS of the job's own time.
"""

from __future__ import annotations

import heapq
import logging
import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter

from rankscope.clock import Clock, ClockAnchor, SystemClock
from rankscope.errors import ExportError
from rankscope.exporters.otlp_common import EncodedBatch
from rankscope.exporters.otlp_encode import OtlpEncoder
from rankscope.exporters.otlp_send import Backoff, DeliveryState, SignalSender
from rankscope.exporters.otlp_settings import Target
from rankscope.exporters.otlp_transport import check_target, open_transport
from rankscope.exporters.outbox import Balance, Outbox, Signal
from rankscope.finding import Finding
from rankscope.identity import RankIdentity
from rankscope.reading import Reading
from rankscope.records import DeviceRecord, GroupRecord, PhaseRecord, RingRecord, StepRecord, field_names
from rankscope.window import Columns, RankWindow, Series, SeriesKey, Window

_GROUP_FIELDS = tuple(name for name in field_names(GroupRecord) if name not in ("group", "members"))

#: The agent's own default between two exports.
CHUNK_NS = 15_000_000_000
_SECOND_NS = 1_000_000_000
_log = logging.getLogger("rankscope.export")


def replay(
    window: Window,
    targets: Mapping[Signal, Target],
    *,
    findings: Iterable[Finding] = (),
    give_up_s: float = 60.0,
    resource_attributes: Iterable[tuple[str, str]] = (),
    clock: Clock | None = None,
    pause: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = _log.info,
) -> Balance:
    """Send all of `window`, and `findings`; returns the accounts, in which nothing waits.

    What a receiver refuses is in the accounts with the reason. Raises ExportError where a receiver takes nothing for
    `give_up_s`, ConfigurationError for certificates or a proxy that cannot be used.
    """
    for target in targets.values():
        check_target(target)
    clock = clock or SystemClock()
    connection = sqlite3.connect(":memory:", isolation_level=None)
    outbox = Outbox(connection)
    senders = {
        signal: SignalSender(
            outbox, target, open_transport, clock=clock, uniform=random.uniform, say=say, backoff=Backoff(most_s=5.0)
        )
        for signal, target in targets.items()
    }
    try:
        for batch in encode_window(window, findings, tuple(resource_attributes)):
            if batch.signal in senders:
                outbox.add(batch.signal, batch.payload, batch.points, clock.wall_ns())
                _deliver(senders[batch.signal], clock, pause, give_up_s)
        return outbox.balance()
    finally:
        for sender in senders.values():
            sender.close()
        connection.close()


def _deliver(sender: SignalSender, clock: Clock, pause: Callable[[float], None], give_up_s: float) -> None:
    """Until the one batch that waits is gone, one way or the other."""
    until_ns = clock.monotonic_ns() + int(give_up_s * _SECOND_NS)
    while (wait_ns := sender.step(now=True)) and sender.status.state is DeliveryState.WAITING:
        if clock.monotonic_ns() + wait_ns > until_ns:
            raise ExportError(
                f"not delivered for {give_up_s:g} s ({sender.status.detail})",
                where=sender.status.target,
                todo="replay again when the receiver takes data: what it has already is sent with the same times",
            )
        pause(wait_ns / _SECOND_NS)


def encode_window(
    window: Window, findings: Iterable[Finding] = (), resource_attributes: Iterable[tuple[str, str]] = ()
) -> Iterator[EncodedBatch]:
    """Every batch of a window, host by host; what names no host goes with the first."""
    extra = tuple(resource_attributes)
    found = tuple(findings)
    first = next(iter(window.anchors), "")

    def at(named: str | None) -> str:
        return named if named in window.anchors and named is not None else first

    for host, anchor in window.anchors.items():
        began = replace(anchor, later=())
        encoder = OtlpEncoder(job=window.job, host=host, anchor=began, resource_attributes=extra)
        yield from _in_chunks(encoder, records_of(window, host), readings_of(window, host), window.end_ns, anchor)
        yield from encoder.events(event for event in window.events if at(event.host) == host)
        yield from encoder.findings((each for each in found if at(each.where.host) == host), window.end_ns)


def records_of(window: Window, host: str) -> Iterator[tuple[int, RankIdentity, RingRecord]]:
    """(time of its end, rank, record) of every record of a host's ranks, by time."""
    ranks = [rank for rank in window.ranks.values() if rank.identity.host == host]
    return heapq.merge(*(_records(rank) for rank in ranks), key=lambda timed: timed[0])


def readings_of(window: Window, host: str) -> Iterator[Reading]:
    """Every reading of a host, by time."""
    of_host = (_readings(key, series) for key, series in window.series.items() if key.host == host)
    return heapq.merge(*of_host, key=attrgetter("time_ns"))


def _in_chunks(
    encoder: OtlpEncoder,
    records: Iterator[tuple[int, RankIdentity, RingRecord]],
    readings: Iterator[Reading],
    end_ns: int,
    anchor: ClockAnchor,
) -> Iterator[EncodedBatch]:
    """Readings as they come; the histograms each time the records have moved on by a chunk, and at the end.

    Where the clocks parted, what comes later is by the anchor that held then, as the agent had it.
    """
    until_ns: int | None = None
    passed = 0
    for time_ns, identity, record in records:
        while passed < len(anchor.later) and time_ns >= anchor.later[passed].monotonic_ns:
            passed += 1
            yield from encoder.set_anchor(replace(anchor, later=anchor.later[:passed]))
        if until_ns is None:
            until_ns = time_ns + CHUNK_NS
        if time_ns > until_ns:
            yield from encoder.steps(until_ns)
            until_ns += (time_ns - until_ns) // CHUNK_NS * CHUNK_NS + CHUNK_NS
        encoder.add_records(identity, (record,))
    if passed < len(anchor.later):
        yield from encoder.set_anchor(anchor)
    yield from encoder.steps(max(end_ns, until_ns - CHUNK_NS) if until_ns is not None else end_ns)
    yield from encoder.iterate_readings(readings)


def _readings(key: SeriesKey, series: Series) -> Iterator[Reading]:
    for time_ns, value in zip(series.times_ns, series.values, strict=True):
        yield Reading(key.metric, value, time_ns, key.device)


def _records(rank: RankWindow) -> Iterator[tuple[int, RankIdentity, RingRecord]]:
    """(time of its end, rank, record) of all of a rank, by time; records without a time have that of their step."""
    ends: dict[int, int] = {}
    timed: list[tuple[int, RankIdentity, RingRecord]] = []
    identity = rank.identity
    for values in _rows(rank.steps, field_names(StepRecord)):
        step = StepRecord(**values)  # type: ignore[arg-type]  # None only where the record allows it
        ends[step.step] = step.end_ns
        timed.append((step.end_ns, identity, step))
    last_ns = max(ends.values(), default=0)
    for values in _rows(rank.device, field_names(DeviceRecord)):
        device = DeviceRecord(**values)  # type: ignore[arg-type]
        timed.append((ends.get(device.step, last_ns), identity, device))
    for name, columns in rank.groups.items():
        for values in _rows(columns, _GROUP_FIELDS):
            group = GroupRecord(**values, group=name, members=rank.members.get(name, ""))  # type: ignore[arg-type]
            timed.append((ends.get(group.step, last_ns), identity, group))
    for name, columns in rank.phases.items():
        for values in _rows(columns, ("step", "start_ns", "end_ns")):
            phase = PhaseRecord(**values, name=name)  # type: ignore[arg-type]
            timed.append((phase.end_ns, identity, phase))
    timed.sort(key=lambda each: each[0])
    return iter(timed)


def _rows(columns: Columns, names: tuple[str, ...]) -> Iterator[dict[str, int | None]]:
    """The rows as the records' fields: integers, None for what is missing, a whole column included."""
    absent = dict.fromkeys(name for name in names if name not in columns.columns)
    present = [(name, columns.columns[name]) for name in names if name in columns.columns]
    for index in range(len(columns)):
        yield absent | {name: None if math.isnan(column[index]) else int(column[index]) for name, column in present}
