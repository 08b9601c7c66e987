"""SIGKILL to every part of an installation at moments that a seed draws, and what must hold afterwards."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from survival import accounts
from survival.arena import RANKS, Arena, arena

#: Drawn as often as they stand here.
VICTIMS = ("agent", "agent", "helper", "collector", *(f"rank {rank}" for rank in range(RANKS)))
#: Longest time from one kill to the next, s: to begin takes the agent half of it, so that some hit a beginning.
LONGEST_S = 0.8


@dataclass
class Survival:
    """What a campaign came to; `broken` says what did not hold."""

    seed: int
    killed: Counter[str] = field(default_factory=Counter)
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
    place: Path, seed: int, moments: int, say: Callable[[str], None] = print, longest_s: float = LONGEST_S
) -> Survival:
    """Kill `moments` times; every line says seed, moment, victim and balance."""
    chance = random.Random(seed)
    told = Survival(seed)
    with arena(place) as running:
        began = time.monotonic()
        for number in range(moments):
            victim, pause_s = chance.choice(VICTIMS), chance.uniform(0, longest_s)
            time.sleep(pause_s)
            moment = time.monotonic() - began
            pid = running.kill(victim)
            balance = running.balance()
            if pid is not None:
                told.killed[victim.split()[0]] += 1
            line = (
                f"seed {seed} moment {number} at {moment:.3f} s: {victim}"
                f" {'was not there' if pid is None else f'({pid}) killed'}; {accounts.say(balance)}"
            )
            told.lines.append(line)
            say(line)
            told.expect(balance is None or balance.holds, f"moment {number}: {accounts.say(balance)}")
        statuses = running.end_training()
        told.expect(statuses == [0] * RANKS, f"training ended with {statuses}")
        agent_status = running.end_agent()
        told.expect(agent_status == 0, f"the agent ended with {agent_status}")
        _judge(told, running)
    say(f"seed {seed}: {told.balance}; {told.rings}; {told.steps} steps of training equal to the last bit")
    return told


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
    told.expect(
        len(requests) == balance.acknowledged.batches,
        f"{balance.acknowledged.batches} batches are booked as delivered, the collector has {len(requests)}",
    )
    missing = accounts.missing_points(recording, requests)
    told.expect(not missing, f"{missing} recorded readings never reached the collector")
    recorded, counted = accounts.recorded_steps(recording), accounts.counted_steps(requests)
    told.expect(recorded == counted, f"steps recorded {dict(recorded)}, counted by the collector {dict(counted)}")
    told.steps = sum(recorded.values())
    told.expect(not (why := running.curve_differs()), f"losses: {why}")
