"""Two hosts whose clocks disagree: their recordings are joined by the steps in which ranks met, with the error said."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from rankscope.agent.cli import main
from rankscope.agent.load import load_window
from rankscope.agent.recording import Recording
from rankscope.agent.schema import CLOCK_ERROR_KEY
from rankscope.clock import ClockAnchor
from rankscope.identity import RankIdentity
from rankscope.reading import Event, Severity
from rankscope.records import GroupKind, GroupRecord, StepRecord
from rankscope.ring import VERSION, RingHeader
from rankscope.window import HostClock

MS = 1_000_000
SECOND = 1_000_000_000
WALL_NS = 1_790_000_000 * SECOND
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/verdict.schema.json").read_text())


class _Clock:
    """A host's two clocks at the begin of the job: each host counts from its own boot."""

    def __init__(self, boot_ns: int, ahead_ns: int) -> None:
        self._boot_ns, self._ahead_ns = boot_ns, ahead_ns

    def monotonic_ns(self) -> int:
        return self._boot_ns

    def wall_ns(self) -> int:
        return WALL_NS + self._ahead_ns

    def asleep_ns(self) -> int:
        return 0


def record(
    directory: Path,
    *,
    ahead_ns: int = 0,
    steps: int = 60,
    late: Sequence[int] = (0, 1),
    drift: float = 0.0,
    boots: tuple[str, str] = ("boot-a", "boot-b"),
    grouped: bool = True,
    own: bool = True,
    deaths: tuple[int, int] | None = None,
    seed: int = 1,
) -> list[Path]:
    """Two hosts of one rank each under DDP on the host's clock; the second host's wall clock is `ahead_ns` ahead.

    In each step one of `late` comes some ms later to the exchange, and both leave it within 0.2 ms. `deaths` are the
    true times after the last step at which each dies.
    """
    noise = random.Random(seed)
    work = [[50 * MS + noise.randrange(2 * MS) for _ in range(2)] for _ in range(steps)]
    leave = [[noise.randrange(200_000) for _ in range(2)] for _ in range(steps)]
    for each in work:
        each[noise.choice(late)] += noise.randrange(8 * MS)
    paths = []
    for rank, (host, boot) in enumerate(zip(("a", "b"), boots, strict=True)):
        boot_ns = (5_000 if rank == 0 else 90_000) * SECOND
        if boots[0] == boots[1]:
            boot_ns = 5_000 * SECOND
        clock = _Clock(boot_ns, ahead_ns if rank and boots[0] != boots[1] else 0)
        path = directory / f"{host}.db"
        recording = Recording.create(path, job="two", host=host, clock=clock)
        recording.set_meta("boot_id", boot)
        identity = RankIdentity("two", 0, rank, 2, 0, host, 100 + rank, 1, boot, None, None)
        header = RingHeader(identity, ClockAnchor.take(clock), slots=1, version=VERSION)
        number, _ = recording.add_rank(f"{rank}.ring", header)
        shift = ahead_ns if rank and boots[0] == boots[1] else 0
        now, records = boot_ns, []
        for step in range(steps):
            met = max(work[step]) + 3 * MS
            left = met + leave[step][rank]
            end = left + 2 * MS
            stretch = (1 + drift) if rank else 1.0
            begin = int((now - boot_ns) * stretch) + boot_ns + shift
            backward = left - 20 * MS
            records.append(
                StepRecord(
                    step,
                    begin,
                    begin + end,
                    5 * MS,
                    15 * MS,
                    backward,
                    2 * MS,
                    0,
                    0,
                    0,
                    backward_own_ns=work[step][rank] - 20 * MS if own else None,
                    collective_wait_ns=1,
                )
            )
            if grouped:
                head = (step, 2, 1, None, None, 0, "default", int(GroupKind.DATA))
                records.append(GroupRecord(*head, members="0-1"))
            now += met + 3 * MS
        recording.add_records(number, records, 0)
        if deaths is not None:
            text = f"rank {rank} (pid {100 + rank}) was ended by SIGSEGV"
            attributes: dict[str, Any] = {"pid": 100 + rank, "clean": 0, "signal": 11, "phase": "forward"}
            at = now + deaths[rank] + shift
            recording.add_events([Event("rank-exited", at, text, Severity.CRITICAL, rank=rank, attributes=attributes)])
        assert recording.commit()
        recording.close()
        paths.append(path)
    return paths


def clock_of(paths: Sequence[Path]) -> HostClock:
    """How the second host's clock was joined."""
    (clock,) = load_window(paths).clocks
    return clock


@pytest.mark.parametrize("ahead_ns", [0, 7_300 * MS, -40 * MS, 3_600 * SECOND])
@pytest.mark.parametrize("seed", [1, 2])
def test_offset_is_found_within_its_error(tmp_path: Path, ahead_ns: int, seed: int) -> None:
    """Whatever the wall clocks say: the offset is found, the stated error holds, and is below the lateness of ranks."""
    clock = clock_of(record(tmp_path, ahead_ns=ahead_ns, seed=seed))
    assert clock.source == "collectives"
    assert clock.error_ns is not None
    assert clock.bound_ns is not None
    assert abs(clock.correction_ns - ahead_ns) <= clock.error_ns <= clock.bound_ns
    assert clock.error_ns < MS
    assert clock.operations == 60


