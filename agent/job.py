"""One job as the agent keeps it: its ranks, its recording, its export and its live rules."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rankscope.agent.attribution import GpuUse, RankProcess
from rankscope.agent.config import Settings
from rankscope.agent.export import Export, export_targets
from rankscope.agent.exposition import Exposition
from rankscope.agent.fingerprint import HOST_KEY
from rankscope.agent.flight_watch import FlightWatch
from rankscope.agent.hang import HangWatch
from rankscope.agent.hook_budget import HookBudget
from rankscope.agent.inspector_watch import InspectorWatch
from rankscope.agent.live import SMALLEST_SHARE, LiveRules
from rankscope.agent.ranks import Rank, RankWatcher
from rankscope.agent.recording import Recording
from rankscope.agent.recording_file import is_begun
from rankscope.agent.scheduler import Tick
from rankscope.agent.schema import CLOCK_ERROR_KEY
from rankscope.agent.standing import Standing
from rankscope.agent.triggers import HARDWARE_EVENTS
from rankscope.agent.windows import WindowWatch
from rankscope.clock import Clock, ClockAnchor, boot_id
from rankscope.identity import RankIdentity
from rankscope.probes.clock_state import clock_state
from rankscope.probes.host_facts import host_facts
from rankscope.reading import Event, Reading, Severity
from rankscope.records import DeviceRecord, RingRecord, StepRecord

_SECOND_NS = 1_000_000_000
#: A step this many times the rank's usual (p99) asks the probes for more detail.
_SLOW_STEP = 2
#: What the end of a job waits for a round of the live rules that runs: one takes well under a second.
_ROUND_SECONDS = 2.0
#: The first steps of a job are slow by nature.
_USUAL_FROM_STEPS = 32


class WatchedJob:
    """Opens or continues the recording of one job and keeps it until `close`."""

    def __init__(
        self,
        *,
        job: str,
        host: str,
        recording: Path,
        rings: Path,
        settings: Settings,
        clock: Clock,
        environ: Mapping[str, str],
        only_job: str | None = None,
        restart: int = 0,
        containers: Callable[[], Sequence[Path]] = tuple,
        exposition: Exposition | None = None,
    ) -> None:
        """`only_job` leaves rings of other jobs in the same directory alone; `containers` names further directories.

        Raises RecordingError.
        """
        self.name = job
        self._settings = settings
        self._clock = clock
        if is_begun(recording):
            self.recording = Recording.open(recording, clock=clock)
        else:
            self.recording = Recording.create(
                recording,
                job=job,
                host=host,
                max_bytes=settings.recording.max_bytes,
                reserve_bytes=settings.export.outbox_max_bytes,
                clock=clock,
            )
        self.recording.set_meta("boot_id", boot_id())
        self._set_clock()
        self.recording.set_meta(
            HOST_KEY, json.dumps(host_facts(proc=Path(settings.roots.proc), sys=Path(settings.roots.sys)))
        )
        targets = export_targets(settings.export, environ)
        self._export: Export | None = None
        if targets:
            self._export = Export(
                self.recording, targets, job=job, host=host, settings=settings.export, environ=environ, clock=clock
            )
        self._exposition = exposition
        self._shown = None if exposition is None else exposition.job(job, host)
        # root reads every user's ring; anybody else only his own.
        owners = frozenset({os.getuid()}) if os.getuid() else None
        self.watcher = RankWatcher(
            rings,
            self.recording,
            clock=clock,
            owners=owners,
            job=only_job,
            heard=self._heard,
            also=containers,
        )
        self._hang = HangWatch(settings.hang, clock)
        self._hooks = HookBudget(settings.budget.hook_ratio, clock)
        self._windows = WindowWatch(settings.windows, clock)
        self._inspector = InspectorWatch(clock, anchor=self._anchor)
        self._flight = FlightWatch(clock, anchor=self._anchor)
        self._live = LiveRules(recording, settings.rules, clock)
        self._standing = Standing(int(settings.export.period_seconds * 1e9))
        self._rules_trouble = ""
        self._gpus: list[str] = []
        self._commit_due_ns = self._scan_due_ns = self._hang_due_ns = 0
        self._uses = GpuUse(job)
        #: Ranks that took a step far slower than usual since the last look.
        self._slow: dict[int, RankIdentity] = {}
        pid = os.getpid()
        text = f"agent {pid} records" + (f" (restart {restart})" if restart else "")
        if self._export is not None:
            self._add_events(self._export.begun)
        self._add_events(
            [Event("agent-started", clock.monotonic_ns(), text, attributes={"pid": pid, "restart": restart})]
        )

    def _heard(self, identity: RankIdentity, records: list[RingRecord]) -> None:
        if self._export is not None:
            self._export.add_records(identity, records)
        if self._shown is not None:
            self._shown.add_records(identity, records)
        rank = next(rank for rank in self.watcher.ranks if rank.identity is identity)
        usual = rank.usual_step_ns() if len(rank.steps_ns) >= _USUAL_FROM_STEPS else None
        for record in records:
            if isinstance(record, StepRecord | DeviceRecord):
                self._inspector.heard(rank.row, record)
            if isinstance(record, StepRecord):
                self._flight.heard(rank.row, record)
                if usual and record.end_ns - record.start_ns > _SLOW_STEP * usual:
                    self._slow[identity.rank] = identity
                    self._windows.suspect(identity.rank)
                    self._flight.slow()

    def slow_ranks(self) -> list[RankIdentity]:
        """Ranks that took a step far slower than usual since the last call."""
        slow, self._slow = list(self._slow.values()), {}
        return slow

    def add(self, tick: Tick, now_ns: int) -> None:
        """Record what the probes said."""
        self.recording.add_readings(tick.readings)
        for probe, group, device, outcome, reason in tick.outcomes:
            self.recording.set_outcome(probe, group, device, now_ns, outcome, reason)
        if self._export is not None:
            self._export.add(readings=tick.readings)
        if self._shown is not None:
            self._shown.add(tick.readings)
        self._add_events(tick.events)
        self._add_events(self._uses.take(tick.readings, tick.events, self._rank_processes(), now_ns))
        if any(event.kind in HARDWARE_EVENTS and not event.attributes.get("history") for event in tick.events):
            # The rules read the recording: what they are called for has to be in it.
            self.commit()
            self._live.hurry()

    def _rank_processes(self) -> Iterator[RankProcess]:
        for rank in self.watcher.ranks:
            if not rank.gone and not rank.hidden:
                yield RankProcess(rank.identity.job, rank.identity.rank, rank.handle.pid, rank.identity.gpu_uuid)

    def add_readings(self, readings: list[Reading]) -> None:
        """Record readings of the agent itself."""
        if not readings:
            return
        self.recording.add_readings(readings)
        if self._export is not None:
            self._export.add(readings=readings)
        if self._shown is not None:
            self._shown.add(readings)

    def add_events(self, events: list[Event]) -> None:
        """Record events of the agent itself."""
        self._add_events(events)

    def _add_events(self, events: list[Event]) -> None:
        if not events:
            return
        self._standing.count(events)
        self.recording.add_events(events)
        if self._export is not None:
            self._export.add(events=events)

    def poll(self) -> None:
        """Read every ring; look for new ones, for hangs and for findings where it is time to; commit."""
        now = self._clock.monotonic_ns()
        self._look_at_clocks()
        if now >= self._scan_due_ns:
            # A rank's first seconds are in its ring: a moment until it is found loses nothing.
            self._scan_due_ns = now + _SECOND_NS // 2
            self._add_events(self.watcher.scan())
        said = self.watcher.poll()
        self._add_events(said)
        for event in said:
            if event.kind == "profiler-window" and isinstance(cost_ns := event.attributes["cost_ns"], int):
                self._windows.recorded(cost_ns)
        if now >= self._hang_due_ns or self._hang.waiting:
            self._hang_due_ns = now + min(_SECOND_NS, int(self._settings.hang.floor_seconds * _SECOND_NS / 4))
            self._add_events(self._hang.check(self.watcher.ranks))
            self._add_events(self._hooks.check(self.watcher.ranks))
            self._add_events(self._windows.check(self.watcher.ranks))
            self._take_timed()
        self._take_findings(now)
        # Of the rounds the nearest: the next may be a whole one too late, where this is a moment early.
        if now + int(self._settings.rings.poll_seconds * _SECOND_NS) // 2 >= self._commit_due_ns:
            self._commit_due_ns = now + int(self._settings.recording.commit_seconds * _SECOND_NS)
            self.commit()

    def _anchor(self) -> ClockAnchor:
        return self.recording.anchor

    def _look_at_clocks(self) -> None:
        parted = self.recording.look_at_clocks()
        if parted is not None:
            if self._export is not None:
                self._export.take_anchor()
            self._add_events([parted])

    def _take_timed(self, *, final: bool = False) -> None:
        """Record what the communication library timed, and what flight recorders told."""
        timed, events = self._inspector.check(self.watcher.ranks, final=final)
        for rank, records in timed:
            self.recording.add_records(rank.row, records, rank.reader.position)
        for rank, enqueued in self._flight.check(self.watcher.ranks):
            self.recording.add_records(rank.row, enqueued, rank.reader.position)
        self._add_events(events)

    @property
    def hurrying(self) -> bool:
        """Whether a round of the rules runs that could not wait for its turn."""
        return self._live.hurried

    def look(self) -> None:
        """Take what such a round found, once it has, and write it."""
        now = self._clock.monotonic_ns()
        self._take_findings(now)
        if now >= self._commit_due_ns:
            self._commit_due_ns = now + int(self._settings.recording.commit_seconds * _SECOND_NS)
            self.commit()

    def _take_findings(self, now: int) -> None:
        findings = self._live.poll()
        self._standing.hold(self._live.holding)
        self.add_readings(self._standing.readings(now))
        if findings:
            self._commit_due_ns = now
            self.recording.add_findings(findings, now)
            if self._export is not None:
                self._export.add(findings=findings)
        if self._live.trouble != self._rules_trouble:
            self._rules_trouble = self._live.trouble
            if self._rules_trouble:
                attributes: dict[str, str | int | float | None] = {"probe": "rules", "outcome": "failed"}
                text = f"the live rules failed: {self._rules_trouble}"
                self._add_events([Event("probe-failed", now, text, Severity.WARNING, attributes=attributes)])

    def ended(self, ranks: list[Rank]) -> None:
        """These ranks' processes have ended, in this order."""
        self._add_events(self.watcher.ended(ranks))
        self.commit()

    def commit(self, *, final: bool = False) -> bool:
        """Write everything in one transaction, with the export batch where one is due."""
        if self._export is None:
            return self.recording.commit(final=final)
        export = self._export
        export.prepare(final=final)
        dropped: list[Event] = []
        done = self.recording.commit(lambda: dropped.extend(export.write()), final=final)
        self._add_events(export.written(done))
        if done:
            self._add_events(dropped)
        return done

    def rules_cpu_ns(self) -> int:
        """CPU time that the live rules have taken since the last call."""
        taken, self._live.cpu_ns = self._live.cpu_ns, 0
        return taken

    def set_rules_share(self, ratio: float) -> None:
        """Say how much of a core the live rules may take."""
        self._live.share = min(self._settings.rules.cpu_ratio, max(SMALLEST_SHARE, ratio))

    def set_gpus(self, uuids: Sequence[str]) -> None:
        """Say which GPUs this host has, by index."""
        if uuids and list(uuids) != self._gpus:
            self._gpus = list(uuids)
            self.recording.set_meta("gpus", json.dumps(self._gpus))

    def set_cost(self, cpu_ratio: float, pss_bytes: int | None) -> None:
        """Say what watching costs."""
        self.recording.set_meta("agent_cpu_ratio", cpu_ratio)
        if pss_bytes is not None:
            self.recording.set_meta("agent_pss_bytes", pss_bytes)

    def _set_clock(self) -> None:
        """Say how well this host's wall clock is disciplined."""
        state = clock_state()
        error_ns = state.max_error_ns if state is not None and state.synchronised else None
        self.recording.set_meta(CLOCK_ERROR_KEY, error_ns)

    def thin(self) -> None:
        """Hold the recording's size."""
        self.recording.thin(self._settings.recording.max_bytes)

    @property
    def over(self) -> bool:
        """Whether every rank that was seen has ended."""
        return bool(self.watcher.ranks) and all(rank.gone for rank in self.watcher.ranks)

    def close(self, reason: str) -> None:
        """Read what is left, write it, let the outbox drain and leave one file."""
        if self._exposition is not None:
            self._exposition.drop(self.name)
        self._windows.close()
        self._live.close(_ROUND_SECONDS)
        self._take_findings(self._clock.monotonic_ns())
        self._add_events(self.watcher.scan())
        self._add_events(self.watcher.poll(look=True))
        self._take_timed(final=True)
        self._set_clock()
        self._add_events(self._inspector.close())
        now = self._clock.monotonic_ns()
        self._add_events([Event("agent-stopped", now, f"agent {os.getpid()}: {reason}", attributes={"reason": reason})])
        self.commit(final=True)
        if self._export is not None:
            drained = self._export.stop(self._settings.export.drain_seconds)
            self.recording.set_meta("outbox_drained", int(drained))
            self.commit()
        self.watcher.close()
        self.recording.close()
