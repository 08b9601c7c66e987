"""Faults that strike an installation at moments that a seed draws, and what must hold afterwards."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from survival import accounts
from survival.arena import RANKS, Arena, arena, small_file_systems
from survival.collector import MODES, rejected

#: SIGKILL to a part, at once started again; by how often each is drawn.
KILLS = ("agent", "agent", "helper", "collector", *(f"rank {rank}" for rank in range(RANKS)))
#: File systems that are full for a while.
FULL = ("disk full", "agent, disk full", "rank, rings full")
#: Collectors that misbehave for a while, except by refusing for good: what they refuse is dropped, and said.
COLLECTORS = tuple(f"collector {mode}" for mode in MODES if mode not in ("ok", "discarding", "refusing"))
REFUSING = "collector refusing"
#: Bytes of the file systems for FULL: the recording's, that of the rings.
SMALL_BYTES = (24_000_000, 160_000_000)
#: Longest time from one kill to the next, s: to begin takes the agent half of it, so that some hit a beginning.
LONGEST_S = 0.8


@dataclass
class Survival:
    """What a campaign came to; `broken` says what did not hold."""

    seed: int
    struck: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    steps: int = 0
    rings: accounts.RingAccount | None = None
    balance: str = ""
    received: int = 0

    def expect(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.broken.append(f"seed {self.seed}: {what}")


def campaign(
    place: Path,
    seed: int,
    moments: int,
    faults: Sequence[str] = KILLS,
    *,
    longest_s: float = LONGEST_S,
    say: Callable[[str], None] = print,
) -> Survival:
    """Strike `moments` times, every fault as often as it stands in `faults`; a line says seed, moment and balance.

    What is no kill lasts up to `longest_s`. Where no file system may be mounted, none is full.
    """
    told = Survival(seed)
    with small_file_systems(place, *(SMALL_BYTES if set(FULL) & set(faults) else ())) as small:
        drawn = [fault for fault in faults if small or fault not in FULL]
        state, shm = small or (None, None)
        with arena(place / "arena", state=state, shm=shm) as running:
            _strike(running, told, moments, drawn, longest_s, say)
            statuses = running.end_training()
            told.expect(statuses == [0] * RANKS, f"training ended with {statuses}")
            agent_status = running.end_agent()
            told.expect(agent_status == 0, f"the agent ended with {agent_status}")
            _judge(told, running)
    say(f"seed {seed}: {told.balance}; {told.rings}; {told.steps} steps of training equal to the last bit")
    return told


def _strike(
    running: Arena,
    told: Survival,
    moments: int,
    faults: Sequence[str],
    longest_s: float,
    say: Callable[[str], None],
) -> None:
    chance = random.Random(told.seed)
    deck: list[str] = []
    began = time.monotonic()
    for number in range(moments):
        deck = deck or chance.sample(faults, len(faults))
        fault, pause_s, lasts_s = deck.pop(), chance.uniform(0, longest_s), chance.uniform(0, longest_s)
        time.sleep(pause_s)
        moment = time.monotonic() - began
        if fault in KILLS:
            pid = running.kill(fault)
            what = f"{fault} {'was not there' if pid is None else f'({pid}) killed'}"
            told.struck[fault.split()[0]] += pid is not None
        else:
            running.begin(fault)
            before = accounts.steps_so_far(running.recording)
            time.sleep(lasts_s)
            after = accounts.steps_so_far(running.recording)
            running.end(fault)
            recorded = "unread" if before is None or after is None else f"{after - before}"
            what = f"{fault} for {lasts_s:.3f} s, {recorded} steps recorded meanwhile"
            told.struck[fault] += 1
        balance = running.balance()
        line = f"seed {told.seed} moment {number} at {moment:.3f} s: {what}; {accounts.say(balance)}"
        told.lines.append(line)
        say(line)
        told.expect(balance is None or balance.holds, f"moment {number}: {accounts.say(balance)}")


def _judge(told: Survival, running: Arena) -> None:
    """Everything that must add up once all is quiet."""
    recording = running.recording
    told.expect(not (why := accounts.opens(recording)), f"the recording: {why}")
    told.rings = accounts.ring_account(recording, running.rings)
    told.expect(told.rings.holds, str(told.rings))
    balance = running.balance()
    assert balance is not None
    told.balance = accounts.say(balance)
    told.expect(balance.holds, told.balance)
    told.expect(not balance.waiting.batches, f"after the end {told.balance}")
    requests = running.received()
    told.received = len(requests)
    said = rejected(running.kept)
    refused = balance.dropped.points - said
    if not balance.dropped.batches:
        told.expect(not refused, f"{said} points were rejected, {balance.dropped.points} are booked as dropped")
    told.expect(
        len(requests) == balance.acknowledged.batches,
        f"{balance.acknowledged.batches} batches are booked as delivered, the collector has {len(requests)}",
    )
    missing = accounts.missing_points(recording, requests)
    told.expect(missing <= refused, f"{missing} recorded readings never reached the collector, {refused} were refused")
    recorded, counted = accounts.recorded_steps(recording), accounts.counted_steps(requests)
    told.expect(recorded == counted, f"steps recorded {dict(recorded)}, counted by the collector {dict(counted)}")
    told.steps = sum(recorded.values())
    told.expect(told.steps > 0, "nothing was trained")
    parted = accounts.parted_ns(recording)
    happened = (running.clock.set_ns, running.clock.slept_ns)
    near = all(abs(said - done) < 10**9 for said, done in zip(parted, happened, strict=True))
    told.expect(near, f"clocks set and asleep by {happened} ns, and said to be by {parted} ns")
    told.expect(not (why := running.curve_differs()), f"losses: {why}")
