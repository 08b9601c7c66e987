"""Network interfaces (/proc/net/dev, /sys/class/net, ethtool) and what TCP and UDP lost (/proc/net/{snmp,netstat})."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rankscope.errors import Absent, Unsupported
from rankscope.probes import ethtool
from rankscope.probes.held_file import HeldFile
from rankscope.probes.numbers import whole
from rankscope.probes.sysfs import children, read_number, read_text
from rankscope.reading import Group, Priority, ProbeResult, Reading

_NS = 10**9
_MEGA = 10**6
# The host's ends of containers' links: one a container, so unbounded, and their bytes pass a real interface too.
_CONTAINER_LINKS = ("veth", "cali", "lxc", "cni", "docker", "br-", "virbr", "ifb", "tap", "vnet")
#: Protocol -> counter -> metric.
_STACK = {
    "Tcp": {"OutSegs": "net.tcp_segments_sent", "RetransSegs": "net.tcp_segments_retransmitted"},
    "TcpExt": {"TCPTimeouts": "net.tcp_timeouts", "PruneCalled": "net.tcp_receive_prunes"},
    "Udp": {"RcvbufErrors": "net.udp_buffer_errors", "SndbufErrors": "net.udp_buffer_errors"},
}


def is_told(interface: str) -> bool:
    """Whether an interface is one of the host's own: not loopback, and no container's link."""
    return interface not in ("", "lo") and not interface.startswith(_CONTAINER_LINKS)


def parse(text: str) -> dict[str, dict[str, int]]:
    """Interface -> metric -> value of a /proc/net/dev, loopback and containers' links left out. Never raises.

    Columns: receive bytes packets errs drop fifo frame compressed multicast, then transmit bytes packets errs drop fifo
    colls carrier compressed.
    """
    interfaces: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        name, colon, rest = line.rpartition(":")
        name, columns = name.strip(), rest.split()
        if not colon or not is_told(name):
            continue
        count = [number for column in columns[:13] if (number := whole(column)) is not None]
        if len(count) == 13:
            interfaces[name] = {
                "net.rx_bytes": count[0],
                "net.tx_bytes": count[8],
                "net.errors": count[2] + count[10],
                "net.drops": count[3] + count[11],
                "net.overruns": count[4] + count[12],
                "net.frame_errors": count[5],
            }
    return interfaces


def parse_stack(text: str) -> dict[str, int]:
    """Metric -> value of a /proc/net/snmp or netstat: a line of names and one of values a protocol. Never raises."""
    values: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for line in text.splitlines():
        protocol, _, rest = line.partition(":")
        metrics = _STACK.get(protocol)
        if metrics is None:
            continue
        if protocol not in names:
            names[protocol] = rest.split()
            continue
        counters = dict(zip(names.pop(protocol), rest.split(), strict=False))
        for name, metric in metrics.items():
            number = whole(counters.get(name, ""))
            if number is not None:
                values[metric] = values.get(metric, 0) + number
    return values


class NetworkProbe:
    """Probe of the network interfaces and protocols of the agent's own network namespace."""

    name = "network"
    groups: Sequence[Group] = (
        Group("network", _NS, _NS // 2, "counters: a read loses only when in the period it was"),
        Group("stack", 2 * _NS, _NS, "counters of the whole host"),
        Group("pauses", 5 * _NS, _NS, "counters; the driver asks the adapter's firmware for them"),
        Group(
            "links", 10 * _NS, 2 * _NS, "a link that flapped has counted it; the kernel log tells when", Priority.LOW
        ),
    )

    def __init__(
        self,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        *,
        counters_of: Callable[[str], dict[str, int]] = ethtool.counters_of,
    ) -> None:
        """`counters_of` gives what an interface's driver counts, or raises ProbeError."""
        self._file = HeldFile(proc / "net/dev")
        self._snmp = HeldFile(proc / "net/snmp")
        self._netstat = HeldFile(proc / "net/netstat")
        self._interfaces = sys / "class/net"
        self._counters_of = counters_of
        #: Interfaces whose drivers count no pauses.
        self._without_pauses: set[str] = set()

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """One group now. Raises ProbeError."""
        if group == "links":
            return ProbeResult(self._links(now_ns))
        if group == "pauses":
            return ProbeResult(self._pauses(now_ns))
        if group == "stack":
            values = parse_stack(self._snmp.read()) | parse_stack(self._netstat.read())
            return ProbeResult([Reading(metric, value, now_ns) for metric, value in values.items()])
        return ProbeResult(
            [
                Reading(metric, value, now_ns, interface)
                for interface, values in parse(self._file.read()).items()
                for metric, value in values.items()
            ]
        )

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._snmp, self._netstat):
            file.close()

    def _told(self) -> list[Path]:
        interfaces = [path for path in children(self._interfaces) if is_told(path.name)]
        if not interfaces:
            raise Absent("no network interface here", where=str(self._interfaces))
        return interfaces

    def _pauses(self, now_ns: int) -> list[Reading]:
        """Of the interfaces that are devices of the host: a bond repeats those under it."""
        readings: list[Reading] = []
        for interface in [path.name for path in self._told() if (path / "device").exists()]:
            if interface in self._without_pauses:
                continue
            try:
                values = ethtool.pauses(self._counters_of(interface))
            except Unsupported:
                values = {}
            if not values:
                self._without_pauses.add(interface)
            readings += [Reading(metric, value, now_ns, interface) for metric, value in values.items()]
        if not readings:
            raise Absent("no interface here counts pauses", where=str(self._interfaces))
        return readings

    def _links(self, now_ns: int) -> list[Reading]:
        return [
            Reading(metric, value, now_ns, interface.name)
            for interface in self._told()
            for metric, value in _link(interface).items()
        ]


def _link(interface: Path) -> dict[str, float]:
    """State of an interface's link; speed and carrier of one that is switched off cannot be asked."""
    values: dict[str, float] = {}
    changes = read_number(interface / "carrier_changes")
    if changes is not None:
        values["net.carrier_changes"] = changes
    state = (read_text(interface / "operstate") or "").strip()
    if state in ("up", "down", "lowerlayerdown", "dormant"):
        values["net.up"] = float(state == "up")
    # Unknown is written as -1, or as a number that no interface has.
    speed = read_number(interface / "speed")
    if speed is not None and 0 < speed < 10**7:
        values["net.speed_bits_per_second"] = float(speed * _MEGA)
    return values
