"""Events of a GPU: bits on every driver, structured ones where the driver has them."""

from __future__ import annotations

from pathlib import Path

from watched_nvml import WatchNode

from rankscope.reading import Severity
from rankscope.simulator.state import NodeState

RECOVERY_ACTION = 0x8000
CLOCK_CHANGE = 0x10


def test_a_structured_event_says_what_it_is(tmp_path: Path, watch: WatchNode) -> None:
    """Module, code, severity, the Xid it carries and what it is within its group arrive; telemetry is left out."""
    node = NodeState.create(tmp_path / "n", profile="B200", gpus=2, driver="595.45.04")
    watched = watch(node)
    node.push_structured_event(1, "NVLINK", 17, log_level=10)
    node.push_structured_event(1, "FB", 23, severity=40, legacy_xid=48, attributes=0x21)
    watched.read_until(lambda: "gpu-event" in watched.kinds())
    (event,) = (event for event in watched.events if event.kind == "gpu-event")
    assert (event.device, event.severity) == (node.gpus[1].uuid, Severity.CRITICAL)
    told = {key: event.attributes[key] for key in ("source_module", "event_code", "severity", "xid", "flags", "pci")}
    assert told == {
        "source_module": "FB",
        "event_code": 23,
        "severity": "fatal",
        "xid": 48,
        "flags": "uncontained,primary",
        "pci": node.gpus[1].kernel_pci_id,
    }


def test_an_xid_stays_an_xid_beside_structured_events(tmp_path: Path, watch: WatchNode) -> None:
    """The same wait tells of both: the Xid as ever, with its GPU."""
    node = NodeState.create(tmp_path / "n", profile="H100-SXM5-80GB", gpus=2, driver="595.45.04")
    watched = watch(node)
    node.push_event(0, 94)
    node.push_structured_event(0, "FB", 24)
    watched.read_until(lambda: {"xid", "gpu-event"} <= set(watched.kinds()))
    (xid,) = (event for event in watched.events if event.kind == "xid")
    assert (xid.device, xid.attributes["number"]) == (node.gpus[0].uuid, 94)


def test_an_older_driver_tells_by_event_bits(node: NodeState, watch: WatchNode) -> None:
    """Without structured events a changed recovery action is an event all the same; clock changes are none."""
    watched = watch(node)
    node.push_structured_event(2, "FB", 25)
    node.push_event(2, 0, event_type=CLOCK_CHANGE)
    node.push_event(2, 0, event_type=RECOVERY_ACTION)
    watched.read_until(lambda: "gpu-event" in watched.kinds())
    (event,) = (event for event in watched.events if event.kind == "gpu-event")
    assert (event.device, event.attributes["event"]) == (node.gpus[2].uuid, "recovery-action")
