"""Control groups of ranks: whose limit binds, groups that come and go, and what cannot be found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rankscope.errors import Unsupported
from rankscope.probes.cgroup import CgroupProbe
from rankscope.reading import Outcome

SECOND = 10**9


def write(root: Path, files: dict[str, str]) -> None:
    """Write files below a directory."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A host with version 2 whose ranks 100 and 101 are in two groups of a job with limits of its own."""
    group = "sys/fs/cgroup/job"
    write(
        tmp_path,
        {
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/fs/cgroup/cgroup.procs": "",
            f"{group}/cgroup.procs": "",
            f"{group}/cpu.max": "800000 100000\n",
            f"{group}/cpu.stat": "usage_usec 9\nnr_throttled 3\n",
            f"{group}/memory.max": "1000\n",
            f"{group}/memory.current": "900\n",
            **{
                f"{group}/{name}/{file}": text
                for name in ("a", "b")
                for file, text in {
                    "cgroup.procs": "",
                    "cpu.max": "max 100000\n",
                    "cpu.stat": "usage_usec 4\nnr_throttled 0\n",
                    "memory.max": "2000\n",
                    "memory.current": "400\n",
                }.items()
            },
            "proc/100/cgroup": "0::/job/a\n",
            "proc/101/cgroup": "0::/job/b\n",
            "proc/102/cgroup": "0::/job/b\n",
        },
    )
    return tmp_path


def told(probe: CgroupProbe, now_ns: int) -> dict[tuple[str, str], float]:
    """One read, by metric and group."""
    return {(r.metric.partition(".")[2], r.device): r.value for r in probe.read("cgroup", now_ns).readings}


def test_the_limit_that_binds_is_told_with_what_counts_against_it(tree: Path) -> None:
    """A quota and a limit above the rank's group are its own; two ranks in one group are told once."""
    probe = CgroupProbe(tree / "proc", tree / "sys")
    probe.set_ranks({0: 100, 1: 101, 2: 102})
    values = told(probe, 1)
    assert {device for _, device in values} == {"/job/a", "/job/b"}
    assert values["cpu_limit", "/job/a"] == 8
    assert values["cpu_throttled_periods", "/job/a"] == 3
    assert (values["memory_limit_bytes", "/job/a"], values["memory_bytes", "/job/a"]) == (1000, 900)
    write(tree, {"sys/fs/cgroup/job/a/cpu.max": "50000 100000", "sys/fs/cgroup/job/a/memory.max": "500"})
    assert told(probe, 2)["cpu_limit", "/job/a"] == 8, "limits are looked at anew in half a minute"
    later = told(probe, 40 * SECOND)
    assert (later["cpu_limit", "/job/a"], later["cpu_throttled_periods", "/job/a"]) == (0.5, 0)
    assert (later["memory_limit_bytes", "/job/a"], later["memory_bytes", "/job/a"]) == (500, 400)
    assert later["cpu_limit", "/job/b"] == 8
    probe.close()


def test_groups_come_and_go_with_the_ranks(tree: Path) -> None:
    """A rank that ended takes its group with it; a group that is removed while it is read is no error."""
    probe = CgroupProbe(tree / "proc", tree / "sys")
    probe.set_ranks({0: 100})
    assert {device for _, device in told(probe, 1)} == {"/job/a"}
    shutil.rmtree(tree / "sys/fs/cgroup/job/a")
    told(probe, 2)
    probe.set_ranks({0: 101})
    assert {device for _, device in told(probe, 3)} == {"/job/b"}
    probe.set_ranks({})
    assert told(probe, 4) == {}
    probe.set_ranks({0: 4711})
    assert told(probe, 5) == {}
    probe.close()


def test_a_group_outside_of_what_is_mounted_is_said_once(tree: Path) -> None:
    """An agent in a group namespace of its own cannot see the rank's: that is said, with what would help, once."""
    write(tree, {"proc/100/cgroup": "0::/../../job/a\n"})
    probe = CgroupProbe(tree / "proc", tree / "sys")
    probe.set_ranks({0: 100})
    ((_, outcome, reason),) = probe.read("cgroup", 1).outcomes
    assert outcome is Outcome.UNSUPPORTED
    assert "mount the host's there" in reason
    assert probe.read("cgroup", 60 * SECOND).outcomes == []
    probe.close()


def test_time_of_the_whole_host_is_not_a_ranks(tmp_path: Path) -> None:
    """Version 1: where CPU time is counted apart and the rank is in its root, the root's count is left out."""
    write(
        tmp_path,
        {
            "sys/fs/cgroup/memory/cgroup.procs": "",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "5",
            "sys/fs/cgroup/cpuacct/cpuacct.usage": "99",
            "sys/fs/cgroup/cpuacct/job/cpuacct.usage": "7",
            "proc/100/cgroup": "4:memory:/job\n2:cpuacct:/\n",
            "proc/101/cgroup": "4:memory:/job\n2:cpuacct:/job\n",
        },
    )
    probe = CgroupProbe(tmp_path / "proc", tmp_path / "sys")
    probe.set_ranks({0: 100})
    assert told(probe, 1) == {("memory_bytes", "/job"): 5}
    probe.set_ranks({0: 101})
    assert told(probe, 2) == {("memory_bytes", "/job"): 5, ("cpu_ns", "/job"): 7}
    probe.close()


def test_a_host_without_groups_is_unsupported(tmp_path: Path) -> None:
    """A kernel without control groups is one typed error."""
    with pytest.raises(Unsupported, match="no control groups"):
        CgroupProbe(tmp_path, tmp_path).read("cgroup", 0)
