"""The agent's own Prometheus endpoint, filled from a ring and from readings."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

from components import free_port

from rankscope.agent.config import PrometheusSettings, Settings
from rankscope.agent.exposition import open_exposition
from rankscope.agent.job import WatchedJob
from rankscope.agent.scheduler import Tick
from rankscope.clock import ClockAnchor, SystemClock, boot_id
from rankscope.identity import RankIdentity, start_ticks
from rankscope.reading import Reading
from rankscope.records import StepRecord
from rankscope.ring import RingWriter, ring_path


def test_what_a_job_says_is_scraped_until_it_is_over(tmp_path: Path) -> None:
    """Steps of a ring, readings, the rank's identity: all there; nothing more once the job is closed."""
    clock = SystemClock()
    settings = Settings(prometheus=PrometheusSettings(port=free_port()))
    exposition = open_exposition(settings, clock)
    assert exposition is not None
    assert open_exposition(Settings(), clock) is None
    (tmp_path / "rings").mkdir()
    identity = RankIdentity("j", 0, 1, 2, 1, "h", os.getpid(), start_ticks(os.getpid()), boot_id(), None)
    writer = RingWriter(ring_path(tmp_path / "rings", identity), identity, ClockAnchor.take(clock))
    job = WatchedJob(
        job="j", host="h", recording=tmp_path / "h.db", rings=tmp_path / "rings", settings=settings, clock=clock,
        environ={}, exposition=exposition,
    )  # fmt: skip
    now = clock.monotonic_ns()
    writer.append_record(StepRecord(7, now - 10**9, now, 0, 10**9, 0, 0, 0, 0, 0, 0))
    job.poll()
    job.add(Tick(readings=[Reading("host.load_1m", 1.5, now)]), now)

    def page() -> str:
        exposition._due_ns = 0
        exposition.refresh()
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.prometheus.port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    text = page()
    assert 'rankscope_step_duration_seconds_count{host_name="h",rankscope_job="j",rankscope_clock="host"' in text
    assert 'rankscope_rank_step{host_name="h",rankscope_job="j",rankscope_rank="1"} 7.0' in text
    assert " 1.5\n" in text
    job.close("done")
    assert page() == "\n"
    exposition.endpoint.close()
    writer.close()
