"""Records become events: the GPU is named, two lines of one kill are one event, a storm stays bounded."""

from __future__ import annotations

from rankscope.probes.kernel_log_events import MAX_ALIKE, EventMaker, Folded
from rankscope.probes.kernel_log_record import KernelRecord
from rankscope.reading import Event

UUID = "GPU-f1648d72-c7c8-9814-2832-7a062b009188"


def event(maker: EventMaker, text: str, *, history: bool = False) -> Event | None:
    """The event of one line."""
    return maker.event(KernelRecord(4, 1, 5, text), 7, history=history)


def test_a_kill_is_one_event_with_its_groups() -> None:
    """The line before names the control groups; the one that names the process is the event."""
    maker = EventMaker(lambda _: None)
    groups = "oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/main,task=python3,pid=4711,uid=0"
    assert (
        event(maker, f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,{groups}") is None
    )
    killed = event(maker, "Memory cgroup out of memory: Killed process 4711 (python3) total-vm:9kB, anon-rss:8kB, x")
    assert killed is not None
    assert killed.attributes == {
        "pid": 4711,
        "process": "python3",
        "scope": "cgroup",
        "resident_bytes": 8192,
        "cgroup": "/kubepods/pod1",
        "task_cgroup": "/kubepods/pod1/main",
    }
    again = event(maker, "Memory cgroup out of memory: Killed process 4711 (python3) total-vm:9kB, anon-rss:8kB, x")
    assert again is not None
    assert "cgroup" not in again.attributes, "what was said of another kill is not this one's"


def test_kills_that_are_never_named_are_forgotten() -> None:
    """A lost second line costs nothing for ever."""
    maker = EventMaker(lambda _: None)
    for pid in range(10_000):
        groups = f"oom_memcg=/a,task_memcg=/a,task=x,pid={pid},uid=0"
        event(maker, f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,{groups}")
    assert len(maker._kills) <= 64


def test_devices_are_named() -> None:
    """A GPU by its UUID, another PCI device by its address, the rest by what it is called."""
    maker = EventMaker({"0000:1b:00": UUID}.get)
    bus = "PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)"
    named = {
        f"nvidia 0000:1b:00.0: {bus}": UUID,
        f"mlx5_core 0000:a1:00.1: {bus}": "0000:a1:00.1",
        "NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.": UUID,
        "NVRM: Xid (PCI:0000:2b:00): 79, GPU has fallen off the bus.": "",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 x": "nvswitch3",
        "mlx5_core 0000:a1:00.0 ens1: Link down": "ens1",
        "I/O error, dev nvme0n1, sector 2048": "nvme0n1",
        "EDAC MC1: 1 UE memory error on DIMM_A1": "mc1",
        "nfs: server fs-17 OK": "fs-17",
        "INFO: task a:1 blocked for more than 122 seconds.": "",
    }
    for text, device in named.items():
        made = event(maker, text)
        assert made is not None
        assert made.device == device, text
    bus_error = event(maker, f"nvidia 0000:1b:00.0: {bus}", history=True)
    assert bus_error is not None
    assert (bus_error.attributes["pci"], bus_error.attributes["history"]) == ("0000:1b:00.0", 1)


def test_a_storm_is_counted_and_not_kept() -> None:
    """Of 5000 alike events a few are kept and the last says how many more there were; others are told apart."""
    maker, folded = EventMaker(lambda _: None), Folded()
    line = "pcieport 0000:00:01.0: PCIe Bus Error: severity={}, type=Physical Layer, (Receiver ID)"
    for _ in range(5000):
        for severity in ("Corrected", "Uncorrected (Fatal)"):
            made = event(maker, line.format(severity))
            assert made is not None
            folded.add(made)
    assert len(folded.events) == 2 * MAX_ALIKE
    assert [e.attributes.get("repeated") for e in folded.events[-2:]] == [5000 - MAX_ALIKE] * 2
    assert sum(1 + int(e.attributes.get("repeated") or 0) for e in folded.events) == 10_000


def test_long_lines_are_cut() -> None:
    """An event holds a bounded text."""
    made = event(EventMaker(lambda _: None), "NVRM: Xid (PCI:0000:2b:00): 79, " + "x" * 9000)
    assert made is not None
    assert len(made.text) == 1024
