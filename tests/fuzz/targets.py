"""What is fuzzed: each reader as its callers use it, down to the end of the way that its data goes."""

from __future__ import annotations

import io
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fuzz.answers import read_answer
from fuzz.engine import Target
from fuzz.recordings import mutated_recording, placed
from fuzz.rings import mutated_ring
from rich.console import Console

from rankscope.agent.config import ExportSettings, Settings, load_settings
from rankscope.agent.export import export_targets
from rankscope.agent.hand_off import hand_off
from rankscope.agent.job import WatchedJob
from rankscope.agent.ranks import RankWatcher
from rankscope.agent.recording import Recording
from rankscope.agent.sources import build_sources
from rankscope.agent.verdict import conclude, json_text
from rankscope.exporters.html import html_page
from rankscope.exporters.markdown import hand_off_markdown
from rankscope.exporters.otlp_send import Backoff, SignalSender
from rankscope.exporters.otlp_settings import Target as Receiver
from rankscope.exporters.otlp_settings import otlp_targets
from rankscope.exporters.otlp_transport import Reply, Result
from rankscope.exporters.outbox import Outbox, WaitingBatch
from rankscope.exporters.perfetto import trace_events
from rankscope.exporters.replay import encode_window
from rankscope.exporters.terminal import print_verdict
from rankscope.finding import Verdict
from rankscope.probes.kernel_log import MAX_RECORDS, KernelLogProbe
from rankscope.reading import EVENT_KINDS
from rankscope.ring import RingReader
from rankscope.simulator.scenario_file import load_scenario
from rankscope.testing import FakeClock
from rankscope.window import Window

ENDPOINT = "http://127.0.0.1:1"


def read_ring(path: Path) -> str:
    """Reader, watcher, recording, verdict: a rank is a foreign process, and all of it rests on what it wrote."""
    reader = RingReader(path)
    batch, status = reader.read(), reader.status()
    assert len(batch.records) <= 2 * reader.header.slots + 2 * reader.CHUNK
    assert reader.position >= len(batch.records)
    reader.close()
    clock = FakeClock()
    recording = Recording.create(path.with_name("a.db"), job="job", host="node1", clock=clock)
    watcher = RankWatcher(path.parent, recording, clock=clock, owners=None)
    events = watcher.scan() + watcher.poll(look=True)
    recording.add_events(events)
    assert recording.commit(), recording.trouble
    watcher.close()
    recording.close()
    word, _ = told([path.with_name("a.db")])
    return f"{len(batch.records)} {status is None} {sorted({event.kind for event in events})} {word}"


def told(paths: list[Path]) -> tuple[str, Window]:
    """The verdict over recordings and every form it is given out in; returns its word and classes."""
    verdict, window = conclude(paths)
    text = json_text(verdict, window)
    json.loads(text, parse_constant=_refuse)
    html_page(verdict, window)
    print_verdict(verdict, window, Console(file=io.StringIO(), width=100))
    hand_off_markdown(verdict, window, hand_off(paths, verdict, window))
    for event in trace_events(window, verdict.findings):
        json.dumps(event, allow_nan=False)
    for batch in encode_window(window, verdict.findings):
        assert batch.payload
    return f"{verdict.verdict} {classes(verdict)}", window


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def classes(verdict: Verdict) -> list[str]:
    """Classes of all findings."""
    return sorted({finding.class_slug for finding in verdict.findings})


def read_recording(path: Path) -> str:
    """Every command that reads a recording."""
    word, window = told([placed(path)])
    return f"{word} {len(window.ranks)} {len(window.events)} {len(window.not_seen)}"


def read_outbox(path: Path) -> str:
    """An agent that goes on with a recording and its outbox, and delivers what waits."""
    recording = placed(path)
    clock = FakeClock()
    # A port that nobody listens on: what is delivered here is delivered below.
    settings = Settings(export=ExportSettings(endpoint=ENDPOINT, drain_seconds=0))
    job = WatchedJob(
        job="job",
        host="node1",
        recording=recording,
        rings=path.parent / "rings",
        settings=settings,
        clock=clock,
        environ={},
    )
    try:
        clock.advance(20 * 10**9)
        job.poll()
    finally:
        job.close("done")
    sent = _deliver(recording, clock)
    return f"{sent}"


