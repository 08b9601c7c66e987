"""What kernel log lines say, in every published form."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rankscope.probes.kernel_log_lines import address, notice, parse, uuid_announced

UUID = "GPU-f1648d72-c7c8-9814-2832-7a062b009188"


def test_a_record_is_taken_apart() -> None:
    """Priority, sequence, microseconds and the text, its escapes undone."""
    record = parse(rb"6,1234,567890123,-;NVRM: \xc3\xa9tat\x0aline two \x5cx" + b"\n SUBSYSTEM=pci\n DEVICE=+pci:0\n")
    assert record is not None
    assert (record.priority, record.sequence, record.time_us) == (6, 1234, 567890123)
    assert record.text == "NVRM: \u00e9tat\nline two \\x"


@pytest.mark.parametrize("line", [b"", b" SUBSYSTEM=pci", b"6,1,2;no flags", b"x,1,2,-;text", b"6,1,2,-"])
def test_what_is_no_record_is_none(line: bytes) -> None:
    """Dictionary lines, noise and cut records are left out."""
    assert parse(line) is None


@given(st.binary())
@example(b"9" * 5000 + b",1,2,-;x")
def test_parse_raises_for_no_bytes(line: bytes) -> None:
    """Whatever stands in the log, reading goes on."""
    parse(line)


@given(st.integers(0, 191), st.integers(0, 2**62), st.integers(0, 2**62), st.text())
def test_a_record_as_the_kernel_escapes_it_comes_back(priority: int, sequence: int, time_us: int, text: str) -> None:
    """Every text survives the kernel's escaping of control characters, backslashes and bytes above ASCII."""
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    escaped = b"".join(b"%c" % c if 32 <= c < 127 and c != 0x5C else b"\\x%02x" % c for c in raw)
    record = parse(b"%d,%d,%d,c,caller=T1;%s\n" % (priority, sequence, time_us, escaped))
    assert record is not None
    assert (record.priority, record.sequence, record.time_us) == (priority, sequence, time_us)
    assert record.text == raw.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "number", "pci", "pid", "process", "message"),
    [
        (
            "NVRM: Xid (PCI:0000:1b:00): 79, pid=1582259, name=nvc:[driver], GPU has fallen off the bus.",
            79, "0000:1b:00", 1582259, "nvc:[driver]", "GPU has fallen off the bus.",
        ),
        (
            "NVRM: Xid (PCI:0000:03:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            79, "0000:03:00", None, None, "GPU has fallen off the bus.",
        ),
        ("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen", 79, "0000:01:00", None, None, "GPU has fallen"),
        ("NVRM: Xid (0000:03:00): 31, Ch 00000010, engmask 0", 31, "0000:03:00", None, None, "Ch 00000010, engmask 0"),
        ("NVRM: Xid (PCI:0000:02:00): 8, Channel 00000001", 8, "0000:02:00", None, None, "Channel 00000001"),
        ("NVRM: Xid (PCI:0000:01:00): 45, pid=9684, Ch 00000015", 45, "0000:01:00", 9684, None, "Ch 00000015"),
        (
            "NVRM: Xid (PCI:0000:01:00): 45, pid=9684, name=python3 -m x y, channel 0x00000015",
            45, "0000:01:00", 9684, "python3 -m x y", "channel 0x00000015",
        ),
        ("NVRM: GPU3 Xid (PCI:0000:C3:00): 13, Graphics Exception", 13, "0000:c3:00", None, None, "Graphics Exception"),
        ("[6085126.134786] NVRM: Xid (PCI:00000000:9D:00.0): 62, 023f0f30", 62, "0000:9d:00", None, None, "023f0f30"),
        ("NVRM: Xid (PCI:0000:9d:00): 63", 63, "0000:9d:00", None, None, None),
        (
            "NVRM: Xid (PCI:0000:9d:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
            154, "0000:9d:00", None, None, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
        ),
        (
            "NVRM: Xid (PCI:0018:01:00): 145, RLW_SRC_TRACK Nonfatal XC0 i0 Link 16 (0x1 0x2 0x3 0x4 0x5 0x6)",
            145, "0018:01:00", None, None, "RLW_SRC_TRACK Nonfatal XC0 i0 Link 16 (0x1 0x2 0x3 0x4 0x5 0x6)",
        ),
    ],
)  # fmt: skip
def test_xids_are_read_in_every_form(
    text: str, number: int, pci: str, pid: int | None, process: str | None, message: str | None
) -> None:
    """Number, address, process and message of each form the driver has printed over the years."""
    found = notice(text)
    assert found is not None
    assert (found.kind, found.pci) == ("xid", pci)
    assert found.attributes["number"] == number
    assert (found.attributes["pid"], found.attributes["process"]) == (pid, process)
    assert found.attributes["message"] == message


