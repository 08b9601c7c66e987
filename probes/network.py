"""Network interfaces: bytes, errors, drops (/proc/net/dev)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankscope.probes.held_file import HeldFile
from rankscope.reading import Group, ProbeResult, Reading

_NS = 10**9
# The host's ends of containers' links: one a container, so unbounded, and their bytes pass a real interface too.
_CONTAINER_LINKS = ("veth", "cali", "lxc", "cni", "docker", "br-", "virbr", "ifb", "tap", "vnet")


def parse(text: str) -> dict[str, dict[str, int]]:
    """Interface -> metric -> value of a /proc/net/dev, loopback and containers' links left out. Never raises.

    Columns: receive bytes packets errs drop fifo frame compressed multicast, then transmit bytes packets errs drop ...
    """
    interfaces: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        name, colon, rest = line.rpartition(":")
        name, columns = name.strip(), rest.split()
        if not colon or len(columns) < 12 or name in ("", "lo") or name.startswith(_CONTAINER_LINKS):
            continue
        if all(column.isascii() and column.isdigit() and len(column) <= 20 for column in columns[:12]):
            count = [int(column) for column in columns[:12]]
            interfaces[name] = {
                "net.rx_bytes": count[0],
                "net.tx_bytes": count[8],
                "net.errors": count[2] + count[10],
                "net.drops": count[3] + count[11],
            }
    return interfaces


class NetworkProbe:
    """Probe of the network interfaces of the agent's own network namespace."""

    name = "network"
    groups: Sequence[Group] = (
        Group("network", _NS, _NS // 2, "counters: a read loses only when in the period it was"),
    )

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._file = HeldFile(proc / "net/dev")

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """The counters now. Raises ProbeError."""
        return ProbeResult(
            [
                Reading(metric, value, now_ns, interface)
                for interface, values in parse(self._file.read()).items()
                for metric, value in values.items()
            ]
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()
