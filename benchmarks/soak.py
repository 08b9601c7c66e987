"""Whether anything grows: a day of simulated time at full rate, and an hour of real time.

    .venv/bin/python benchmarks/soak.py --simulated-hours 24 --real-minutes 60 --write docs/reliability.md

The day: the shipped loop, scheduler, recording, live rules and exporter in this process, only the clock replaced, with
the real NVML helper over a simulated node of 8 GPUs and 8 ranks at 5 steps a second. The budget is not held, so that
every rate stays what it is steadily; a slow step every ten minutes and an Xid every hour bring bursts and findings on
top. The recording may have 200 MB, so that it is full for most of the day. The figures hold the benchmark itself too.

The hour: two real torch ranks with real hooks at 5 steps a second, the shipped agent with default settings, its helper
and a collector, processes all.

Ctrl-C ends the day early and in order: the table is then of what has passed. Ends with 1 where anything grew or did
not hold.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from document import Table, machine

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import components  # noqa: E402
import msgspec  # noqa: E402
from agent_cost import GPUS, SECOND, Node  # noqa: E402
from collector_outage import OneClock, simulated_settings  # noqa: E402
from survival import accounts  # noqa: E402
from survival.footprint import Footprint, footprint_of, slope_of  # noqa: E402

from rankscope.agent.config import ExportSettings, RecordingSettings, Settings  # noqa: E402
from rankscope.agent.processes import descendants  # noqa: E402
from rankscope.agent.sources import build_sources  # noqa: E402
from rankscope.allocator import share_one_arena  # noqa: E402
from rankscope.exporters.otlp_exporter import connect  # noqa: E402
from rankscope.exporters.outbox import Outbox  # noqa: E402
from rankscope.identity import host_name  # noqa: E402
from rankscope.probes.nvml import NvmlProbe  # noqa: E402
from rankscope.simulator.state import STATE_VARIABLE  # noqa: E402
from rankscope.testing import FakeClock, SimulatedAgent  # noqa: E402

RECORDING_BYTES = 200_000_000
#: The outbox's quota comes on top of it, and a log of SQLite's that is cut to 8 MB.
OUTBOX_BYTES = 50_000_000
LOG_BYTES = 16_000_000
#: Looks at what is held, of the day's whole length.
LOOKS = 480
#: Share of the looks that belongs to caches that fill.
WARM_UP = 1 / 4
#: Shorter runs say nothing of memory: the live rules look at ten minutes of steps, and caches fill as they do.
JUDGED_HOURS = 1.0
#: What memory may grow by, at the upper end of the interval, as a share of itself over the whole length.
GROWTH = 0.1
#: An Xid that blames the application and accuses no GPU.
XID = 31


HELD = {
    "own_bytes": "memory of its own, MB",
    "pss_bytes": "memory with its part of what is shared (PSS), MB",
    "descriptors": "descriptors",
    "threads": "threads",
    "maps": "maps",
}


@dataclass
class Look:
    """What is held at one moment."""

    hours: float
    agent: Footprint
    recording_bytes: int
    ring_bytes: int
    ranks: Footprint | None = None


@dataclass
class Soak:
    """One soak: all looks, and what did not hold."""

    name: str
    hours: float
    looks: list[Look] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.broken.append(f"{self.name}: {what}")


def size_of(*directories: Path) -> int:
    """Bytes of all files in them; one that goes meanwhile has none."""
    total = 0
    for directory in directories:
        for path in directory.iterdir():
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
    return total


def simulated(place: Path, hours: float, gpus: int = GPUS) -> Soak:
    """The day."""
    # As the agent's own process does.
    share_one_arena()
    told = Soak("simulated", hours)
    told.facts.append(("GPUs, and ranks at 5 steps a second", f"{gpus}"))
    clock = FakeClock(time.monotonic_ns(), time.time_ns())
    node = Node(place, clock, gpus)
    os.environ[STATE_VARIABLE] = str(node.state.path.absolute())
    state, kept = place / "state", place / "collector"
    for directory in (state, kept):
        directory.mkdir()
    (kept / "mode").write_text("discarding")
    port = components.free_port()
    collector = subprocess.Popen([sys.executable, ROOT / "tests/survival/collector.py", kept, str(port)])
    settings = msgspec.structs.replace(
        simulated_settings(node),
        recording=RecordingSettings(max_bytes=RECORDING_BYTES),
        export=ExportSettings(outbox_max_bytes=OUTBOX_BYTES),
    )
    pids = dict(enumerate(node.ranks.pids))
    sources = build_sources(settings, lambda: pids)
    recording = state / "soak.db"
    job = OneClock(
        job="soak",
        host=host_name(),
        recording=recording,
        rings=node.rings,
        settings=settings,
        clock=clock,
        environ={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"},
    )
    nvml = next(probe for probe in sources.probes if isinstance(probe, NvmlProbe))
    while not nvml.gpus:
        nvml.read("fast", clock.monotonic_ns())
        time.sleep(0.01)
    agent = SimulatedAgent([job], settings, sources, clock)
    began = clock.monotonic_ns()
    done = {"stumble": 0, "xid": 0}

    def passed() -> None:
        node.ranks.follow()
        now_s = (clock.monotonic_ns() - began) / SECOND
        if now_s >= 600 * (done["stumble"] + 1):
            done["stumble"] += 1
            node.ranks.stumble()
        if now_s >= 3600 * (done["xid"] + 1):
            node.state.push_event(done["xid"] % gpus, XID)
            done["xid"] += 1
        if now_s >= hours * 3600 / LOOKS * (len(told.looks) + 1):
            helpers = [pid for pid in descendants(os.getpid()) if pid != collector.pid]
            held = footprint_of(os.getpid(), *helpers)
            told.looks.append(Look(now_s / 3600, held, size_of(state), size_of(node.rings)))

    real = time.monotonic()
    before = signal.signal(signal.SIGINT, lambda *_: agent.agent.stop("interrupted"))
    try:
        agent.run(hours * 3600, passed)
        told.hours = round((clock.monotonic_ns() - began) / SECOND / 3600, 2)
    finally:
        signal.signal(signal.SIGINT, before)
        node.ranks.close()
        collector.kill()
        collector.wait()
    told.facts.append(("real time, minutes", f"{(time.monotonic() - real) / 60:.0f}"))
    told.facts.append(("slow steps, Xids", f"{done['stumble']}, {done['xid']}"))
    told.facts.append(("readings kept", f"{accounts.count(recording, 'SELECT count(*) FROM readings'):,}"))
    gone = "SELECT coalesce(sum(json_extract(attributes, '$.count')), 0) FROM events WHERE kind = 'readings-thinned'"
    told.facts.append(("rows thinned, and said", f"{accounts.count(recording, gone):,}"))
    _judge(told, recording)
    told.expect(
        max(look.recording_bytes for look in told.looks) <= RECORDING_BYTES + OUTBOX_BYTES + LOG_BYTES,
        "the recording became larger than it may",
    )
    return told


def real(place: Path, minutes: float) -> Soak:
    """The hour."""
    # Here and not above: it brings torch, which would count as the agent's on simulated time.
    from survival.arena import RANKS, arena

    told = Soak("real", minutes / 60)
    with arena(place, settings=Settings(), pause_ms=200) as running:
        agent = running.agent
        assert agent is not None
        began = time.monotonic()
        while (passed := time.monotonic() - began) < minutes * 60:
            time.sleep(min(minutes * 60 - passed, minutes * 60 / LOOKS))
            ranks = [pid for rank in range(RANKS) if (pid := running.rank_pid(rank)) is not None]
            told.looks.append(
                Look(
                    (time.monotonic() - began) / 3600,
                    footprint_of(agent.pid, *descendants(agent.pid)),
                    size_of(running.recording.parent),
                    size_of(running.rings),
                    footprint_of(*ranks),
                )
            )
        statuses = running.end_training()
        told.expect(statuses == [0] * RANKS, f"training ended with {statuses}")
        told.expect(running.end_agent() == 0, "the agent did not end well")
        _judge(told, running.recording)
        rings = accounts.ring_account(running.recording, running.rings)
        told.facts.append(("records of rings", str(rings)))
        told.expect(rings.holds, str(rings))
        recorded = accounts.recorded_steps(running.recording)
        counted = accounts.counted_steps(running.received())
        told.expect(recorded == counted, f"steps recorded {dict(recorded)}, counted by the collector {dict(counted)}")
        told.facts.append(("steps recorded and counted by the collector", f"{sum(recorded.values()):,}"))
        told.expect(not (why := running.curve_differs()), f"losses: {why}")
    return told


def _judge(told: Soak, recording: Path) -> None:
    told.expect(not (why := accounts.opens(recording)), f"the recording: {why}")
    connection = connect(recording)
    balance = Outbox(connection).balance()
    connection.close()
    told.facts.append(("batches", accounts.say(balance)))
    told.expect(balance.holds, accounts.say(balance))
    told.expect(not balance.dropped.batches, f"{balance.dropped.batches} batches were dropped")
    settled = _settled(told.looks)
    if told.hours >= JUDGED_HOURS:
        grew = slope_of([look.hours for look in settled], [look.agent.own_bytes for look in settled])
        most = GROWTH * settled[0].agent.own_bytes
        told.expect(grew.high * told.hours <= most, f"memory grows by {grew.high * told.hours / 1e6:.1f} MB")
    # A round of the rules has a thread and a few files of its own while it lasts: the most and the least are compared.
    first, last = settled[: len(settled) // 4], settled[-len(settled) // 4 :]
    for name in ("descriptors", "threads", *(("maps",) if told.hours >= JUDGED_HOURS else ())):
        before, after = (max(getattr(look.agent, name) for look in looks) for looks in (first, last))
        told.expect(after <= before + 2, f"{name} of the agent: up to {before} at first, up to {after} at last")


def _settled(looks: Sequence[Look]) -> list[Look]:
    return list(looks[int(len(looks) * WARM_UP) :])


def markdown(told: Soak) -> str:
    """The table of one soak."""
    looks = _settled(told.looks)
    length = f"{told.hours:g} h" if told.hours >= 1 else f"{told.hours * 60:g} min"
    lines = [
        f"{machine()}. {length} of {told.name} time, {len(looks)} looks after the first {WARM_UP:.0%}:",
        "",
        "| | first quarter | last quarter |",
        "|---|---|---|",
    ]
    first, last = looks[: len(looks) // 4], looks[-len(looks) // 4 :]
    hours = [look.hours for look in looks]
    slopes = []
    most = max(look.agent.pss_bytes for look in told.looks)
    for who in ("agent", "ranks"):
        held = [getattr(look, who) for look in looks]
        if held[0] is None:
            continue
        own = [each.own_bytes for each in held]
        late = _slope(*_second_half(hours, own, told.hours))
        slopes.append(f"{who} {_slope(hours, own)}, over the second half of the run {late}")
        for name, label in HELD.items():
            unit = 1e6 if name.endswith("_bytes") else 1
            said = [_range([getattr(getattr(look, who), name) / unit for look in part]) for part in (first, last)]
            lines.append(f"| {label}, {who if who == 'ranks' else 'agent and helper'} | {said[0]} | {said[1]} |")
    for name, label in (("recording_bytes", "recording with its log, MB"), ("ring_bytes", "rings, MB")):
        said = [_range([getattr(look, name) / 1e6 for look in part]) for part in (first, last)]
        lines.append(f"| {label} | {said[0]} | {said[1]} |")
    lines += [
        "",
        f"Memory of its own: {'; '.join(slopes)}. Most PSS of all looks, the first too: {most / 1e6:.0f} MB.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in told.facts]
    lines += ["", f"What did not hold: {'; '.join(told.broken) or 'nothing'}."]
    return "\n".join(lines)


def _slope(hours: Sequence[float], own_bytes: Sequence[float]) -> str:
    grew = slope_of(hours, own_bytes)
    return f"{grew.an_hour / 1e3:+.1f} kB an hour (95 % interval {grew.low / 1e3:+.1f} to {grew.high / 1e3:+.1f})"


def _second_half(hours: Sequence[float], values: Sequence[float], length: float) -> tuple[list[float], list[float]]:
    late = [(hour, value) for hour, value in zip(hours, values, strict=True) if hour >= length / 2]
    return [hour for hour, _ in late], [value for _, value in late]


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


def main() -> int:
    """Run, print, and write into the document; 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated-hours", type=float, default=24.0, help="0: leave it out")
    parser.add_argument("--gpus", type=int, default=GPUS, help="of the simulated node, each with a rank")
    parser.add_argument("--real-minutes", type=float, default=60.0, help="0: leave it out")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    wanted: list[tuple[str, Callable[[Path, float], Soak], float]] = []
    if arguments.simulated_hours:
        wanted.append(("soak-simulated", partial(simulated, gpus=arguments.gpus), arguments.simulated_hours))
    if arguments.real_minutes:
        wanted.append(("soak-real", real, arguments.real_minutes))
    tables = [Table(arguments.write, name) if arguments.write else None for name, _, _ in wanted]
    broken = False
    for (_, soak, length), table in zip(wanted, tables, strict=True):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            told = soak(Path(place), length)
        text = markdown(told)
        print(text, flush=True)
        if table is not None:
            table.write(text)
        broken = broken or bool(told.broken)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
