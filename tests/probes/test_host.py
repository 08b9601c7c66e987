"""Host probes: pure parsing, fixture trees, and this machine's own /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from rankscope.errors import PermissionDenied, ProbeError, Unsupported
from rankscope.metrics import METRICS
from rankscope.probes import cpu, disk, memory, network, pressure
from rankscope.probes.held_file import HeldFile
from rankscope.probes.sysfs import read_text
from rankscope.reading import Outcome, Probe

STAT = """cpu  100 20 30 400 50 6 7 8 9 10
cpu0 50 10 15 200 25 3 3 4 4 5
cpu1 50 10 15 200 25 3 4 4 5 5
intr 12345 0 0
ctxt 99
procs_running 3
procs_blocked 1
"""
MEMINFO = (
    "MemTotal:       24689764 kB\nMemFree:         100 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       0\n"
)
VMSTAT = "nr_free_pages 5\npgmajfault 17\npswpin 4\npswpout 9\n"
PRESSURE = "some avg10=0.05 avg60=0.16 avg300=0.72 total=32480267\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=12\n"
DISKSTATS = """   7       0 loop0 5 0 40 1 0 0 0 0 0 1 1 0 0 0 0 0 0
 259       0 nvme0n1 10 1 80 12 20 2 160 34 1 25 46 0 0 0 0 0 0
 259       1 nvme0n1p1 9 1 72 11 19 2 150 33 1 24 45 0 0 0 0 0 0
   8       0 sda 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
   8       1 sda1 3 0 24 1 0 0 0 0 0 1 1 0 0 0 0 0 0
 253       0 dm-0 3 0 24 1 0 0 0 0 0 1 1 0 0 0 0 0 0
"""
NET = """Inter-|   Receive                            |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:    9748     113    0    0    0     0          0         0     9748     113    0    0    0     0       0    0
  eth0: 1000 10 1 2 0 0 0 0 2000 20 4 8 0 0 0 0
veth12: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0
"""


def test_cpu_time_leaves_idle_waiting_and_stolen_time_out() -> None:
    """Busy is user, nice, system and interrupts; guest time is not counted twice."""
    assert cpu.parse(STAT, 100) == {
        "host.cpu_busy_ns": (100 + 20 + 30 + 6 + 7) * 10**7,
        "host.cpu_iowait_ns": 50 * 10**7,
        "host.cpu_steal_ns": 8 * 10**7,
        "host.cpu_count": 2,
        "host.load_runnable": 3,
        "host.threads_blocked": 1,
        "host.context_switches": 99,
    }


def test_memory_is_in_bytes() -> None:
    """kB become bytes; what stands only in the other file is not invented."""
    assert memory.parse_meminfo(MEMINFO) == {
        "host.memory_total_bytes": 24689764 * 1024,
        "host.memory_available_bytes": 20000000 * 1024,
    }
    assert memory.parse_vmstat(VMSTAT) == {
        "host.major_faults": 17,
        "host.swap_in_pages": 4,
        "host.swap_out_pages": 9,
    }
    assert memory.parse_vmstat("allocstall_dma 1\nallocstall_normal 2\nallocstall_movable 4\n") == {
        "host.reclaim_stalls": 7
    }


def test_pressure_totals_are_in_nanoseconds() -> None:
    """Microseconds become nanoseconds, for some and full."""
    assert pressure.parse(PRESSURE) == {"some": 32480267000, "full": 12000}


def test_only_whole_disks_are_read() -> None:
    """Partitions, loop and mapped devices are left out; sectors and milliseconds are converted."""
    disks = disk.parse(DISKSTATS)
    assert set(disks) == {"nvme0n1", "sda"}
    assert disks["nvme0n1"] == {
        "disk.reads": 10,
        "disk.read_bytes": 80 * 512,
        "disk.read_ns": 12 * 10**6,
        "disk.writes": 20,
        "disk.write_bytes": 160 * 512,
        "disk.write_ns": 34 * 10**6,
        "disk.in_flight": 1,
        "disk.busy_ns": 25 * 10**6,
        "disk.queue_ns": 46 * 10**6,
        "disk.flushes": 0,
        "disk.flush_ns": 0,
    }
    assert "disk.flushes" not in disk.parse("8 0 sda 1 0 0 0 0 0 0 0 0 0 0")["sda"], "before Linux 5.5"


@pytest.mark.parametrize(
    ("name", "whole"),
    [("vda", True), ("sdab", True), ("nvme10n1", True), ("mmcblk0", True), ("nvme0n1p2", False), ("sda1", False),
     ("mmcblk0p1", False), ("dm-3", False), ("md0", False), ("loop7", False), ("zram0", False), ("sr0", False)],
)  # fmt: skip
def test_partitions_and_stacked_devices_are_no_disks(name: str, whole: bool) -> None:
    """A device is counted once: as the disk itself."""
    assert disk.is_whole_disk(name) is whole


def test_network_counts_both_ways_and_no_container_links() -> None:
    """Errors and drops are summed over both directions; loopback and veth pairs are left out."""
    assert network.parse(NET) == {
        "eth0": {
            "net.rx_bytes": 1000,
            "net.tx_bytes": 2000,
            "net.errors": 5,
            "net.drops": 10,
            "net.overruns": 0,
            "net.frame_errors": 0,
        }
    }


def probes(proc: Path) -> list[Probe]:
    """The probes of host-wide sources."""
    return [
        cpu.CpuProbe(proc),
        memory.MemoryProbe(proc),
        pressure.PressureProbe(proc),
        disk.DiskProbe(proc),
        network.NetworkProbe(proc),
    ]


def test_every_host_metric_is_read_from_a_tree(tmp_path: Path) -> None:
    """Over a fixture tree the probes give metrics of the vocabulary, and keep up with it."""
    files = {"stat": STAT, "meminfo": MEMINFO, "vmstat": VMSTAT, "diskstats": DISKSTATS, "net/dev": NET} | {
        f"pressure/{resource}": PRESSURE for resource in pressure.RESOURCES
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    listed = probes(tmp_path)
    results = [probe.read(probe.groups[0].name, 7) for probe in listed]
    readings = [reading for result in results for reading in result.readings]
    assert {reading.metric for reading in readings} <= set(METRICS)
    assert {reading.time_ns for reading in readings} == {7}
    assert {reading.device for reading in readings} == {"", "nvme0n1", "eth0"}
    (tmp_path / "vmstat").write_text(VMSTAT.replace("17", "18"))
    again = {r.metric: r.value for r in listed[1].read("memory", 8).readings}
    assert again["host.major_faults"] == 18
    for probe in listed:
        probe.close()


def test_this_machines_proc_is_read() -> None:
    """On the running kernel the values agree with psutil's, and counters do not fall."""
    listed = probes(Path("/proc"))
    first = {(r.metric, r.device): r.value for p in listed for r in p.read(p.groups[0].name, 0).readings}
    assert first["host.cpu_count", ""] == psutil.cpu_count()
    assert first["host.memory_total_bytes", ""] == psutil.virtual_memory().total
    busy = sum(psutil.cpu_times()[:3])
    assert first["host.cpu_busy_ns", ""] / 1e9 == pytest.approx(busy, rel=0.2)
    interfaces = {device for metric, device in first if metric.startswith("net.")}
    assert interfaces <= set(psutil.net_io_counters(pernic=True))
    second = {(r.metric, r.device): r.value for p in listed for r in p.read(p.groups[0].name, 0).readings}
    for key, value in first.items():
        if METRICS[key[0]].counter:
            assert second[key] >= value, key
    for probe in listed:
        probe.close()


