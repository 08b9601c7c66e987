"""Round trips and losses on the way to each peer of the ranks, from the kernel's account of their TCP connections."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from rankscope.errors import PermissionDenied, Unsupported
from rankscope.metrics_rules import pack
from rankscope.probes import sock_diag
from rankscope.probes.sock_diag import Connection
from rankscope.reading import Group, Outcome, ProbeResult, Reading

_NS = 10**9
_SOCKET = re.compile(r"socket:\[(\d{1,19})\]")
#: Peers of one local address that are told: those next to it in the order of addresses, as many on either side, so that
#: each host is told of by as many others as it tells of.
PEERS = 8
#: Pairs of addresses on one host.
PAIRS = 32
#: Descriptors of one process that are looked at.
_MAX_DESCRIPTORS = 65536
#: Of the sockets of all ranks so many are looked at: what is slow is slow for many.
MAX_SOCKETS = 512
#: How long it is known which sockets are the ranks', at first, and in the end: a job opens its connections early.
_SOCKETS_NS, _MOST_SOCKETS_NS = 2 * _NS, 64 * _NS
#: A round-trip time of longer ago says nothing of now.
_RECENT_NS = 2 * _NS

Pair = tuple[str, str]


class TcpProbe:
    """Probe of the ranks' TCP connections to other hosts; `set_ranks` says which processes they are.

    A round-trip time is made by the kernel of acknowledgements, which it sends for a slow process too. Where data goes
    one way only, a peer may hold its acknowledgement back for 40 ms: of several connections to a peer the least counts.
    """

    name = "tcp"
    groups: Sequence[Group] = (
        Group("tcp", 2 * _NS, _NS // 2, "smoothed by the kernel over some ten round trips; losses are counters"),
    )

    def __init__(
        self,
        proc: Path = Path("/proc"),
        *,
        connections: Callable[[Container[int]], Iterable[Connection]] = sock_diag.connections,
    ) -> None:
        """`connections` gives those of some sockets, or raises ProbeError."""
        self._proc = proc
        self._connections = connections
        self._pids: dict[int, int] = {}
        self._inodes: frozenset[int] = frozenset()
        self._inodes_until_ns: int | None = None
        self._sockets_ns = _SOCKETS_NS
        #: Segments that the connection of a socket had sent, and sent again, when it was last seen.
        self._last: dict[int, tuple[int, int]] = {}
        self._sums: dict[Pair, tuple[int, int]] = {}
        self._said: set[int] = set()

    def set_ranks(self, pids: Mapping[int, int]) -> None:
        """Watch these processes from now on: rank -> process id."""
        if dict(pids) != self._pids:
            self._pids = dict(pids)
            self._inodes_until_ns, self._sockets_ns = None, _SOCKETS_NS

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - there is one group
        """Each pair of addresses now. Raises ProbeError."""
        outcomes: list[tuple[str, Outcome, str]] = []
        if self._inodes_until_ns is None or now_ns >= self._inodes_until_ns:
            self._inodes = self._sockets(outcomes)
            self._inodes_until_ns = now_ns + self._sockets_ns
            self._sockets_ns = min(2 * self._sockets_ns, _MOST_SOCKETS_NS)
        if not self._inodes:
            return ProbeResult(outcomes=outcomes)
        pairs: dict[Pair, list[Connection]] = {}
        for connection in self._connections(self._inodes):
            if connection.local != connection.peer and not _is_loopback(connection.peer):
                pairs.setdefault((connection.local, connection.peer), []).append(connection)
        readings: list[Reading] = []
        told = chosen(pairs)
        for pair in told:
            readings += self._pair(pair, pairs[pair], now_ns)
        open_now = {connection.inode for pair in told for connection in pairs[pair]}
        self._last = {inode: last for inode, last in self._last.items() if inode in open_now}
        self._sums = {pair: sums for pair, sums in self._sums.items() if pair in told}
        return ProbeResult(readings, (), outcomes)

    def close(self) -> None:
        """Nothing is held open."""

    def _pair(self, pair: Pair, connections: Sequence[Connection], now_ns: int) -> list[Reading]:
        sent, again = self._sums.get(pair, (0, 0))
        for each in connections:
            before = self._last.get(each.inode, (0, 0))
            sent += max(0, each.segments_sent - before[0])
            again += max(0, each.segments_retransmitted - before[1])
            self._last[each.inode] = (each.segments_sent, each.segments_retransmitted)
        self._sums[pair] = sent, again
        device = pack(pair)
        readings = [
            Reading("tcp.segments_sent", sent, now_ns, device),
            Reading("tcp.segments_retransmitted", again, now_ns, device),
        ]
        recent = [each.rtt_ns for each in connections if each.acknowledged_ns_ago <= _RECENT_NS and each.rtt_ns]
        if recent:
            readings.append(Reading("tcp.rtt_ns", min(recent), now_ns, device))
        return readings

    def _sockets(self, outcomes: list[tuple[str, Outcome, str]]) -> frozenset[int]:
        """Sockets of the ranks; what cannot be looked into is said once."""
        mine = _link(self._proc / "self/ns/net")
        found: set[int] = set()
        for rank, pid in self._pids.items():
            try:
                theirs = _link(self._proc / f"{pid}/ns/net")
                if None not in (mine, theirs) and mine != theirs:
                    raise Unsupported("it is in another network namespace", todo="run a job agent beside the ranks")
                found |= sockets_of(self._proc / f"{pid}/fd")
            except (PermissionDenied, Unsupported) as error:
                if pid not in self._said:
                    self._said.add(pid)
                    denied = isinstance(error, PermissionDenied)
                    outcome = Outcome.NO_PERMISSION if denied else Outcome.UNSUPPORTED
                    outcomes.append((f"rank:{rank}", outcome, f"connections of process {pid}: {error}"))
        self._said &= set(self._pids.values())
        # Scattered, so that neither pairs opened one after the other nor those that come later change who is in it.
        return frozenset(sorted(found, key=_scattered)[:MAX_SOCKETS])


def chosen(pairs: Iterable[Pair]) -> list[Pair]:
    """Of all pairs those that are told: of each local address the peers next to it, and of all PAIRS at most."""
    peers: dict[str, list[str]] = {}
    for local, peer in pairs:
        peers.setdefault(local, []).append(peer)
    told: list[Pair] = []
    for local in sorted(peers, key=_order):
        ring = sorted(peers[local], key=_order)
        if len(ring) > PEERS:
            after = next((place for place, peer in enumerate(ring) if _order(peer) > _order(local)), 0)
            ring = sorted({ring[(after + step) % len(ring)] for step in range(-PEERS // 2, PEERS // 2)}, key=_order)
        told += [(local, peer) for peer in ring]
    return told[:PAIRS]


def _scattered(inode: int) -> int:
    """A number's place in an order that has nothing to do with its size (Knuth's multiplicative hash)."""
    return inode * 2_654_435_761 % 2**32


@lru_cache(maxsize=4096)
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


@lru_cache(maxsize=4096)
def _order(address: str) -> tuple[int, int]:
    of = ipaddress.ip_address(address)
    return of.version, int(of)


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


def sockets_of(directory: Path) -> set[int]:
    """Inodes of a process's sockets; none of one that is gone. Raises PermissionDenied."""
    found: set[int] = set()
    try:
        names = list(islice(directory.iterdir(), _MAX_DESCRIPTORS))
    except PermissionError as error:
        raise PermissionDenied("permission denied", todo="run the agent as the rank's user") from error
    except OSError:
        return found
    for name in names:
        match = _SOCKET.fullmatch(_link(name) or "")
        if match is not None:
            found.add(int(match[1]))
    return found
