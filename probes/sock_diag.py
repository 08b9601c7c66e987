"""The kernel's own account of TCP connections (NETLINK_SOCK_DIAG), as `ss -ti` has it. Needs no privilege.

Linux: include/uapi/linux/{netlink,sock_diag,inet_diag,tcp}.h; `struct tcp_info` only grows at its end.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache

from rankscope.errors import ProbeError, Unsupported

_NETLINK_SOCK_DIAG = 4
#: The first form of the request: it alone asks for IPv4 and IPv6 at once, each of which is a walk of the whole table.
_TCPDIAG_GETSOCK = 18
_INET_DIAG_INFO = 2
_TCP_ESTABLISHED = 1
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
#: struct inet_diag_req: family, lengths of addresses, extensions, a socket's identity (which a dump leaves empty),
#: states, tables.
_REQUEST = struct.Struct("=BxxB48xII")
#: struct inet_diag_msg: family, state, timer, retransmissions; ports and addresses; expires, queues, user, inode.
_MESSAGE = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
_INODE_AT = 68
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_RECEIVE_BYTES = 1 << 18
#: An answer that goes on for longer than this is left, s.
_DEADLINE_SECONDS = 0.5
_US_NS = 1000
_MS_NS = 10**6
#: Offsets in struct tcp_info.
_LAST_ACK_RECV, _RTT, _TOTAL_RETRANS, _SEGS_OUT = 56, 68, 100, 136


@dataclass(frozen=True, slots=True)
class Connection:
    """One established TCP connection of a process here."""

    inode: int
    local: str
    peer: str
    #: Smoothed round-trip time; how long ago the peer acknowledged something, of which it is made.
    rtt_ns: int
    acknowledged_ns_ago: int
    #: Since it was opened.
    segments_sent: int
    segments_retransmitted: int


def parse(data: bytes, inodes: Container[int]) -> tuple[list[Connection], bool]:
    """(connections of these sockets in one datagram of an answer, whether the answer ends there).

    What is no whole message is passed over. Raises ProbeError where the kernel answers with an error.
    """
    found: list[Connection] = []
    at, size = 0, len(data)
    while at + _HEADER.size <= size:
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > size:
            break
        body = at + _HEADER.size
        if kind == _TCPDIAG_GETSOCK:
            # Most sockets of a host are somebody else's: no more of them is looked at.
            if length >= _HEADER.size + _MESSAGE.size and _NUMBER.unpack_from(data, body + _INODE_AT)[0] in inodes:
                connection = _connection(data[body : at + length])
                if connection is not None:
                    found.append(connection)
        elif kind == _NLMSG_DONE:
            return found, True
        elif kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", data, body)[0] if length >= _HEADER.size + 4 else 0
            raise Unsupported(f"the kernel does not tell of connections (error {code})", where="sock_diag")
        at += (length + 3) & ~3
    return found, False


def _connection(body: bytes) -> Connection | None:
    family, _, _, _, _, _, source, destination, _, _, _, _, _, _, inode = _MESSAGE.unpack_from(body)
    info = next((value for kind, value in _attributes(body[_MESSAGE.size :]) if kind == _INET_DIAG_INFO), b"")
    if len(info) < _SEGS_OUT + 4:
        return None

    def field(offset: int) -> int:
        value: int = _NUMBER.unpack_from(info, offset)[0]
        return value

    return Connection(
        inode=inode,
        local=_address(family, source),
        peer=_address(family, destination),
        rtt_ns=field(_RTT) * _US_NS,
        acknowledged_ns_ago=field(_LAST_ACK_RECV) * _MS_NS,
        segments_sent=field(_SEGS_OUT),
        segments_retransmitted=field(_TOTAL_RETRANS),
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


@lru_cache(maxsize=4096)
def _address(family: int, data: bytes) -> str:
    """As text; IPv4 in IPv6 is IPv4, so that both ends call it alike."""
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(data[:4]))
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)


def connections(inodes: Container[int]) -> list[Connection]:
    """The established TCP connections of these sockets, in the network namespace of the caller. Raises ProbeError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as asked:
            asked.settimeout(_DEADLINE_SECONDS)
            return _dump(asked, inodes)
    except TimeoutError as error:
        raise ProbeError(f"no answer within {_DEADLINE_SECONDS:g} s", where="sock_diag") from error
    except OSError as error:
        raise Unsupported(
            f"the kernel does not tell of connections ({error.strerror})",
            where="sock_diag",
            todo="load the kernel module tcp_diag",
        ) from error


def _dump(asked: socket.socket, inodes: Container[int]) -> list[Connection]:
    request = _REQUEST.pack(socket.AF_INET, 1 << (_INET_DIAG_INFO - 1), 1 << _TCP_ESTABLISHED, 0)
    header = _HEADER.pack(_HEADER.size + len(request), _TCPDIAG_GETSOCK, _NLM_F_REQUEST | _NLM_F_DUMP, 0, 0)
    asked.send(header + request)
    found: list[Connection] = []
    deadline = time.monotonic() + _DEADLINE_SECONDS
    ended = False
    while not ended:
        if time.monotonic() > deadline:
            raise ProbeError(f"still answering after {_DEADLINE_SECONDS:g} s", where="sock_diag")
        part, ended = parse(asked.recv(_RECEIVE_BYTES), inodes)
        found += part
    return found