def test_a_kernel_without_pressure_is_said_once_a_resource(tmp_path: Path) -> None:
    """Missing pressure files are one outcome each, then silence, and the ones that are there are read."""
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/io").write_text(PRESSURE)
    probe = pressure.PressureProbe(tmp_path)
    first, second = probe.read("pressure", 1), probe.read("pressure", 2)
    assert [outcome for _, outcome, _ in first.outcomes] == [Outcome.UNSUPPORTED] * 2
    assert second.outcomes == []
    assert {r.metric for r in second.readings} == {"host.pressure_io_some_ns", "host.pressure_io_full_ns"}
    probe.close()


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    """What the kernel does not offer is Unsupported, with the path in the line."""
    with pytest.raises(Unsupported, match="diskstats"):
        disk.DiskProbe(tmp_path).read("disk", 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_may_not_be_read_is_a_typed_error(tmp_path: Path) -> None:
    """A refusal is told apart from absence."""
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "stat").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises((PermissionDenied, Unsupported)) as caught:
            HeldFile(tmp_path / "stat").read()
    finally:
        os.seteuid(0)
    assert isinstance(caught.value, PermissionDenied)


def test_a_long_file_is_read_whole(tmp_path: Path) -> None:
    """A file longer than one read is put together."""
    text = "x" * 200_000
    (tmp_path / "long").write_text(text)
    file = HeldFile(tmp_path / "long")
    assert file.read() == text
    file.close()


def test_a_held_file_of_a_dead_process_never_reads_as_another() -> None:
    """The file of a process that is gone fails; it does not become that of whoever has its id next."""
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    file = HeldFile(Path(f"/proc/{pid}/stat"))
    assert file.read().startswith(f"{pid} ")
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    with pytest.raises(ProbeError):
        file.read()
    file.close()


def test_what_the_kernel_makes_line_by_line_is_read_whole() -> None:
    """A file of /proc that is longer than a page comes in pieces, and is put together."""
    path = Path("/proc/self/smaps")
    text = read_text(path)
    assert text is not None
    assert len(text) > 3 * os.sysconf("SC_PAGE_SIZE")
    assert text.rstrip().splitlines()[-1].startswith("VmFlags"), "the last mapping is there to its end"
    assert read_text(Path("/proc/self/none")) is None
    assert read_text(Path("/proc/self/task")) is None, "a directory says nothing"
