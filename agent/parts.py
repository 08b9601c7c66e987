"""What each file of a run told, put together: one window, of the launch of the job that counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rankscope.agent.host_clocks import Told, clock_lines
from rankscope.agent.standing import EVENT_COUNT
from rankscope.clock import ClockAnchor
from rankscope.reading import Event
from rankscope.window import Attempt, Columns, HostClock, RankWindow, Series, SeriesKey, Window

#: Events after which a rank's process is no longer heard of.
_LAST_WORDS = frozenset({"rank-exited", "rank-exception", "rank-hung"})


@dataclass(slots=True)
class Part:
    """One file's share of the window, on its own host's clock."""

    job: str
    host: str
    boot_id: str
    anchor: ClockAnchor
    ranks: dict[tuple[int, int, int], RankWindow] = field(default_factory=dict)
    #: When each rank attached.
    attached_ns: dict[tuple[int, int, int], int] = field(default_factory=dict)
    series: dict[SeriesKey, Series] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    not_seen: list[str] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    job_status: int | None = None
    #: What the kernel says its wall clock may be off by.
    wall_error_ns: int | None = None

    @property
    def told(self) -> Told:
        """What is known of its clock."""
        return Told(self.host, self.boot_id, self.wall_error_ns)


def latest(part: Part) -> dict[int, RankWindow]:
    """Ranks of the last launch in which any finished a step."""
    stepped = [key for key, rank in part.ranks.items() if len(rank.steps)]
    turn = max((key[:2] for key in stepped), key=lambda turn: _begin(part, turn), default=None)
    return {key[2]: part.ranks[key] for key in stepped if key[:2] == turn}


def _begin(part: Part, turn: tuple[int, int]) -> int:
    return min(time_ns for key, time_ns in part.attached_ns.items() if key[:2] == turn)


def join(parts: Sequence[Part], clocks: Sequence[HostClock]) -> Window:
    """The window of several files' parts, whose times are on the first one's clock."""
    _number_launches(parts)
    first = parts[0]
    several = len({part.host for part in parts}) > 1
    chosen: dict[int, RankWindow] = {}
    begun = {key[:2]: time_ns for part in parts for key, time_ns in part.attached_ns.items()}
    # In the order of time: a job that is queued again counts its attempts from 0 again.
    rounds = sorted(begun, key=lambda turn: (begun[turn], turn))
    stepped = [
        turn
        for turn in rounds
        if any(len(rank.steps) for part in parts for key, rank in part.ranks.items() if key[:2] == turn)
    ]
    turn = (stepped or rounds or [(0, 0)])[-1]
    for part in parts:
        chosen.update({key[2]: rank for key, rank in part.ranks.items() if key[:2] == turn})
    events = sorted((event for part in parts for event in part.events), key=lambda event: event.time_ns)
    series = {key: values for part in parts for key, values in part.series.items()}
    ordered = dict(sorted(chosen.items()))
    times = _times(ordered.values(), series, events)
    # Of a job that was queued again in a recording of its own, the last launch's status is the job's.
    ended = [part for part in parts if rounds and any(key[:2] == rounds[-1] for key in part.ranks)]
    statuses = [part.job_status for part in (ended or parts) if part.job_status is not None]
    return Window(
        job=first.job,
        ranks=ordered,
        series=series,
        events=events,
        # All times are on the first host's clock by now.
        anchors={part.host: first.anchor for part in parts},
        begin_ns=min(times, default=first.anchor.monotonic_ns),
        end_ns=max(times, default=first.anchor.monotonic_ns),
        world_size=max((rank.identity.world_size for rank in ordered.values()), default=0),
        not_seen=[
            *(f"{part.host}: {line}" if several else line for part in parts for line in part.not_seen),
            *clock_lines(clocks),
        ],
        job_status=max(statuses, key=abs, default=None),
        gpus={part.host: part.gpus for part in parts},
        attempts=[_attempt(turn, parts, events) for turn in rounds],
        clocks=clocks,
    )


def _attempt(turn: tuple[int, int], parts: Sequence[Part], events: Sequence[Event]) -> Attempt:
    ranks = [rank for part in parts for key, rank in part.ranks.items() if key[:2] == turn]
    attached = [time_ns for part in parts for key, time_ns in part.attached_ns.items() if key[:2] == turn]
    most = max(len(rank.steps) for rank in ranks)
    # Often one rank alone writes checkpoints: of those that went all the way, the one that spent most on them.
    longest = max(ranks, key=lambda rank: (len(rank.steps) >= 0.9 * most, sum(rank.steps.columns["checkpoint_ns"])))
    processes = frozenset((rank.identity.host, rank.identity.pid) for rank in ranks)
    ends = [int(rank.steps.columns["end_ns"][-1]) for rank in ranks if len(rank.steps)]
    ends += [
        event.time_ns
        for event in events
        if event.kind in _LAST_WORDS and (event.host, event.attributes.get("pid")) in processes
    ]
    names = ("step", "start_ns", "end_ns", "checkpoint_ns", "evaluation_ns")
    steps = Columns({name: longest.steps.columns[name] for name in names})
    return Attempt(*turn, min(attached), max([*ends, min(attached)]), len(ranks), processes, steps)


def _number_launches(parts: Sequence[Part]) -> None:
    """Tell launches of one attempt number apart over all files: a rank that comes again belongs to the next launch.

    A scheduler that queues a job again starts `run` again, and each run is a recording of its own.
    """
    launches: dict[int, list[set[int]]] = {}
    whole: list[tuple[int, int, Part, tuple[int, int]]] = []
    for place, part in enumerate(parts):
        for turn in {key[:2] for key in part.ranks}:
            begin = min(time_ns for key, time_ns in part.attached_ns.items() if key[:2] == turn)
            whole.append((begin, place, part, turn))
    numbers: dict[tuple[int, int, int], int] = {}
    for _, place, part, (attempt, generation) in sorted(whole, key=lambda each: (each[0], each[1], each[3])):
        ranks = {key[2] for key in part.ranks if key[:2] == (attempt, generation)}
        of_attempt = launches.setdefault(attempt, [])
        if not of_attempt or of_attempt[-1] & ranks:
            of_attempt.append(set())
        of_attempt[-1] |= ranks
        numbers[place, attempt, generation] = len(of_attempt) - 1
    for place, part in enumerate(parts):
        for name in ("ranks", "attached_ns"):
            old = getattr(part, name)
            setattr(part, name, {(key[0], numbers[place, key[0], key[1]], key[2]): value for key, value in old.items()})


def _times(ranks: Iterable[RankWindow], series: Mapping[SeriesKey, Series], events: Sequence[Event]) -> list[int]:
    times = [event.time_ns for event in (*events[:1], *events[-1:])]
    for rank in ranks:
        if len(rank.steps):
            times += [int(rank.steps.columns["start_ns"][0]), int(rank.steps.columns["end_ns"][-1])]
    for key, values in series.items():
        # For the stores' sake a count of events begins with a zero of before the agent: the events have their times.
        if key.metric != EVENT_COUNT:
            times += [values.times_ns[0], values.times_ns[-1]]
    return times