def test_times_are_on_one_clock_afterwards(tmp_path: Path) -> None:
    """Steps of both hosts end together, as they did."""
    ranks = load_window(record(tmp_path, ahead_ns=7_300 * MS)).ranks
    ends = [np.array(ranks[rank].steps.columns["end_ns"]) for rank in (0, 1)]
    assert np.abs(ends[0] - ends[1]).max() < MS


def test_one_rank_always_late_leaves_the_estimate_and_widens_the_bound(tmp_path: Path) -> None:
    """Hard bounds narrow on one side only where the same rank is always late; the likely error does not suffer."""
    clock = clock_of(record(tmp_path, ahead_ns=250 * MS, late=[1]))
    assert clock.error_ns is not None
    assert clock.bound_ns is not None
    assert abs(clock.correction_ns - 250 * MS) <= clock.error_ns < clock.bound_ns


def test_drift_widens_the_error(tmp_path: Path) -> None:
    """Clocks that drift by 50 ppm are 1.2 ms apart after 24 s: one number cannot be right, and its error says so."""
    clock = clock_of(record(tmp_path, ahead_ns=SECOND, steps=1_200, drift=50e-6))
    run_ns = 1_200 * 60 * MS
    assert clock.error_ns is not None
    assert clock.error_ns > 0.2 * run_ns * 50e-6
    assert abs(clock.correction_ns - SECOND - run_ns * 25e-6) <= clock.error_ns


def test_without_own_times_only_the_step_bounds(tmp_path: Path) -> None:
    """Where only the step is known in which ranks met, the error is that of the bounds."""
    clock = clock_of(record(tmp_path, ahead_ns=7_300 * MS, own=False))
    assert clock.error_ns == clock.bound_ns
    assert abs(clock.correction_ns - 7_300 * MS) <= (clock.error_ns or 0)
    assert (clock.error_ns or 0) > 10 * MS


def test_ranks_that_never_met_tell_nothing(tmp_path: Path) -> None:
    """Too few steps, or no group in common: the wall clocks are believed, and it is said that nothing says how well."""
    (tmp_path / "few").mkdir()
    (tmp_path / "apart").mkdir()
    for paths in (
        record(tmp_path / "few", ahead_ns=SECOND, steps=5),
        record(tmp_path / "apart", ahead_ns=SECOND, grouped=False, own=False),
    ):
        window = load_window(paths)
        assert [(clock.correction_ns, clock.error_ns, clock.source) for clock in window.clocks] == [
            (0, None, "wall clocks")
        ]
        assert any("nothing says how well" in line for line in window.not_seen)


def test_disciplined_clocks_are_believed_while_bounds_allow_it(tmp_path: Path) -> None:
    """Kernels that say their clocks are good to 10 us know better than steps do, but where bounds rule it out."""
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    for name, ahead_ns, source in (("good", 5_000, "wall clocks"), ("bad", 90 * MS, "collectives")):
        paths = record(tmp_path / name, ahead_ns=ahead_ns)
        for path in paths:
            connection = sqlite3.connect(path)
            connection.execute("INSERT INTO meta VALUES (?, ?)", (CLOCK_ERROR_KEY, 10_000))
            connection.commit()
            connection.close()
        clock = clock_of(paths)
        assert clock.source == source
        assert abs(ahead_ns - clock.correction_ns) <= (clock.error_ns or 0)


def test_one_kernel_has_one_clock_unless_ranks_say_otherwise(tmp_path: Path) -> None:
    """Containers of one machine share its clock, but for a time namespace of their own."""
    (tmp_path / "same").mkdir()
    (tmp_path / "apart").mkdir()
    clock = clock_of(record(tmp_path / "same", boots=("boot", "boot")))
    assert (clock.source, clock.correction_ns, clock.error_ns) == ("one kernel", 0, 0)
    clock = clock_of(record(tmp_path / "apart", boots=("boot", "boot"), ahead_ns=30 * SECOND))
    assert clock.source == "collectives"
    assert abs(clock.correction_ns - 30 * SECOND) <= (clock.error_ns or 0)


def test_verdict_says_how_clocks_were_joined_and_who_died_first(tmp_path: Path) -> None:
    """The one that died first is the root though its clock says later; JSON and note carry the offset and its error."""
    paths = record(tmp_path, ahead_ns=7_300 * MS, deaths=(400 * MS, 0))
    connection = sqlite3.connect(paths[0])
    connection.execute("INSERT INTO meta VALUES ('job_status', 139)")
    connection.commit()
    connection.close()
    result = CliRunner().invoke(main, ["report", *map(str, paths), "--json"])
    document = json.loads(result.output)
    jsonschema.validate(document, SCHEMA)
    (clock,) = document["job"]["clocks"]
    assert (clock["host"], clock["source"]) == ("b", "collectives")
    assert abs(clock["ahead_ms"] - 7_300) <= clock["error_ms"] < 1
    assert document["findings"][0]["where"]["rank"] == 1
    assert any("collectives set it right" in line for line in document["not_seen"])
