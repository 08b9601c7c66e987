"""InfiniBand and RoCE ports: their state, and counters that tell a fault from congestion from a slow receiver.

Names and meanings: kernel Documentation/ABI/stable/sysfs-class-infiniband; mlx5's hw_counters as NVIDIA's manual of its
Linux drivers describes them. A counter that the adapter does not keep is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rankscope.errors import Absent
from rankscope.probes.numbers import whole
from rankscope.probes.sysfs import children, read_number, read_text
from rankscope.reading import Event, Group, Priority, ProbeResult, Reading, Severity

_NS = 10**9
#: Ports that are read at most.
MAX_PORTS = 64
#: Data counters are in words of four bytes.
_WORD_BYTES = 4
#: An adapter that keeps data counters of 32 bits stops counting here, within seconds.
_SATURATED = (1 << 32) - 1

_COUNTERS = {
    "port_rcv_data": ("ib.rx_bytes", _WORD_BYTES),
    "port_xmit_data": ("ib.tx_bytes", _WORD_BYTES),
    "symbol_error": ("ib.symbol_errors", 1),
    "link_error_recovery": ("ib.link_error_recoveries", 1),
    "link_downed": ("ib.link_downed", 1),
    "port_rcv_errors": ("ib.receive_errors", 1),
    "port_rcv_remote_physical_errors": ("ib.remote_physical_errors", 1),
    "local_link_integrity_errors": ("ib.local_link_integrity_errors", 1),
    "excessive_buffer_overrun_errors": ("ib.buffer_overrun_errors", 1),
    "port_xmit_wait": ("ib.transmit_wait_ticks", 1),
    "port_xmit_discards": ("ib.transmit_discards", 1),
}
_HW_COUNTERS = {
    "out_of_sequence": "ib.out_of_sequence",
    "packet_seq_err": "ib.packet_sequence_errors",
    "local_ack_timeout_err": "ib.ack_timeouts",
    "req_transport_retries_exceeded": "ib.retries_exceeded",
    "rx_icrc_encapsulated": "ib.icrc_errors",
    "np_ecn_marked_roce_packets": "ib.ecn_marked_packets",
    "np_cnp_sent": "ib.cnps_sent",
    "rp_cnp_handled": "ib.cnps_handled",
    "out_of_buffer": "ib.out_of_buffer",
    "rnr_nak_retry_err": "ib.rnr_naks",
    # Elastic Fabric Adapters (the efa driver of Linux), which keep nothing under counters/. Their bytes are bytes.
    "rx_bytes": "ib.rx_bytes",
    "tx_bytes": "ib.tx_bytes",
    "retrans_pkts": "ib.retransmitted_packets",
    "retrans_timeout_events": "ib.ack_timeouts",
    "unresponsive_remote_events": "ib.retries_exceeded",
}
_STATE = re.compile(r"(\d{1,2}): ?([A-Za-z_ ]{1,32})")
_RATE = re.compile(r"(\d{1,5}(?:\.\d{1,3})?) Gb/sec")
_ACTIVE = 4


def parse_state(text: str) -> tuple[int, str] | None:
    """Number and word of a state or phys_state file ("4: ACTIVE"), or None. Never raises."""
    match = _STATE.match(text)
    return None if match is None else (int(match[1]), match[2].strip())


def parse_rate(text: str) -> float | None:
    """Bits a second of a rate file ("200 Gb/sec (4X HDR)"), or None. Never raises."""
    match = _RATE.match(text)
    return None if match is None else float(match[1]) * 1e9


class InfinibandProbe:
    """Probe of the ports of every RDMA device."""

    name = "infiniband"
    groups: Sequence[Group] = (
        Group(
            "ports",
            5 * _NS,
            _NS,
            "25 files a port, and the adapter's firmware answers for some; all are counters",
            Priority.HIGH,
        ),
    )

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._devices = sys / "class/infiniband"
        self._states: dict[str, tuple[int, str]] = {}

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """Every port now. Raises Absent without an RDMA device, PermissionDenied, ProbeError."""
        ports = [port for device in children(self._devices) for port in children(device / "ports", "[0-9]*")]
        if not ports:
            raise Absent("no InfiniBand or RoCE device here", where=str(self._devices))
        readings: list[Reading] = []
        events: list[Event] = []
        for port in ports[:MAX_PORTS]:
            name = f"{port.parent.parent.name}/{port.name}"
            state = parse_state(read_text(port / "state") or "")
            values = _values(port)
            if state is not None:
                values["ib.port_state"] = state[0]
                events += self._changed(name, state, now_ns)
            readings += [Reading(metric, value, now_ns, name) for metric, value in values.items()]
        return ProbeResult(readings, events)

    def close(self) -> None:
        """Nothing is held."""

    def _changed(self, name: str, state: tuple[int, str], now_ns: int) -> list[Event]:
        """An event where a port came up or went down since the last read."""
        before = self._states.get(name, state)
        self._states[name] = state
        up = state[0] == _ACTIVE
        if up == (before[0] == _ACTIVE):
            return []
        attributes: dict[str, str | int | float | None] = {
            "state": "up" if up else "down",
            "interface": name,
            "source": "sysfs",
            "before": before[1],
            "now": state[1],
        }
        text = f"port {name} went from {before[1]} to {state[1]}"
        severity = Severity.INFO if up else Severity.CRITICAL
        return [Event("network-link", now_ns, text, severity, name, attributes=attributes)]


def _values(port: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    physical = parse_state(read_text(port / "phys_state") or "")
    if physical is not None:
        values["ib.physical_state"] = physical[0]
    rate = parse_rate(read_text(port / "rate") or "")
    if rate is not None:
        values["ib.rate_bits_per_second"] = rate
    for name, (metric, unit) in _COUNTERS.items():
        # "N/A (no PMA)" where the firmware keeps none.
        count = whole(read_text(port / "counters" / name) or "")
        if count is not None and not (unit == _WORD_BYTES and count == _SATURATED):
            values[metric] = count * unit
    for name, metric in _HW_COUNTERS.items():
        count = read_number(port / "hw_counters" / name)
        if count is not None:
            values.setdefault(metric, count)
    return values
