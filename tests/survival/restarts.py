"""Ranks that come and go without end, and what that leaves in the agent that watches them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from survival import accounts
from survival.arena import wait_until
from survival.footprint import Footprint, footprint_of

from rankscope.agent.config import HangSettings, ProbeSettings, RecordingSettings, RingSettings, RuleSettings, Settings
from rankscope.agent.plan import Plan, write_plan
from rankscope.agent.ranks import MAX_GONE
from rankscope.agent.sources import build_sources
from rankscope.agent.supervisor import AgentProcess

#: Restarts between two looks at the agent.
_BATCH = 50
#: What an agent may grow by while it fills its caches (SQLite's among them), and for each rank that it has seen.
MORE_BYTES = 6_000_000
BYTES_A_RESTART = 1_000

#: Steps that each rank makes: more than the agent keeps in mind of one.
STEPS = 600

# Forks processes that each attach, make these steps and end: by themselves, or by SIGKILL.
_RESTARTS = """
import os, signal, sys, time
from pathlib import Path
from rankscope.clock import ClockAnchor, SystemClock, boot_id
from rankscope.identity import rank_identity
from rankscope.records import MarkKind, MarkRecord, StepRecord
from rankscope.ring import RingWriter, ring_path

def rank(number):
    identity = rank_identity(os.environ | {"RANK": "0", "WORLD_SIZE": "1"}, boot_id=boot_id())
    ring = RingWriter(ring_path(Path(sys.argv[1]), identity), identity, ClockAnchor.take(SystemClock()), slots=1024)
    for step in range(int(sys.argv[3])):
        now = time.monotonic_ns()
        ring.append_record(StepRecord(step, now - 1000, now, 0, 1000, 0, 0, 0, 0, 0, 0))
    if number % 3:
        ring.append_record(MarkRecord(time.monotonic_ns(), int(sys.argv[3]), MarkKind.ENDED, ""))
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)

for number in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        rank(number)
    os.waitpid(pid, 0)
    if number % 50 == 49:
        print(number + 1, flush=True)
        sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True)
class Size:
    """What the agent holds after so many restarts, and the files in the ring directory."""

    restarts: int
    rings: int
    agent: Footprint


@dataclass
class Restarted:
    """What was found; `broken` says what did not hold."""

    restarts: int
    sizes: list[Size] = field(default_factory=list)
    account: str = ""
    broken: list[str] = field(default_factory=list)


def restarts(place: Path, count: int, say: Callable[[str], None] = print) -> Restarted:
    """Let `count` (a multiple of 50) ranks come and go beside one agent."""
    rings, recording = place / "rings", place / "restarts.db"
    rings.mkdir(parents=True)
    settings = Settings(
        recording=RecordingSettings(commit_seconds=0.1),
        rings=RingSettings(poll_seconds=0.05),
        probes=ProbeSettings(disabled=("nvml", "kernel-log")),
        rules=RuleSettings(live=False),
        hang=HangSettings(pyspy=False),
    )
    write_plan(Plan("restarts", str(recording), str(rings), settings), place / "plan.json")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("RANKSCOPE", "OTEL"))}
    agent = AgentProcess(place / "plan.json", environ, place / "agent.log")
    told = Restarted(count)
    launcher = subprocess.Popen(
        [sys.executable, "-c", _RESTARTS, rings, str(count), str(STEPS)],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    try:
        assert agent.wait_ready()
        # A probe keeps the files open that it reads: until each was read once, descriptors grow without any restart.
        groups = _groups(settings)
        wait_until(lambda: _answered(recording) == groups, "the first answer of each probe")
        for line in launcher.stdout:
            done = int(line)
            wait_until(lambda done=done: _exits(recording) >= done, f"the end of rank {done}")
            time.sleep(0.1)
            told.sizes.append(Size(done, len(os.listdir(rings)), footprint_of(agent.pid)))
            say(f"after {done} restarts: {told.sizes[-1]}")
            launcher.stdin.write(b"\n")
            launcher.stdin.flush()
        assert launcher.wait() == 0
        agent.stop()
        _judge(told, os.waitstatus_to_exitcode(os.waitpid(agent.pid, 0)[1]), recording, say)
    except BaseException:
        agent.kill()
        os.waitpid(agent.pid, 0)
        raise
    finally:
        agent.close()
        launcher.kill()
        launcher.communicate()
    return told


def _groups(settings: Settings) -> int:
    """How many groups of probes the agent reads."""
    probes = build_sources(settings, dict).probes
    for probe in probes:
        probe.close()
    return sum(len(probe.groups) for probe in probes)


def _answered(recording: Path) -> int:
    """How many of them have said once how they fare, well or not."""
    return accounts.count(recording, "SELECT count(*) FROM (SELECT DISTINCT probe, probe_group FROM sources)")


def _exits(recording: Path) -> int:
    return accounts.count(recording, "SELECT count(*) FROM events WHERE kind = 'rank-exited'")


def _judge(told: Restarted, status: int, recording: Path, say: Callable[[str], None]) -> None:
    if status:
        told.broken.append(f"the agent ended with {status}")
    found = {table: accounts.count(recording, f"SELECT count(*) FROM {table}") for table in ("ranks", "steps", "marks")}
    told.account = f"{found['ranks']} ranks, {found['steps']} steps and {found['marks']} goodbyes recorded"
    say(told.account)
    expected = {
        "ranks": told.restarts,
        "steps": STEPS * told.restarts,
        "marks": sum(n % 3 > 0 for n in range(told.restarts)),
    }
    if found != expected:
        told.broken.append(f"{told.account}; there were {expected}")
    # The first look is of an agent that has seen as many as it keeps in mind.
    first, last = next(size for size in told.sizes if size.restarts > MAX_GONE), told.sizes[-1]
    for name in ("descriptors", "maps", "threads"):
        before, after = getattr(first.agent, name), getattr(last.agent, name)
        if after > before + 2:
            told.broken.append(f"{name}: {before} after {first.restarts}, {after} at last")
    if last.rings > _BATCH + MAX_GONE:
        told.broken.append(f"{last.rings} files in the ring directory")
    more = last.agent.own_bytes - first.agent.own_bytes
    if more > MORE_BYTES + told.restarts * BYTES_A_RESTART:
        told.broken.append(f"{more} bytes more than after {first.restarts} restarts")