class _Keeps:
    """A receiver that takes everything, as gRPC has it: uncompressed."""

    def __init__(self) -> None:
        self.batches = 0

    def send(self, batch: WaitingBatch) -> Reply:
        self.batches += 1
        assert len(batch.payload()) < 64_000_000
        return Reply(Result.DELIVERED)

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


def _deliver(recording: Path, clock: FakeClock) -> str:
    connection = sqlite3.connect(recording, isolation_level=None)
    keeps = _Keeps()

    def transport(_target: Receiver, _clock: object) -> _Keeps:
        return keeps

    try:
        outbox = Outbox(connection)
        for target in otlp_targets({}, endpoint=ENDPOINT).values():
            sender = SignalSender(
                outbox,
                target,
                transport,
                clock=clock,
                uniform=lambda low, _: low,
                say=lambda _: None,
                backoff=Backoff(),
            )
            for _ in range(200):
                if sender.step(now=True) is None:
                    break
            else:
                raise AssertionError("a batch stays for ever")
        balance = outbox.balance()
        return f"{keeps.batches} {[drop.reason for drop in balance.drops]}"
    except sqlite3.Error as error:
        # The file itself is damaged: the exporter's thread says so and tries again.
        return type(error).__name__
    finally:
        connection.close()


def read_kernel_log(path: Path) -> str:
    """The probe over a log that is a file."""
    probe = KernelLogProbe(path, history=True)
    kinds: set[str] = set()
    for _ in range(4):
        result = probe.read("events", 10**18)
        assert len(result.events) <= MAX_RECORDS * 2
        for event in result.events:
            assert event.kind in EVENT_KINDS
            assert 0 <= event.time_ns <= 10**18
            assert len(event.text) < 2_000
            assert len(json.dumps(event.attributes, allow_nan=False)) < 20_000
            kinds.add(event.kind)
    probe.close()
    return str(sorted(kinds))


def read_scenario(path: Path) -> str:
    """The loader, and what is asked of a scenario before it runs."""
    scenario = load_scenario(path)
    why = scenario.why_not_real
    for rank in range(min(scenario.workload.ranks, 4)):
        share = scenario.work_share(rank, 0)
        assert math.isfinite(share)
        assert share > 0
    return f"{[fault.class_slug for fault in scenario.faults]} {why}"


def read_configuration(path: Path) -> str:
    """The loader, and what the agent makes of every setting as it begins."""
    settings = load_settings(path, {})
    export_targets(settings.export, {})
    directory = path.parent
    settings = _without_places(settings)
    for probe in build_sources(settings, dict).probes:
        probe.close()
    job = WatchedJob(
        job="job",
        host="node1",
        recording=directory / "a.db",
        rings=directory / "rings",
        settings=settings,
        clock=FakeClock(),
        environ={},
    )
    job.poll()
    job.close("done")
    return str(sum(1 for _ in _leaves(settings) if _))


def _without_places(settings: Settings) -> Settings:
    """The same settings without a receiver, and with the host's own files."""
    import msgspec

    defaults = Settings()
    return msgspec.structs.replace(
        settings,
        roots=defaults.roots,
        export=msgspec.structs.replace(settings.export, endpoint="", protocol=""),
    )


def _leaves(settings: Settings) -> Iterator[bool]:
    import msgspec

    for section in msgspec.structs.fields(Settings):
        mine, plain = getattr(settings, section.name), getattr(Settings(), section.name)
        for each in msgspec.structs.fields(type(mine)):
            yield getattr(mine, each.name) != getattr(plain, each.name)


TARGETS = {
    target.name: target
    for target in (
        Target("ring", read_ring, mutated_ring, "a.ring"),
        Target("recording", read_recording, mutated_recording),
        Target("outbox", read_outbox, mutated_recording),
        Target("answer", read_answer),
        Target("kernel-log", read_kernel_log),
        Target("scenario", read_scenario, file_name="input.toml"),
        Target("configuration", read_configuration, file_name="input.toml"),
    )
}