def test_an_xid_names_its_cause_and_its_instance() -> None:
    """The Xid it follows from, and the MIG instance, are kept."""
    text = "NVRM: Xid (PCI:0000:1b:00 GPU-I:02 GPU-CI:01): 43, pid=1, name=a, Ch 00000008 caused by previous Xid 94"
    found = notice(text)
    assert found is not None
    assert found.pci == "0000:1b:00"
    assert found.attributes["previous"] == 94
    assert (found.attributes["gpu_instance"], found.attributes["compute_instance"]) == (2, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "NVRM: Xid (PCI:0018:01:00): 145, RLW_SRC_TRACK Nonfatal XC0 i0 Link 16 (0x00000a62 0x4 0x3 0x4 0x5 0x6)",
            {"unit": "RLW_SRC_TRACK", "severity": "nonfatal", "link": 16, "injected": 0,
             "intr_info": "0x00000a62", "error_status": "0x4"},
        ),
        (
            "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link -1 (0x008b8446 0x0 0x0 0x0 0x0 0x0 0x0)",
            {"unit": "NETIR_LINK_EVT", "severity": "fatal", "link": -1, "injected": 0,
             "intr_info": "0x008b8446", "error_status": "0x0"},
        ),
        (
            ("NVRM: Xid (PCI:0000:c1:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 6"
            "(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"),
            {"severity": "fatal", "link": 6, "registers": "0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0"},
        ),
        (
            ("NVRM: Xid (PCI:0000:9d:00): 154, pid=3, name=a, GPU recovery action changed from 0x0 (None) to 0x2 "
            "(Node Reboot Required)"),
            {"action_before": 0, "action": 2, "action_text": "Node Reboot Required"},
        ),
        (
            "NVRM: Xid (PCI:0000:9d:00): 94, pid=7, name=b, Contained: CE User Channel (0x9). RST: Yes, D-RST: No",
            {"reset": 1},
        ),
        (
            ("NVRM: Xid (PCI:0000:9d:00): 13, pid=7, name=b, Graphics SM Warp Exception on (GPC 2, TPC 1, SM 0): "
            "Out Of Range Address"),
            {"unit": "GPC 2, TPC 1, SM 0"},
        ),
        (
            ("NVRM: Xid (PCI:0000:9d:00): 31, pid=7, name=b, Ch 0000001a, intr 00000000. MMU Fault: ENGINE GRAPHICS "
            "GPC5 GPCCLIENT_T1_6 faulted @ 0x7f2a_d8a80000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"),
            {"channel": 26, "address": "0x7f2a_d8a80000"},
        ),
        ("NVRM: Xid (0000:03:00): 14, Channel 00000001", {"channel": 1}),
    ],
)  # fmt: skip
def test_what_an_xids_message_says_is_taken_apart(text: str, said: dict[str, object]) -> None:
    """Links, units, registers, faults and recovery actions become attributes of their own."""
    found = notice(text)
    assert found is not None
    base = {"number", "message", "pid", "process"}
    assert {name: value for name, value in found.attributes.items() if name not in base} == said


def test_long_messages_are_bounded() -> None:
    """A line is the driver's to choose; what is recorded of it is not."""
    found = notice("NVRM: Xid (PCI:0000:1b:00): 13, pid=1, name=" + "n" * 5000 + ", " + "m" * 5000)
    assert found is not None
    assert all(len(str(value)) <= 400 for value in found.attributes.values())


