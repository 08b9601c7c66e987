"""A watched job's rounds: what was seen is written in time, whenever exactly they come."""

import sqlite3
from pathlib import Path

from rankscope.agent.config import Settings
from rankscope.agent.job import WatchedJob
from rankscope.reading import Reading
from rankscope.testing import FakeClock

SECOND = 10**9


def test_a_round_that_comes_a_moment_early_writes_what_would_be_late_with_the_next(tmp_path: Path) -> None:
    """Rounds a second apart less a microsecond: what was seen is in the file after two seconds, and not after one."""
    clock, path = FakeClock(), tmp_path / "host.db"
    job = WatchedJob(
        job="job", host="host", recording=path, rings=tmp_path, settings=Settings(), clock=clock, environ={}
    )
    job.poll()
    job.add_readings([Reading("host.cpu_count", 2.0, clock.monotonic_ns())])
    found = []
    for _ in range(2):
        clock.advance(SECOND - 1000)
        job.poll()
        with sqlite3.connect(path) as connection:
            found.append(
                connection.execute("SELECT count(*) FROM series WHERE metric = 'host.cpu_count'").fetchone()[0]
            )
    job.close("done")
    assert found == [0, 1]
