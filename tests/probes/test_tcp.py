"""The kernel's account of the ranks' TCP connections: the real one, whatever it may hold, and what is told of it."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Container, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.errors import Unsupported
from rankscope.probes.sock_diag import Connection, connections, parse
from rankscope.probes.tcp import MAX_SOCKETS, PAIRS, PEERS, TcpProbe, chosen
from rankscope.reading import Outcome

SECOND = 10**9
MS = 10**6


def message(kind: int, body: bytes) -> bytes:
    """One netlink message."""
    padding = b"\x00" * (-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 0, 0) + body + padding


def socket_message(inode: int, local: bytes, peer: bytes, *, family: int = socket.AF_INET, info: int = 232) -> bytes:
    """A connection as the kernel tells it: round trip 250 us, acknowledged 7 ms ago, 90 segments sent, 3 again."""
    identity = struct.pack("=2s2s16s16sI8s", b"\x01\x02", b"\x03\x04", local, peer, 0, b"")
    of = struct.pack("=BBBB", family, 1, 0, 0) + identity + struct.pack("=IIIII", 0, 0, 0, 1000, inode)
    told = bytearray(232)
    for offset, value in ((56, 7), (68, 250), (100, 3), (136, 90)):
        struct.pack_into("=I", told, offset, value)
    return message(18, of + struct.pack("=HH", 4 + info, 2) + bytes(told[:info]))


def test_a_connection_is_taken_apart() -> None:
    """Round trip in ns, by the socket's inode; IPv4 in IPv6 is IPv4; a kernel too old to count segments tells none."""
    local, peer = socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.2")
    mapped = b"\x00" * 10 + b"\xff\xff" + local
    data = socket_message(7, local, peer) + socket_message(8, local, peer)
    data += socket_message(9, mapped, mapped, family=socket.AF_INET6) + socket_message(10, local, peer, info=104)
    found, ended = parse(data + message(3, b"\x00" * 4), {7, 9, 10})
    assert ended
    assert found == [
        Connection(7, "10.0.0.1", "10.0.0.2", 250_000, 7 * MS, 90, 3),
        Connection(9, "10.0.0.1", "10.0.0.1", 250_000, 7 * MS, 90, 3),
    ]
    with pytest.raises(Unsupported, match="error 2"):
        parse(message(2, struct.pack("=i", -2)), {7})


class Everything(Container[int]):
    """Every socket is a rank's."""

    def __contains__(self, inode: object) -> bool:
        return True