def test_other_trouble_of_gpus_is_told() -> None:
    """A GPU that cannot be initialised, and what the driver says of links."""
    failed = notice("NVRM: GPU 0000:1b:00.0: RmInitAdapter failed! (0x26:0x56:1474)")
    assert failed is not None
    assert (failed.kind, failed.pci, failed.attributes) == (
        "gpu-init-failed", "0000:1b:00", {"code": "0x26:0x56:1474"},
    )  # fmt: skip
    link = notice("NVRM: GPU 0000:1b:00.0: knvlinkTrainLink: training of link 7 failed")
    assert link is not None
    assert (link.kind, link.pci, link.attributes["link"]) == ("nvlink-error", "0000:1b:00", 7)
    assert notice("nvidia-nvlink: Nvlink Core is being initialized, major device number 510") is None


def test_switch_errors_are_told_as_the_switchs() -> None:
    """An SXid names its switch and link and never a GPU; the register dump behind it is not another error."""
    found = notice("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO (First)")
    assert found is not None
    assert found.attributes == {
        "number": 28006,
        "message": "MC TS crumbstore MCTO (First)",
        "switch": "nvswitch3",
        "fatal": 0,
        "link": 46,
    }
    assert found.pci == "0000:c1:00"
    assert notice("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Data {0x00140004, 0x00100000}") is None
    assert notice("nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Severity 0 Engine instance 46") is None


@pytest.mark.parametrize(
    "text",
    [
        "NVRM: GPU 0000:03:00.0: GPU has fallen off the bus.",
        "NVRM: GPU at 0000:03:00.0 has fallen off the bus.",
        "NVRM: GPU at PCI:0000:03:00: GPU has fallen off the bus",
        (
            "NVRM: The NVIDIA GPU 0000:03:00.0\nNVRM: (PCI ID: 10de:2330) installed in this system has\n"
            "NVRM: fallen off the bus and is not responding to commands."
        ),
    ],
)
def test_a_gpu_off_the_bus_is_seen_without_an_xid(text: str) -> None:
    """Each wording of the driver is one event at that address."""
    found = notice(text)
    assert found is not None
    assert (found.kind, found.pci) == ("gpu-fallen-off", "0000:03:00")


@pytest.mark.parametrize("prefix", ["Out of memory", "Memory cgroup out of memory"])
def test_a_process_killed_for_memory_is_named(prefix: str) -> None:
    """Both wordings of the OOM killer give the process."""
    found = notice(f"{prefix}: Killed process 4711 (pt_main (x)), UID 0, total-vm:98kB")
    assert found is not None
    assert found.kind == "oom-kill"
    assert found.attributes["pid"] == 4711
    assert str(found.attributes["process"]).startswith("pt_main")


def test_a_hung_task_is_named() -> None:
    """A task blocked for long gives its name, which may hold colons, and its process id."""
    found = notice("INFO: task kworker/u4:2:991 blocked for more than 122 seconds.")
    assert found is not None
    assert found.kind == "hung-task"
    assert found.attributes == {"pid": 991, "process": "kworker/u4:2", "seconds": 122}


@pytest.mark.parametrize(
    "text",
    [
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  595.45",
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0",
        "eth0: Xid is not for us",
        "NVRM: Xid (PCI:0000:01:00): unreadable",
        "the bottle has fallen off the bus",
    ],
)
def test_other_lines_say_nothing(text: str) -> None:
    """Lines that only look alike are no events."""
    assert notice(text) is None


_PIECES = st.sampled_from(
    ["NVRM: ", "Xid ", "SXid ", "(PCI:", "0000:1b:00", "): ", "79", ", ", "pid=", "name=", "<unknown>", "'", "GPU-I:",
     "caused by previous Xid ", "fallen off the bus", "Out of memory: Killed process ", "(", ")", "INFO: task ", ":",
     " blocked for more than ", " seconds", "nvidia-nvswitch0: ", "9" * 30, "GPU at PCI:", UUID, "\n"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(_PIECES).map("".join)))
def test_no_text_makes_the_reading_of_lines_raise(text: str) -> None:
    """Arbitrary text, and arbitrary arrangements of what the driver prints, raise nothing."""
    notice(text)
    uuid_announced(text)
    address(text)


def test_the_driver_says_which_gpu_an_address_is() -> None:
    """The line before a GPU's first Xid maps its address to its UUID."""
    assert uuid_announced(f"NVRM: GPU at PCI:0000:01:00: {UUID}") == ("0000:01:00", UUID)
    assert uuid_announced("NVRM: GPU at PCI:0000:01:00: GPU has fallen off the bus") is None
