"""What lines about the host report, in the forms Linux and Lustre print, old and new."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.probes.kernel_log_host import host_notice, oom_context
from rankscope.reading import EVENT_KINDS

AER = "PCIe Bus Error: severity="
EDAC = "memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0 (channel:1 slot:0 page:0x12345 offset:0x0)"

CASES = [
    (
        ("Memory cgroup out of memory: Killed process 91 (pt_main) total-vm:98304000kB, anon-rss:61440000kB, "
        "file-rss:0kB, shmem-rss:8192kB, UID:1000 pgtables:121344kB oom_score_adj:0"),
        "oom-kill",
        {"pid": 91, "process": "pt_main", "scope": "cgroup", "resident_bytes": 61440000 * 1024},
    ),
    (
        "Killed process 91 (pt_main) total-vm:98kB, anon-rss:61kB, file-rss:0kB, shmem-rss:8192kB",
        "oom-kill",
        {"pid": 91, "process": "pt_main", "resident_bytes": 61 * 1024},
    ),
    (
        "INFO: task python3:55 blocked in I/O wait for more than 122 seconds.",
        "hung-task",
        {"pid": 55, "process": "python3", "seconds": 122},
    ),
    (
        "watchdog: BUG: soft lockup - CPU#13 stuck for 26s! [python3:777]",
        "cpu-lockup",
        {"lockup": "soft", "cpu": 13, "seconds": 26, "pid": 777, "process": "python3"},
    ),
    (
        "NMI watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [kworker/0:1:9]",
        "cpu-lockup",
        {"lockup": "soft", "cpu": 0, "seconds": 22, "pid": 9, "process": "kworker/0:1"},
    ),
    ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 3", "cpu-lockup", {"lockup": "hard", "cpu": 3}),
    ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "cpu-lockup", {"lockup": "rcu"}),
    (
        ("pt_main_thread[4711]: segfault at 10 ip 00007f1c0a sp 00007ffd error 4 in libcudart.so.12[7f1c0+c8] likely "
        "on CPU 3 (core 3, socket 0)"),
        "process-fault",
        {"pid": 4711, "process": "pt_main_thread", "fault": "segfault", "where": "libcudart.so.12"},
    ),
    (
        "traps: python3[12] general protection fault ip:7f1c0a sp:7ffd error:0 in libc.so.6[7f1c0+1c8000]",
        "process-fault",
        {"pid": 12, "process": "python3", "fault": "general protection", "where": "libc.so.6"},
    ),
    (
        "traps: python3[12] trap invalid opcode ip:7f1c0a sp:7ffd error:0 in x.so[7f1c0+1c8000]",
        "process-fault",
        {"pid": 12, "process": "python3", "fault": "invalid opcode", "where": "x.so"},
    ),
    (
        f"nvidia 0000:1b:00.0: {AER}Corrected, type=Physical Layer, (Receiver ID)",
        "pcie-error",
        {"severity": "correctable", "layer": "Physical Layer", "agent": "Receiver ID"},
    ),
    (
        f"nvidia 0000:1b:00.0: {AER}Correctable, type=Data Link Layer, (Transmitter ID)",
        "pcie-error",
        {"severity": "correctable", "layer": "Data Link Layer", "agent": "Transmitter ID"},
    ),
    (
        f"mlx5_core 0000:a1:00.1: {AER}Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)",
        "pcie-error",
        {"severity": "nonfatal", "layer": "Transaction Layer", "agent": "Requester ID"},
    ),
    (
        f"pcieport 0000:00:01.0: {AER}Uncorrected (Fatal), type=Transaction Layer, id=0008(Requester ID)",
        "pcie-error",
        {"severity": "fatal", "layer": "Transaction Layer", "agent": "Requester ID"},
    ),
    ("pcieport 0000:00:01.0: AER: device recovery failed", "pcie-error", {"severity": "fatal", "recovered": 0}),
    ("pcieport 0000:00:1c.0: pciehp: Slot(5-1): Link Down", "pcie-link", {"slot": "5-1", "state": "down"}),
    ("pcieport 0000:00:1c.0: pciehp: Slot(5-1): Card present", "pcie-link", {"slot": "5-1", "state": "up"}),
    (
        f"EDAC MC0: 3 CE {EDAC}",
        "memory-error",
        {"severity": "corrected", "controller": "mc0", "count": 3, "dimm": "CPU_SrcID#0_MC#0_Chan#1_DIMM#0"},
    ),
    (
        "EDAC MC1: 1 UE memory scrubbing error on DIMM_A1",
        "memory-error",
        {"severity": "uncorrected", "controller": "mc1", "count": 1, "dimm": "DIMM_A1"},
    ),
    (
        "mce: [Hardware Error]: CPU 3: Machine Check: 0 Bank 7: 8c00004000010090",
        "machine-check",
        {"severity": "corrected", "cpu": 3, "bank": 7, "status": "0x8c00004000010090"},
    ),
    (
        "mce: [Hardware Error]: CPU 2: Machine Check Exception: 5 Bank 4: be00000000800400",
        "machine-check",
        {"severity": "fatal", "cpu": 2, "bank": 4, "status": "0xbe00000000800400"},
    ),
    (
        "[Hardware Error]: CPU:2 (17:31:0) MC17_STATUS[Over|CE|MiscV|AddrV|-|-|SyndV|CECC]: 0xdc2040000000011b",
        "machine-check",
        {"severity": "corrected", "cpu": 2, "bank": 17, "status": "0xdc2040000000011b"},
    ),
    ("{1}[Hardware Error]: event severity: fatal", "machine-check", {"severity": "fatal"}),
    ("{4}[Hardware Error]: event severity: recoverable", "machine-check", {"severity": "uncorrected"}),
    (
        "mce: CPU7: Package temperature above threshold, cpu clock throttled (total events = 1204)",
        "cpu-throttled",
        {"cpu": 7, "scope": "package", "count": 1204},
    ),
    (
        "CPU7: Core temperature is above threshold, cpu clock is throttled (total events = 4)",
        "cpu-throttled",
        {"cpu": 7, "scope": "core", "count": 4},
    ),
    (
        "mlx5_core 0000:a1:00.0 ens1f0np0: Link down",
        "network-link",
        {"state": "down", "interface": "ens1f0np0", "source": "kernel-log"},
    ),
    (
        "igb 0000:41:00.0 eth0: igb: eth0 NIC Link is Up 1000 Mbps Full Duplex",
        "network-link",
        {"state": "up", "interface": "eth0", "source": "kernel-log"},
    ),
    (
        "nfs: server fs-17.example not responding, still trying",
        "storage-server",
        {"filesystem": "nfs", "server": "fs-17.example", "state": "silent"},
    ),
    ("nfs: server fs-17 OK", "storage-server", {"filesystem": "nfs", "server": "fs-17", "state": "ok"}),
    (
        ("Lustre: scratch-OST0001-osc-ffff8881: Connection to scratch-OST0001 (at 10.1.1.1@o2ib) was lost; in progress "
        "operations using this service will wait for recovery to complete"),
        "storage-server",
        {"filesystem": "lustre", "server": "scratch-OST0001", "state": "lost"},
    ),
    (
        "Lustre: scratch-OST0001-osc-ffff8881: Connection restored to 10.1.1.1@o2ib (at 10.1.1.1@o2ib)",
        "storage-server",
        {"filesystem": "lustre", "server": "10.1.1.1@o2ib", "state": "ok"},
    ),
    (
        ("LustreError: 167-0: scratch-OST0001-osc-ffff8881: This client was evicted by scratch-OST0001; in progress "
        "operations using this service will fail."),
        "storage-server",
        {"filesystem": "lustre", "server": "scratch-OST0001", "state": "lost"},
    ),
    (
        "I/O error, dev nvme0n1, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2",
        "disk-error",
        {"disk": "nvme0n1", "error": "I/O error"},
    ),
    (
        "blk_update_request: critical medium error, dev sda, sector 5 op 0x0:(READ) flags 0x0",
        "disk-error",
        {"disk": "sda", "error": "critical medium error"},
    ),
    (
        "nvme nvme0: I/O tag 12 (000c) opcode 0x2 (I/O Cmd) QID 3 timeout, aborting req_op:READ(0) size:4096",
        "disk-error",
        {"disk": "nvme0", "error": "I/O tag 12 (000c) opcode 0x2 (I/O Cmd) QID 3 timeout"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "attributes"), CASES, ids=[case[0][:40] for case in CASES])
def test_lines_about_the_host_are_read(text: str, kind: str, attributes: dict[str, object]) -> None:
    """Kind and attributes of each form; the kind is one of the vocabulary."""
    found = host_notice(text)
    assert found is not None
    assert (found.kind, found.attributes) == (kind, attributes)
    assert kind in EVENT_KINDS


def test_every_named_attribute_is_documented() -> None:
    """An attribute that a line gives stands in the description of its kind."""
    for _, kind, attributes in CASES:
        words = set(EVENT_KINDS[kind].replace(",", " ").replace("(", " ").replace(":", " ").split())
        missing = {name for name in attributes if name not in words} - {"recovered"}
        assert not missing, kind


@pytest.mark.parametrize(
    "text",
    [
        "python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "Memory cgroup out of memory: Kill process 91 (pt_main) score 1001 or sacrifice child",
        "oom_reaper: reaped process 91 (pt_main), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
        "Task in /kubepods killed as a result of limit of /kubepods",
        "pcieport 0000:00:1c.0: AER: Corrected error received: 0000:01:00.0",
        "nvidia 0000:1b:00.0:   device [10de:2330] error status/mask=00000001/0000a000",
        "EDAC sbridge MC3: PROCESSOR 0:306e7 TIME 1422553404 SOCKET 0 APIC 0",
        "mce: CPU7: Core temperature/speed normal",
        "{1}[Hardware Error]: event severity: info",
        "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 1",
        "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
        "nfs: Deprecated parameter 'intr'",
        "systemd[1]: Reached target Local File Systems.",
        "EXT4-fs (vda): mounted filesystem without journal. Quota mode: none.",
        "EXT4-fs (vda): re-mounted. errors=remount-ro",
    ],
)
def test_lines_that_add_nothing_say_nothing(text: str) -> None:
    """First and last lines of a report, and ordinary news, are no events of their own."""
    assert host_notice(text) is None


def test_the_groups_of_a_kill_are_read() -> None:
    """The line before the kill says whose limit it was; lists with commas do not shift what follows."""
    assert oom_context(
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=0-2,4,cpuset=/jobs,mems_allowed=0,2-4,oom_memcg=/jobs/a,"
        "task_memcg=/jobs/a/b,task=python3,pid=10,uid=1000"
    ) == (10, {"scope": "cgroup", "cgroup": "/jobs/a", "task_cgroup": "/jobs/a/b"})
    assert oom_context(
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=x,"
        "pid=10,uid=0"
    ) == (10, {"scope": "host", "cgroup": None, "task_cgroup": "/"})
    assert oom_context("oom-kill:constraint=CONSTRAINT_NONE") is None


_PIECES = st.sampled_from([*{word for text, _, _ in CASES for word in text.split(" ")}, " ", "9" * 30, "\n", "(", "["])


@given(st.one_of(st.text(), st.lists(_PIECES, max_size=12).map(" ".join)))
def test_no_text_makes_the_reading_of_host_lines_raise(text: str) -> None:
    """Arbitrary text, and arbitrary arrangements of the kernel's words, raise nothing and stay bounded."""
    oom_context(text)
    if (found := host_notice(text)) is not None:
        assert found.kind in EVENT_KINDS
        assert all(len(str(value)) <= 400 for value in found.attributes.values())
