"""From what the agent sees to the outbox: encoded every period, committed with the rows that it reports."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from rankscope.agent.config import ExportSettings
from rankscope.agent.counted import META_KEY, Counted, uncounted
from rankscope.agent.plausible import event_of, plausible
from rankscope.agent.recording import Recording
from rankscope.clock import Clock
from rankscope.finding import Finding
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Reading, Severity
from rankscope.records import RingRecord

if TYPE_CHECKING:
    from rankscope.exporters.otlp_common import EncodedBatch
    from rankscope.exporters.otlp_settings import Target
    from rankscope.exporters.outbox import Signal

#: An agent that takes over exports again what its predecessor may not have: readings arrive this late at most.
_OVERLAP_NS = 10_000_000_000
#: Readings and encoded bytes that wait in memory where the file cannot be written.
_MAX_WAITING_READINGS = 200_000
#: The slowest series are exported in every fourth interval.
_FILTER_INTERVALS = 4
_MAX_WAITING_BYTES = 16_000_000
#: What reading a damaged recording raises.
_DAMAGE = (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def export_targets(settings: ExportSettings, environ: Mapping[str, str]) -> dict[Signal, Target]:
    """The receivers, {} where none is named. Raises ConfigurationError."""
    explicit = {"endpoint": settings.endpoint, "protocol": settings.protocol}
    if not any(explicit.values()) and not any(name.startswith("OTEL_EXPORTER_OTLP") for name in environ):
        return {}
    from rankscope.exporters.otlp_settings import otlp_targets
    from rankscope.exporters.outbox import Signal

    signals = [signal for signal in Signal if settings.traces or signal is not Signal.TRACES]
    return otlp_targets(environ, signals, **explicit)


def check_export(settings: ExportSettings, environ: Mapping[str, str]) -> None:
    """Whether what is said of the export can be used, before anything begins; raises ConfigurationError."""
    targets = export_targets(settings, environ)
    if not targets:
        return
    from rankscope.exporters.otlp_settings import resource_attributes
    from rankscope.exporters.otlp_transport import check_target

    resource_attributes(environ)
    for target in targets.values():
        check_target(target)


class Export:
    """One job's export on one host. Its thread sends; everything else happens in the agent's thread."""

    def __init__(
        self,
        recording: Recording,
        targets: Mapping[Signal, Target],
        *,
        job: str,
        host: str,
        settings: ExportSettings,
        environ: Mapping[str, str],
        clock: Clock,
    ) -> None:
        from rankscope.exporters.export_levels import ExportFilter, Level, level_named
        from rankscope.exporters.otlp_encode import OtlpEncoder
        from rankscope.exporters.otlp_exporter import Exporter
        from rankscope.exporters.otlp_settings import resource_attributes
        from rankscope.exporters.outbox import Outbox

        level = level_named(settings.level)
        self._delta = settings.temporality == "delta"
        self._encoder = OtlpEncoder(
            job=job,
            host=host,
            # The recording's own: a replay, or an agent that takes over, has to give each reading the very same time.
            anchor=recording.anchor,
            resource_attributes=resource_attributes(environ),
            delta=self._delta,
            per_rank=level >= Level.RANK,
            traces=settings.traces,
        )
        self._filter = ExportFilter(level, settings.interval_seconds)
        #: Whether something goes out that cannot wait, with the newest reading of every series.
        self._urgent = False
        self._series_said = False
        self._outbox = Outbox(recording.connection, quota_bytes=settings.outbox_max_bytes)
        self._exporter = Exporter(recording.path, targets, clock=clock)
        self._recording = recording
        self._clock = clock
        self._period_ns = int(settings.period_seconds * 1e9)
        self._interval_ns = int(settings.interval_seconds * 1e9)
        self._due_ns = clock.monotonic_ns() + self._period_ns
        self._readings: list[Reading] = []
        self._events: list[Event] = []
        self._findings: list[Finding] = []
        self._batches: list[EncodedBatch] = []
        #: Points given up while nothing could be written.
        self._unsaid_points = 0
        self._counted = Counted()
        #: What was found as it began, for whoever records it.
        self.begun: list[Event] = []
        self._begin()
        self._exporter.start()

    def _begin(self) -> None:
        """Go on where an agent before this one ended; of what a disk changed since, say that it is given up."""
        now = self._clock.monotonic_ns()
        try:
            waiting = self._outbox.begin_anew_if_damaged()
            if waiting is not None:
                attributes: dict[str, str | int | float | None] = {"batches": waiting}
                text = f"the outbox was damaged, and {waiting} batches in it are given up"
                self.begun.append(Event("export-dropped", now, text, Severity.WARNING, attributes=attributes))
            self._catch_up()
        except _DAMAGE as error:
            text = f"what was recorded before and not exported is given up: it is damaged ({error})"
            self._readings = []
            self._events = []
            self.begun.append(Event("export-dropped", now, text, Severity.WARNING))

    def _catch_up(self) -> None:
        """Take up what an agent before this one recorded and did not live to export."""
        row = self._recording.connection.execute("SELECT value FROM meta WHERE key = 'exported_ns'").fetchone()
        if row is None:
            return
        execute = self._recording.connection.execute
        since_ns = row[0]
        # The filter goes by the same intervals as its predecessor's, and deltas begin where those ended.
        before_ns = since_ns + _OVERLAP_NS if self._delta else since_ns
        begin_ns = min(since_ns, before_ns - _FILTER_INTERVALS * self._interval_ns)
        names = ("metric", "value", "time_ns", "device")
        rows = execute(
            f"SELECT {', '.join(names)} FROM readings JOIN series ON series.id = series_id WHERE time_ns > ? "
            "ORDER BY time_ns",
            (begin_ns,),
        ).fetchall()
        recorded = [Reading(*fields) for fields in plausible(names, rows)]
        before = self._filter.take(reading for reading in recorded if reading.time_ns <= before_ns)
        self._encoder.begin_after(before) if self._delta else deque(before, maxlen=0)
        self._readings += self._filter.take(reading for reading in recorded if reading.time_ns > before_ns)
        query = "SELECT kind, time_ns, text, severity, device, rank, attributes FROM events WHERE time_ns > ?"
        events = (event_of(fields, "", 0) for fields in execute(query, row))
        self._events += (event for event in events if event is not None)
        for identity, records in uncounted(self._recording.connection):
            self.add_records(identity, records)

    def take_anchor(self) -> None:
        """The recording has another clock anchor: what is not encoded yet is dated by it."""
        self._batches += self._encoder.set_anchor(self._recording.anchor)
        self._recording.set_meta(META_KEY, self._counted.document())

    def add(
        self, readings: Iterable[Reading] = (), events: Iterable[Event] = (), findings: Iterable[Finding] = ()
    ) -> None:
        """Take what goes out with the next batch; a critical event or a finding hastens it."""
        self._readings += self._filter.take(readings)
        events, findings = list(events), list(findings)
        self._events += events
        self._findings += findings
        if findings or any(event.severity is Severity.CRITICAL for event in events):
            self._due_ns = 0
            self._urgent = True

    def add_records(self, identity: RankIdentity, records: list[RingRecord]) -> None:
        """Count a rank's steps."""
        self._encoder.add_records(identity, records)
        self._counted.note(identity, records)

    def prepare(self, *, final: bool = False) -> None:
        """Encode what is there, where it is time to."""
        now = self._clock.monotonic_ns()
        if now < self._due_ns and not final:
            return
        self._due_ns = now + self._period_ns
        # A successor could not know of deltas that were cut at no interval.
        if final or (self._urgent and not self._delta):
            self._readings += self._filter.flush()
        self._urgent = False
        if self._filter.left_out and not self._series_said:
            self._series_said = True
            self._events.append(_too_many(now, self._filter.series))
        self._batches += self._encoder.due(self._readings, self._events, self._findings, now)
        self._readings, self._events, self._findings = [], [], []
        self._recording.set_meta("exported_ns", now - _OVERLAP_NS)
        self._recording.set_meta(META_KEY, self._counted.document())

    def write(self) -> list[Event]:
        """Put the batches into the outbox, inside the recording's transaction; returns what it had to drop."""
        created = self._recording.anchor.to_wall_ns(self._clock.monotonic_ns())
        for batch in self._batches:
            self._outbox.add(batch.signal, batch.payload, batch.points, created)
        return [drop.event(self._clock.monotonic_ns()) for drop in self._outbox.take_drops()]

    def written(self, done: bool) -> list[Event]:
        """The transaction was committed, or was not: then the batches wait, as long as there is memory for them."""
        if done:
            if self._batches:
                self._exporter.wake()
            self._batches = []
            points, self._unsaid_points = self._unsaid_points, 0
            return [self._not_exported(points)] if points else []
        points = 0
        while self._batches and sum(len(batch.payload) for batch in self._batches) > _MAX_WAITING_BYTES:
            points += self._batches.pop(0).points
        surplus = max(0, len(self._readings) - _MAX_WAITING_READINGS)
        del self._readings[:surplus]
        # Said once there is room: an event each time would itself have to wait.
        self._unsaid_points += points + surplus
        return []

    def _not_exported(self, points: int) -> Event:
        text = f"{points} points were not exported: the outbox could not be written"
        attributes: dict[str, str | int | float | None] = {"points": points}
        return Event("export-dropped", self._clock.monotonic_ns(), text, Severity.WARNING, attributes=attributes)

    def stop(self, seconds: float) -> bool:
        """Send what waits, for at most that long. False where something stays in the outbox."""
        return self._exporter.stop(seconds)

    def balance(self) -> dict[str, object]:
        """The outbox's accounts, for the end of the run."""
        return asdict(self._outbox.balance())


def _too_many(now_ns: int, series: int) -> Event:
    text = f"this host has more than {series} series: readings of further ones are recorded and not exported"
    attributes: dict[str, str | int | float | None] = {"series": series}
    return Event("export-dropped", now_ns, text, Severity.WARNING, attributes=attributes)