@given(st.binary(max_size=400), st.integers(0, 400))
def test_no_bytes_make_the_parser_raise_or_run_on(noise: bytes, cut: int) -> None:
    """Noise, and an answer cut off or overwritten anywhere, give connections or none; only errors are raised."""
    good = socket_message(7, b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02")
    for data in (noise, good[:cut], good[:cut] + noise, noise + good):
        try:
            found, _ = parse(data, Everything())
        except Unsupported:
            continue
        assert all(each.rtt_ns >= 0 and each.local for each in found)


@pytest.mark.parametrize(("server_at", "client_at"), [("127.0.0.2", "127.0.0.1"), ("::1", "::1")])
def test_the_kernels_own_answer_is_read(server_at: str, client_at: str) -> None:
    """A real connection of this process, of either family: both of its ends, what it sent, a round trip it made."""
    if ":" in server_at and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    family = socket.AF_INET6 if ":" in server_at else socket.AF_INET
    with (
        socket.create_server((server_at, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as one,
        server.accept()[0] as other,
    ):
        for _ in range(4):
            one.sendall(b"x" * 100)
            other.sendall(other.recv(100))
            one.recv(100)
        inodes = {os.fstat(each.fileno()).st_ino for each in (one, other)}
        found = {each.inode: each for each in connections(inodes)}
        assert set(found) == inodes
        mine = found[os.fstat(one.fileno()).st_ino]
        assert (mine.local, mine.peer) == (client_at, server_at)
        assert mine.rtt_ns > 0
        assert mine.segments_sent >= 5
        assert connections(set()) == []
        # And by the probe, as this process's own; loopback is no way to anybody.
        probe = TcpProbe()
        probe.set_ranks({0: os.getpid()})
        told = probe.read("tcp", time.monotonic_ns())
        assert (told.readings, told.outcomes) == ([], [])


class Kernel:
    """Connections that a test sets."""

    def __init__(self) -> None:
        self.open: list[Connection] = []

    def __call__(self, inodes: Container[int]) -> Iterable[Connection]:
        return [each for each in self.open if each.inode in inodes]


def rank_with(proc: Path, pid: int, inodes: Iterable[int]) -> None:
    """A process in a made-up /proc that holds these sockets."""
    directory = proc / f"{pid}/fd"
    directory.mkdir(parents=True)
    (directory / "0").symlink_to("/dev/null")
    for place, inode in enumerate(inodes):
        (directory / str(place + 3)).symlink_to(f"socket:[{inode}]")


def values(probe: TcpProbe, now_ns: int) -> dict[tuple[str, str], float]:
    """(metric, device) -> value of one read."""
    return {(each.metric, each.device): each.value for each in probe.read("tcp", now_ns).readings}


def test_the_least_recent_round_trip_counts_and_losses_only_grow(tmp_path: Path) -> None:
    """Connections of others are not looked at; an idle one's round trip is of long ago; a connection that is closed
    takes nothing from what was counted."""
    kernel = Kernel()
    rank_with(tmp_path, 50, [1, 2, 3])
    probe = TcpProbe(tmp_path, connections=kernel)
    probe.set_ranks({0: 50})
    kernel.open = [
        Connection(1, "10.0.0.1", "10.0.0.2", 900_000, 5 * MS, 100, 2),
        Connection(2, "10.0.0.1", "10.0.0.2", 40_000_000, 5 * MS, 10, 0),
        Connection(3, "10.0.0.1", "10.0.0.2", 1_000, 9 * SECOND, 5, 0),
        Connection(4, "10.0.0.1", "10.0.0.9", 1_000, 0, 5, 0),
    ]
    pair = "10.0.0.1|10.0.0.2"
    assert values(probe, SECOND) == {
        ("tcp.rtt_ns", pair): 900_000,
        ("tcp.segments_sent", pair): 115,
        ("tcp.segments_retransmitted", pair): 2,
    }
    kernel.open = [Connection(2, "10.0.0.1", "10.0.0.2", 800_000, 5 * SECOND, 30, 1)]
    assert values(probe, 2 * SECOND) == {("tcp.segments_sent", pair): 135, ("tcp.segments_retransmitted", pair): 3}


def test_a_rank_that_cannot_be_looked_into_is_said_once(tmp_path: Path) -> None:
    """Another network namespace has other connections; a process that is gone has none; both cost no other rank."""
    kernel = Kernel()
    rank_with(tmp_path, 50, [1])
    rank_with(tmp_path, 51, [2])
    for pid, namespace in (("self", 1), ("50", 1), ("51", 2)):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns/net").symlink_to(f"net:[{namespace}]")
    kernel.open = [Connection(each, "10.0.0.1", "10.0.0.2", MS, 0, 1, 0) for each in (1, 2)]
    probe = TcpProbe(tmp_path, connections=kernel)
    probe.set_ranks({0: 50, 1: 51, 2: 52})
    first, later = probe.read("tcp", 0), probe.read("tcp", 20 * SECOND)
    assert [(device, outcome) for device, outcome, _ in first.outcomes] == [("rank:1", Outcome.UNSUPPORTED)]
    assert "network namespace" in first.outcomes[0][2]
    assert later.outcomes == []
    assert {each.metric: each.value for each in first.readings}["tcp.segments_sent"] == 1


def test_of_many_sockets_some_of_each_pair_are_looked_at(tmp_path: Path) -> None:
    """Eight peers of 400 sockets each, opened one peer after the other: no more than MAX_SOCKETS, and of every peer."""
    kernel = Kernel()
    kernel.open = [
        Connection(5000 + 400 * peer + place, "10.0.0.5", f"10.0.0.{peer + 10}", MS, 0, 10, 0)
        for peer in range(8)
        for place in range(400)
    ]
    rank_with(tmp_path, 50, [each.inode for each in kernel.open])
    probe = TcpProbe(tmp_path, connections=kernel)
    probe.set_ranks({0: 50})
    told = values(probe, 0)
    sent = [value for (metric, _), value in told.items() if metric == "tcp.segments_sent"]
    assert len(sent) == 8
    assert sum(sent) == 10 * MAX_SOCKETS
    assert min(sent) > 10 * MAX_SOCKETS / 8 / 2


def test_of_many_peers_each_host_is_told_of_by_as_many_as_it_tells_of() -> None:
    """Of 40 hosts that are all connected each tells of PEERS others, and PEERS others tell of it; none has more pairs
    than PAIRS, however many addresses it has."""
    hosts = [f"10.0.{place // 8}.{place % 8 + 1}" for place in range(40)]
    told = {host: chosen((host, peer) for peer in hosts if peer != host) for host in hosts}
    assert {len(pairs) for pairs in told.values()} == {PEERS}
    counted = [peer for pairs in told.values() for _, peer in pairs]
    assert {counted.count(host) for host in hosts} == {PEERS}
    many = [(f"10.1.0.{local}", f"10.2.0.{peer}") for local in range(10) for peer in range(20)]
    assert len(chosen(many)) == PAIRS
