"""Crashes and hangs: who died or stopped first, and what only follows from it.

When one rank dies, the others fail seconds later with connection errors, or are ended by the launcher; when one rank
stops, the others wait in their collective. Both leave one root and many echoes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankscope.reading import Event
from rankscope.records import Phase
from rankscope.rules import gpu_trouble
from rankscope.rules.evidence import Observation, unseen
from rankscope.rules.failure import ECHO, OWN, Failure, kind_of_text
from rankscope.rules.first_failure import CLOCK_ERROR_NS, first_failure
from rankscope.rules.flight_live import live_comparison, named
from rankscope.rules.flight_wording import ranks_text
from rankscope.rules.frame import Frame
from rankscope.rules.last_words import DEVICE, contradicted, last_words
from rankscope.rules.table import Symptom
from rankscope.rules.telemetry import Telemetry
from rankscope.window import Window

#: Exit statuses of a job that a person or the scheduler ended: 128 + SIGINT, 128 + SIGTERM.
_ENDED_BY_HAND = frozenset({130, 143})
_BY_HAND = re.compile(r"KeyboardInterrupt|SystemExit|SignalException")
#: What follows a signal to the whole job comes within this time.
_BY_HAND_NS = 2_000_000_000
#: How surely an end by this signal came from outside: SIGKILL does; the launcher sends SIGTERM to survivors; a fault
#: in native code raises the others.
_FROM_OUTSIDE = {9: 1.0, 15: 0.4, 6: 0.45, 7: 0.45, 11: 0.45, 4: 0.45, 8: 0.45}
#: Process states (proc(5)) of a process that somebody stopped, or that is gone.
_STOPPED = frozenset("TtZX")
#: Events of what a process left behind: its launcher's error file, the end of its standard error.
_LEFT_BEHIND = frozenset({"rank-error"})
#: Files that are not the job's own.
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib(64)?/python\d|^<|/rankscope/torch_hooks/")
#: What the end of a standard error says where native code or an interpreter gave up.
_TELLING = re.compile(r"(?:Error|Exception|Interrupt)\b|what\(\):|terminate called|Fatal |fault\b")
_THROWN = re.compile(r"what\(\):|terminate called")
_WAITING = Phase.COLLECTIVE_WAIT.name.lower()


@dataclass(frozen=True, slots=True)
class Incident:
    """The root of a crash or hang, with what was seen of it."""

    symptom: Symptom
    rank: int | None
    event: Event
    step: int | None
    phase: str | None
    seen: Mapping[str, Observation]
    #: What the rank's GPU reported that says what happened and not whose fault it is; empty where there is none.
    besides: str = ""


def incident(window: Window, frame: Frame, telemetry: Telemetry) -> Incident | None:
    """The first thing that went wrong for good, or None."""
    events = sorted(window.events, key=lambda event: event.time_ns)
    hung = {event.rank: event for event in reversed(events) if event.kind == "rank-hung" and event.rank is not None}
    deaths = _deaths(events)
    if window.job_status == 0:
        deaths = []
    elif window.job_status in _ENDED_BY_HAND:
        deaths = _before_the_end(window, deaths)
    if hung and (not deaths or min(event.time_ns for event in hung.values()) < deaths[0].time_ns):
        return _hang(window, frame, telemetry, events, list(hung.values()))
    return _crash(window, telemetry, events, deaths) if deaths else None


def _deaths(events: Sequence[Event]) -> list[Event]:
    """Ranks that ended without a goodbye or with an exception of their own making, in order."""
    found = []
    for event in events:
        # A rank that says goodbye and ends with a status has failed: its launcher takes it so.
        bad = event.attributes.get("clean") not in (1, True) or event.attributes.get("status")
        gone = event.kind == "rank-exited" and bad
        failed = event.kind == "rank-exception" and not _BY_HAND.search(event.text)
        if event.rank is not None and (gone or failed):
            found.append(event)
    return found


def _before_the_end(window: Window, deaths: Sequence[Event]) -> list[Event]:
    """Of a job that was stopped by hand: what had gone wrong well before, and is why somebody stopped it."""
    stopped = [event.time_ns for event in deaths if event.attributes.get("signal") in (2, 15)]
    end = min([*stopped, window.end_ns]) - _BY_HAND_NS
    return [event for event in deaths if event.time_ns < end]


def _crash(window: Window, telemetry: Telemetry, events: Sequence[Event], deaths: list[Event]) -> Incident:
    broken = _broken(window, telemetry, [event.rank for event in deaths])
    own = [event for event in deaths if event.kind == "rank-exception" and kind_of_text(event.text) not in ECHO]
    failed = {event.rank for event in deaths if event.kind == "rank-exception"}
    silent = [event for event in deaths if event.kind == "rank-exited" and event.rank not in failed]
    errors = [clock.error_ns for clock in window.clocks]
    known = bool(errors) and None not in errors
    # Of two hosts that were both joined to the first, each may be off.
    apart_ns = 2 * max(error for error in errors if error is not None) if known else CLOCK_ERROR_NS
    first = first_failure(_failures(deaths, events), window.world_size, clock_error_ns=apart_ns)
    if broken is not None:
        root = next(event for event in deaths if event.rank == broken)
    elif first is not None and first.kind in OWN and first.rank is not None:
        of_rank = [event for event in deaths if event.rank == first.rank]
        root = next((event for event in of_rank if event.kind == "rank-exception"), of_rank[0])
    else:
        root = _first_silent(silent) if silent and not own else min(own or deaths, key=lambda event: event.time_ns)
    rank = root.rank
    seen = _gpu_evidence(window, telemetry, rank)
    seen["killed"] = _killed(events, root, rank in failed)
    seen["exception"] = _exception(events, deaths, root, own)
    seen |= last_words(deaths, rank)
    seen |= contradicted(deaths, rank, seen)
    step = root.attributes.get("step", root.attributes.get("last_step"))
    phase = root.attributes.get("phase")
    return Incident(
        Symptom.CRASH,
        rank,
        root,
        step if isinstance(step, int) else None,
        phase if isinstance(phase, str) else None,
        seen,
        _besides(window, telemetry, rank),
    )


def _failures(deaths: Sequence[Event], events: Sequence[Event]) -> list[Failure]:
    """What was said of every rank that died, each with the clock of its host."""
    killed = {event.attributes.get("pid") for event in events if event.kind == "oom-kill"}
    dead = {event.rank for event in deaths}
    failed = {event.rank for event in deaths if event.kind == "rank-exception"}
    found = []
    for event in [*deaths, *(event for event in events if event.kind in _LEFT_BEHIND)]:
        told = event.kind == "rank-exception"
        left = event.kind in _LEFT_BEHIND
        # What a process left counts where the rank itself said nothing; a log that many write to is nobody's.
        if (
            event.rank is None
            or event.rank not in dead
            or (left and (event.rank in failed or event.attributes.get("shared")))
        ):
            continue
        signal, status = (event.attributes.get(name) for name in ("signal", "status"))
        found.append(
            Failure(
                rank=event.rank,
                time_ns=event.time_ns,
                text=event.text if told or left else "",
                signal=signal if isinstance(signal, int) else None,
                status=status if isinstance(status, int) else None,
                host=event.host,
                out_of_memory=not told and not left and event.attributes.get("pid") in killed,
            )
        )
    return found


def _first_silent(silent: Sequence[Event]) -> Event:
    """The one that died first of those who left no word: by signal, then by order of death.

    The launcher ends survivors by SIGTERM, so anything else came before; a rank that waited for the others was alive.
    """

    def order(event: Event) -> tuple[bool, bool, int]:
        signal = event.attributes.get("signal")
        return signal == 15, event.attributes.get("phase") == _WAITING and signal is None, event.time_ns

    return min(silent, key=order)


def _from_outside(events: Sequence[Event], gone: Event) -> float:
    pid = gone.attributes.get("pid")
    if any(event.kind == "oom-kill" and event.attributes.get("pid") == pid for event in events):
        return 1.0
    signal = gone.attributes.get("signal")
    if isinstance(signal, int):
        return _FROM_OUTSIDE.get(signal, 0.4)
    # Not even the interpreter's own exit ran, and nobody could see how it ended.
    return 0.25 if gone.attributes.get("status") else 0.9


def _killed(events: Sequence[Event], root: Event, failed: bool) -> Observation:
    if root.kind != "rank-exited" or failed:
        return Observation(0.0, "the rank ended with an exception of its own")
    pid = root.attributes.get("pid")
    memory = [event for event in events if event.kind == "oom-kill" and event.attributes.get("pid") == pid]
    what = root.text + ("; the kernel killed it for memory" if memory else "; it left no exception")
    return Observation(_from_outside(events, root), what, root.attributes.get("signal"))


def _exception(events: Sequence[Event], deaths: Sequence[Event], root: Event, own: Sequence[Event]) -> Observation:
    mine = [event for event in deaths if event.kind == "rank-exception" and event.rank == root.rank]
    echoes = sorted({event.rank for event in deaths if event.rank != root.rank and event.rank is not None})
    after = f"; the ends of {_count(echoes)} follow from it" if echoes else ""
    left = _left_words(events, root) if not mine else None
    if left is not None:
        return Observation(left[0], f"{root.text}; it left: {left[1]}{after}", left[2])
    if not mine:
        return Observation(0.0, f"no exception of rank {root.rank}{after}")
    strength = 0.2 if mine[0] not in own else 0.6 if DEVICE.search(mine[0].text) else 1.0
    return Observation(strength, mine[0].text + after, mine[0].attributes.get("type"))


def _count(ranks: Sequence[int]) -> str:
    """Some ranks by number, thousands of them by count."""
    return ranks_text(ranks) if len(ranks) <= 32 else f"{len(ranks)} other ranks"


def _left_words(events: Sequence[Event], root: Event) -> tuple[float, str, str] | None:
    """(strength, words, source) of a rank that said nothing itself: its error file, the end of its standard error."""
    for kind, strength in (("rank-error", 1.0), ("rank-stderr", 0.7)):
        for event in reversed(events):
            same = event.rank == root.rank and event.attributes.get("pid") == root.attributes.get("pid")
            if event.kind == kind and same and not event.attributes.get("shared"):
                words = event.text.partition("\n")[0] if kind == "rank-error" else _telling_line(event.text)
                if words and kind_of_text(words) not in ECHO:
                    return max(strength, 0.9 * bool(_THROWN.search(words))), words.strip()[:300], kind
    return None


def _telling_line(text: str) -> str:
    """The line of a log that says most of why it ends: what native code threw, else the last error."""
    lines = [line for line in text.split("\n") if _TELLING.search(line)]
    thrown = [line for line in lines if _THROWN.search(line)]
    return (thrown or lines or [""])[-1]


def _hang(window: Window, frame: Frame, telemetry: Telemetry, events: Sequence[Event], hung: list[Event]) -> Incident:
    broken = _broken(window, telemetry, [event.rank for event in hung])
    missing = _left_early(events, hung)
    if broken is not None:
        root, behind = next(event for event in hung if event.rank == broken), unseen("not needed")
    elif missing is not None:
        root = missing
        waiting = ranks_text([event.rank for event in hung if event.rank is not None])
        what = f"rank {missing.rank} ended while {waiting} wait for it"
        behind = Observation(1.0, what, missing.attributes.get("last_step"))
    else:
        root, behind = _behind(events, hung)
    if _went_on(frame, hung):
        behind = Observation(0.5 * (behind.strength or 0.0), behind.what + "; it went on later", behind.value)
    located = broken is not None or (behind.strength or 0.0) >= 0.5 or len(hung) == 1
    rank = root.rank if located else None
    seen = _gpu_evidence(window, telemetry, rank)
    seen["behind"] = behind
    seen |= last_words(events, rank)
    seen |= _mismatched(events)
    step, phase = root.attributes.get("step"), root.attributes.get("phase")
    return Incident(
        Symptom.HANG,
        rank,
        root,
        step if isinstance(step, int) else None,
        phase if isinstance(phase, str) else None,
        seen,
        _besides(window, telemetry, rank),
    )


def _behind(events: Sequence[Event], hung: list[Event]) -> tuple[Event, Observation]:
    """Who is not where the others wait, by its own status and, where ranks answered for them, by flight recorders."""
    root, strength, why = _standing_out(hung)
    recorders = ""
    comparison = live_comparison(events)
    suspect = named(comparison)
    if comparison is not None and suspect is not None:
        of_rank = next((event for event in hung if event.rank == suspect.rank), None)
        if of_rank is not None and ("mismatch" in suspect.kinds or strength < 0.9 or of_rank is root):
            root, strength = of_rank, max(strength if of_rank is root else 0.0, 0.9)
            why, recorders = root.text, f"; flight recorders: {comparison.summary.rstrip('.')}"
    what = why + _stack_of(events, root.rank) + recorders
    return root, Observation(strength, what, root.attributes.get("state"))


def _mismatched(events: Sequence[Event]) -> dict[str, Observation]:
    """Whether flight recorders that were compared tell of different collectives; nothing where none could be."""
    comparison = live_comparison(events)
    if comparison is None:
        return {}
    differing = [mismatch for mismatch in comparison.mismatches if not mismatch.passed]
    if not differing:
        return {"mismatch": Observation(0.0, "the flight recorders of the ranks tell of the same collectives")}
    first = differing[0]
    what = f"{first.kind} mismatch in collective {first.sequence}, {ranks_text(first.ranks)}: {first.text}"
    return {"mismatch": Observation(1.0, what, first.kind)}


def _step(event: Event) -> int:
    value = event.attributes.get("step")
    return value if isinstance(value, int) else -1


def _standing_out(hung: list[Event]) -> tuple[Event, float, str]:
    """The rank that is not where the others wait: stopped, not in the collective, or an older step."""
    stopped = [event for event in hung if str(event.attributes.get("state", ""))[:1] in _STOPPED]
    away = [event for event in hung if event.attributes.get("phase") != _WAITING]
    oldest = min(_step(event) for event in hung)
    behind = [event for event in hung if _step(event) == oldest]
    others = len(hung) - 1
    if len(hung) == 1:
        return hung[0], 1.0, hung[0].text
    if len(stopped) == 1:
        return stopped[0], 1.0, f"{stopped[0].text}: the process is stopped; {others} ranks wait for it"
    if len(away) == 1 and len(hung) > 1:
        return away[0], 1.0, f"{away[0].text}; the {others} others wait in the collective"
    if len(behind) == 1:
        ahead = max(_step(event) for event in hung)
        return behind[0], 0.9, f"{behind[0].text}; the others are at step {ahead}"
    both = [event for event in behind if event in away]
    if both and len(both) < len(hung):
        return both[0], 0.5, f"{both[0].text}; {len(both)} ranks are not in the collective"
    return hung[0], 0.2, f"{len(hung)} ranks stopped at the same place"


def _left_early(events: Sequence[Event], hung: Sequence[Event]) -> Event | None:
    """A rank that ended in good order before the others stopped: it is missing in their collective."""
    waiting = {event.rank for event in hung}
    begun = min(event.time_ns for event in hung)
    left = [
        event
        for event in events
        if event.kind == "rank-exited" and event.rank not in waiting and event.time_ns <= begun
    ]
    return left[0] if left else None


def _went_on(frame: Frame, hung: Sequence[Event]) -> bool:
    """Whether steps were finished after the ranks were called hung."""
    if not frame.ranks:
        return False
    last = max(event.time_ns for event in hung)
    ends = frame.host("end_ns")
    return bool((ends[ends == ends] > last).sum() > 2 * len(frame.ranks))


def _stack_of(events: Sequence[Event], rank: int | None) -> str:
    """Where the rank's training thread stood, from the stacks it wrote: faulthandler puts the latest call first."""
    texts = [event.text for event in events if event.kind == "rank-stacks" and event.rank == rank]
    if not texts:
        return ""
    main = re.split(r"(?=^(?:Current thread|Thread) )", texts[-1], flags=re.MULTILINE)[-1]
    frames = re.findall(r'File "([^"]+)", line (\d+) in (.+)', main)
    if not frames:
        return ""
    # The job's own call says more than the library's that it ended in.
    file, line, function = next((frame for frame in frames if not _LIBRARY.search(frame[0])), frames[0])
    return f"; it stands in {function} ({file.rpartition('/')[2]}:{line})"


