"""The ranks of one job: finds their rings, reads them, and tells when a rank attached, spoke, or died."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankscope.agent.directories import ChangedDirectories
from rankscope.agent.fingerprint import RANK_KEY, read_facts
from rankscope.agent.last_words import ProcessTraces, left_behind
from rankscope.agent.places import Place, find_process, place_of, sees_every_process
from rankscope.agent.processes import ProcessHandle, ProcessStat, signal_name
from rankscope.agent.recording import Recording
from rankscope.clock import Clock
from rankscope.errors import RingError
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Severity
from rankscope.records import MarkKind, MarkRecord, Phase, RingRecord, StepRecord
from rankscope.redact import without_secrets
from rankscope.ring import SUFFIX, RankStatus, RingReader

#: Steps whose durations say what is usual for a rank.
_USUAL_STEPS = 256
_USUAL_EVERY_STEPS = 8
#: A rank whose process is not seen, and that did not say goodbye, counts as gone after so long without a word.
_HIDDEN_SILENCE_NS = 3600 * 10**9
#: Ranks that ended and are kept in mind, their rings with them: more than a host's worth, so that of a restart both
#: lives are there to be compared. A job that restarts for days must fill neither the agent nor the host's memory.
MAX_GONE = 32


@dataclass(slots=True)
class Rank:
    """One training process as the agent follows it."""

    identity: RankIdentity
    reader: RingReader
    row: int
    handle: ProcessHandle
    attached_ns: int
    traces: ProcessTraces
    status: RankStatus | None = None
    last_step: int | None = None
    #: Durations of its latest steps without checkpoint and evaluation.
    steps_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_USUAL_STEPS))
    #: Steps so far, and after how many of them the usual was last worked out, with what it was.
    steps_seen: int = 0
    usual: tuple[int, int] | None = None
    #: Share of each of these steps that the hooks took.
    hook_shares: deque[float] = field(default_factory=lambda: deque(maxlen=_USUAL_STEPS))
    #: Longest checkpoint and evaluation in one step so far.
    longest_ns: dict[Phase, int] = field(default_factory=dict)
    #: Signal on which it writes its stacks, as it announced.
    stack_signal: str = ""
    #: Its flight recorder can be asked for, over a socket beside its ring.
    tells_flight: bool = False
    #: It ended or detached by itself, or its hooks gave up: silence means nothing any more.
    said_goodbye: bool = False
    failed: bool = False
    gone: bool = False
    #: It lives where this agent sees no processes: only its ring tells of it.
    hidden: bool = False
    heard_ns: int = 0

    @property
    def stacks_path(self) -> Path:
        """Where it writes its stacks."""
        return self.reader.path.with_name(f"{self.reader.path.name}.stacks")

    def leave(self) -> None:
        """It has ended: give back what only a living rank needs."""
        self.gone = True
        self.handle.close()
        self.reader.close()
        self.steps_ns.clear()
        self.hook_shares.clear()

    def usual_step_ns(self) -> int | None:
        """99th percentile of its steps so far; the first, which starts loaders and compiles, only while it is alone.

        Asked for with every step: of many steps it is worked out anew every few.
        """
        if not self.steps_ns:
            return None
        if self.usual is None or self.steps_seen - self.usual[0] >= min(len(self.steps_ns) // 8, _USUAL_EVERY_STEPS):
            ordered = sorted(list(self.steps_ns)[1:] or self.steps_ns)
            self.usual = self.steps_seen, ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        return self.usual[1]


class RankWatcher:
    """Follows every ring of one job in one directory and writes what they say into the recording."""

    def __init__(
        self,
        directory: Path,
        recording: Recording,
        *,
        clock: Clock,
        owners: frozenset[int] | None,
        job: str | None = None,
        heard: Callable[[RankIdentity, list[RingRecord]], None] | None = None,
        also: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        """`owners` limits whose rings are read, `job` whose ranks (None: all); `heard` gets every record too.

        `also` names further directories, those of containers.
        """
        self.ranks: list[Rank] = []
        self._directory = directory
        self._recording = recording
        self._clock = clock
        self._owners = owners
        self._job = job
        self._heard = heard
        self._also = also
        #: Ring files known in each directory, good or refused, by name: inode, so that a file that was replaced is
        #: looked at again.
        self._known: dict[Path, dict[str, int]] = {}
        self._directories = ChangedDirectories()

    def scan(self) -> list[Event]:
        """Look for rings that are new."""
        self._forget()
        events: list[Event] = []
        for directory in (self._directory, *self._also()):
            try:
                if not self._directories.changed(directory):
                    continue
                entries = [entry for entry in os.scandir(directory) if entry.name.endswith(SUFFIX)]
            except OSError:
                # The directory comes with the first ring.
                continue
            known = self._known.setdefault(directory, {})
            for entry in sorted(entries, key=lambda entry: entry.name):
                events += self._look(entry, known)
            if len(known) > len(entries):
                self._known[directory] = {entry.name: known[entry.name] for entry in entries if entry.name in known}
        return events

    def _forget(self) -> None:
        """Let go of the ranks that ended longest ago, and of their files once all they held is recorded."""
        gone = [rank for rank in self.ranks if rank.gone]
        forgotten = [rank for rank in gone[: max(0, len(gone) - MAX_GONE)] if self._recording.holds(rank.row)]
        if not forgotten:
            return
        self.ranks = [rank for rank in self.ranks if rank not in forgotten]
        # What lies in a container goes with it; and its paths are not ours to be sure of.
        own = [rank for rank in forgotten if rank.reader.path.parent == self._directory]
        names = tuple(name for rank in own for name in (rank.reader.path.name, f"{rank.identity.pid}.flight"))
        for path in list(self._directory.iterdir()) if names else ():
            if path.name.startswith(names):
                try:
                    path.unlink()
                except OSError:
                    # Another user's: it stays.
                    continue

    def _look(self, entry: os.DirEntry[str], known: dict[str, int]) -> list[Event]:
        try:
            inode = entry.inode()
            if known.get(entry.name) == inode or entry.name.startswith("."):
                return []
            known[entry.name] = inode
            return self._open(Path(entry.path))
        except RingError as error:
            text = f"a ring was refused: {error}"
            return [Event("rank-degraded", self._clock.monotonic_ns(), text, Severity.WARNING)]

    def _open(self, path: Path) -> list[Event]:
        reader = RingReader(path, owners=self._owners)
        identity = reader.header.identity
        if self._job is not None and identity.job != self._job:
            reader.close()
            return []
        row, position = self._recording.add_rank(path.name, reader.header)
        events = []
        if position:
            # An agent before this one read it that far.
            reader.close()
            reader = RingReader(path, owners=self._owners, after=position)
        # In a container it calls itself by another number.
        pid = find_process(identity.pid, identity.start_ticks)
        handle = ProcessHandle(pid or identity.pid, identity.start_ticks)
        # 0 is no process: the traces of whoever else has its number are not its own.
        traces = ProcessTraces(pid or 0)
        rank = Rank(identity, reader, row, handle, reader.header.anchor.monotonic_ns, traces)
        # A job's own agent lives where its ranks do: what it does not see is gone.
        rank.hidden = pid is None and self._job is not None and not sees_every_process()
        rank.heard_ns = self._clock.monotonic_ns()
        if position:
            self._recall(rank)
        else:
            events.append(_attached(rank, place_of(pid) if pid else Place()))
            if (facts := read_facts(path)) is not None:
                self._recording.set_meta(f"{RANK_KEY}{row}", facts)
        self.ranks.append(rank)
        return events

    def _recall(self, rank: Rank) -> None:
        """Take up what the agent before this one had heard of a rank."""
        execute = self._recording.connection.execute
        for time_ns, step, mark, text in execute(
            "SELECT time_ns, step, mark, text FROM marks WHERE rank_id = ?", (rank.row,)
        ):
            self._note(rank, MarkRecord(time_ns, step, mark, text))
        (rank.last_step,) = execute("SELECT max(step) FROM steps WHERE rank_id = ?", (rank.row,)).fetchone()
        told = execute(
            "SELECT 1 FROM events WHERE kind = 'rank-exited' AND rank = ? AND json_extract(attributes, '$.pid') = ?",
            (rank.identity.rank, rank.identity.pid),
        ).fetchone()
        if told:
            rank.leave()

    def poll(self, *, look: bool = False) -> list[Event]:
        """Read every ring, and look after ranks whose end no pidfd will tell (with `look`: after all)."""
        events: list[Event] = []
        for rank in self.ranks:
            if rank.gone:
                continue
            if rank.hidden:
                events += self._read(rank)
                if rank.said_goodbye or rank.failed or self._silent(rank):
                    events += self.ended([rank])
            elif (look or rank.handle.descriptor < 0) and not rank.handle.alive():
                events += self.ended([rank])
            else:
                events += self._read(rank)
        return events

    def _silent(self, rank: Rank) -> bool:
        """Whether a rank whose process is not seen has said nothing for so long that it must be gone."""
        return self._clock.monotonic_ns() - rank.heard_ns > _HIDDEN_SILENCE_NS

    def _read(self, rank: Rank) -> list[Event]:
        batch = rank.reader.read()
        rank.status = rank.reader.status() or rank.status
        if not (batch.records or batch.overwritten or batch.damaged):
            return []
        rank.heard_ns = self._clock.monotonic_ns()
        events: list[Event] = []
        for record in batch.records:
            if isinstance(record, StepRecord):
                _note_step(rank, record)
            elif isinstance(record, MarkRecord) and (event := self._note(rank, record)) is not None:
                events.append(event)
        self._recording.add_records(rank.row, batch.records, rank.reader.position)
        if self._heard is not None:
            self._heard(rank.identity, batch.records)
        number, now = rank.identity.rank, self._clock.monotonic_ns()
        for kind, count, what in (
            ("ring-overwritten", batch.overwritten, "overwritten before they were read"),
            ("ring-damaged", batch.damaged, "damaged"),
        ):
            if count:
                text = f"{count} records of rank {number} were {what}"
                events.append(Event(kind, now, text, Severity.WARNING, rank=number, attributes={"count": count}))
        return events

    def _note(self, rank: Rank, mark: MarkRecord) -> Event | None:
        """Remember what a mark means for this rank; returns the event it is, if it is one."""
        number = rank.identity.rank
        if mark.mark == MarkKind.ATTACHED:
            for word in mark.text.split():
                key, _, value = word.partition("=")
                if key == "stacks" and value.startswith("SIG"):
                    rank.stack_signal = value
                elif key == "flight":
                    rank.tells_flight = value == "1"
        elif mark.mark in (MarkKind.ENDED, MarkKind.DETACHED):
            rank.said_goodbye = True
        elif mark.mark == MarkKind.DEGRADED:
            # A rank that is no longer watched by its own hooks says nothing more, and is not hung for that.
            rank.said_goodbye = rank.said_goodbye or mark.text.startswith("stopped watching")
            text = f"rank {number}: {mark.text}"
            return Event("rank-degraded", mark.time_ns, text, Severity.WARNING, rank=number)
        elif mark.mark in (MarkKind.NONFINITE, MarkKind.SNAPSHOT):
            kind = "training-nonfinite" if mark.mark == MarkKind.NONFINITE else "memory-snapshot"
            text, attributes = f"rank {number}: {mark.text}", {"step": mark.step}
            return Event(kind, mark.time_ns, text, Severity.WARNING, rank=number, attributes={**attributes})
        elif mark.mark == MarkKind.WINDOW:
            return _window(number, mark)
        elif mark.mark == MarkKind.STEP_RULE and not number:
            # The ranks of a job have one loop: the first speaks for all.
            return Event("step-rule", mark.time_ns, f"what is taken for a step: {mark.text}", rank=number)
        elif mark.mark == MarkKind.EXCEPTION:
            rank.failed = True
            # Hooks of another version may not have taken secrets out.
            said = without_secrets(mark.text)
            kind = said.partition(":")[0]
            return Event(
                "rank-exception",
                mark.time_ns,
                f"rank {number} ended with {said}",
                Severity.CRITICAL,
                device=rank.identity.gpu_uuid or "",
                rank=number,
                attributes={"type": kind, "step": mark.step, "pid": rank.identity.pid},
            )
        return None

    def ended(self, ranks: list[Rank]) -> list[Event]:
        """These processes have ended, in this order: read what they left, and say how each went."""
        now = self._clock.monotonic_ns()
        # First of all the exit codes: they are readable until the parent has waited for its child.
        stats = [rank.handle.stat() for rank in ranks]
        events: list[Event] = []
        for place, (rank, stat) in enumerate(zip(ranks, stats, strict=True)):
            events += self._read(rank)
            # One nanosecond apart: the order in which they died outlives a sort by time.
            events.append(_exited(rank, stat, now + place))
            events += left_behind(rank.traces, events[-1], [other.traces for other in self.ranks])
            rank.leave()
        return events

    def close(self) -> None:
        """Close every ring."""
        for rank in self.ranks:
            rank.reader.close()
            rank.handle.close()


def _note_step(rank: Rank, record: StepRecord) -> None:
    rank.last_step = record.step
    long = {Phase.CHECKPOINT: record.checkpoint_ns, Phase.EVALUATION: record.evaluation_ns}
    for phase, duration in long.items():
        if duration > rank.longest_ns.get(phase, 0):
            rank.longest_ns[phase] = duration
    rank.steps_seen += 1
    rank.steps_ns.append(record.end_ns - record.start_ns - sum(long.values()))
    if record.hook_ns is not None and record.end_ns > record.start_ns:
        rank.hook_shares.append(record.hook_ns / (record.end_ns - record.start_ns))


def _window(number: int, mark: MarkRecord) -> Event:
    said = dict(word.split("=", 1) for word in mark.text.split() if "=" in word)
    cost = said.get("cost_ns", "")
    attributes: dict[str, str | int | float | None] = {
        "step": mark.step,
        "cost_ns": int(cost) if cost.isascii() and cost.isdigit() else None,
    }
    return Event("profiler-window", mark.time_ns, f"rank {number}: {mark.text}", rank=number, attributes=attributes)


def _attached(rank: Rank, place: Place) -> Event:
    identity = rank.identity
    return Event(
        "rank-attached",
        rank.attached_ns,
        f"rank {identity.rank} of {identity.world_size} (pid {identity.pid}) is watched",
        device=identity.gpu_uuid or "",
        rank=identity.rank,
        attributes={
            "pid": identity.pid,
            "gpu_uuid": identity.gpu_uuid,
            "device_clock": identity.device_clock,
            "attempt": identity.attempt,
            **place.known(),
        },
    )


def _exited(rank: Rank, stat: ProcessStat | None, time_ns: int) -> Event:
    number, pid = rank.identity.rank, rank.identity.pid
    clean = rank.said_goodbye or rank.failed
    status = rank.status
    phase = status.phase.name.lower() if status is not None else "none"
    step = rank.last_step if status is None else status.step
    attributes: dict[str, str | int | float | None] = {
        "pid": pid,
        "clean": int(clean),
        "last_step": rank.last_step,
        "phase": phase,
        "attempt": rank.identity.attempt,
    }
    how = "ended without a word"
    if stat is not None and stat.exit_code & 0x7F:
        how = f"was ended by {signal_name(stat.exit_code & 0x7F)}"
        attributes["signal"] = stat.exit_code & 0x7F
    elif stat is not None and stat.exit_code:
        how = f"ended with status {stat.exit_code >> 8}"
        attributes["status"] = stat.exit_code >> 8
    elif clean:
        how = "ended"
    if not clean:
        how += f" in {phase} of step {step}"
    severity = Severity.INFO if clean else Severity.CRITICAL
    device = rank.identity.gpu_uuid or ""
    return Event(
        "rank-exited", time_ns, f"rank {number} (pid {pid}) {how}", severity, device, number, attributes=attributes
    )