def _broken(window: Window, telemetry: Telemetry, ranks: Sequence[int | None]) -> int | None:
    """The first of these ranks whose GPU broke."""
    for rank in ranks:
        of = window.ranks.get(rank) if rank is not None else None
        if of is None or of.identity.gpu_uuid is None:
            continue
        host, uuid = of.identity.host, of.identity.gpu_uuid
        for family in gpu_trouble.BREAKING:
            if (gpu_trouble.LOOKS[family](window, telemetry, host, uuid).strength or 0.0) >= 0.5:
                return rank
    return None


def _besides(window: Window, telemetry: Telemetry, rank: int | None) -> str:
    of = window.ranks.get(rank) if rank is not None else None
    return gpu_trouble.unclassed(telemetry, of.identity.gpu_uuid) if of is not None and of.identity.gpu_uuid else ""


def _gpu_evidence(window: Window, telemetry: Telemetry, rank: int | None) -> dict[str, Observation]:
    of = window.ranks.get(rank) if rank is not None else None
    if of is None or of.identity.gpu_uuid is None:
        missing = unseen("no rank stands out" if rank is None else f"rank {rank} did not say which GPU it runs on")
        return dict.fromkeys(gpu_trouble.LOOKS, missing)
    host, uuid = of.identity.host, of.identity.gpu_uuid
    return {family: look(window, telemetry, host, uuid) for family, look in gpu_trouble.LOOKS.items()}
