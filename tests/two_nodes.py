"""Two nodes on one machine: a network namespace and a host name each, and one link between them that a process here
forwards, packet by packet, as late as it is told to. Needs root, as `ip netns` and TUN devices do."""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

#: Linux: if_tun.h, sched.h.
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_DEVICE = "link0"
_PACKET_BYTES = 65536
ADDRESSES = ("10.213.7.1", "10.213.7.2")
HOSTS = ("node-a", "node-b")


def why_not() -> str:
    """Why two nodes cannot be had here; "" where they can."""
    if os.geteuid() != 0:
        return "network namespaces and TUN devices need root"
    if not os.path.exists("/dev/net/tun"):
        return "no /dev/net/tun"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"rankscope-{os.getpid()}-try"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"ip netns: {done.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Link:
    """Forwards between the two nodes; `delay_s` is one way, and may be changed at any time."""

    def __init__(self, ends: tuple[int, int]) -> None:
        self.delay_s = 0.0
        self.packets = 0
        self._ends = ends
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._forward, name="link")
        self._thread.start()

    def close(self) -> None:
        """Forward no more."""
        os.write(self._stopped, b".")
        self._thread.join()
        for descriptor in (*self._ends, self._stop, self._stopped):
            os.close(descriptor)

    def _forward(self) -> None:
        one, other = self._ends
        across = {one: other, other: one}
        numbers = count()
        # In order of what is due; the number keeps packets of one moment in order.
        waiting: list[tuple[float, int, int, bytes]] = []
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, end, packet = heapq.heappop(waiting)
                os.write(end, packet)
            timeout = waiting[0][0] - now if waiting else None
            readable, _, _ = select.select([self._stop, one, other], [], [], timeout)
            if self._stop in readable:
                return
            for end in readable:
                packet = os.read(end, _PACKET_BYTES)
                self.packets += 1
                heapq.heappush(waiting, (time.monotonic() + self.delay_s, next(numbers), across[end], packet))


def on_node(node: int, names: tuple[str, str], command: list[str]) -> list[str]:
    """The command as it runs on a node: in its network, under its host name."""
    script = 'hostname "$1" && shift && exec "$@"'
    return ["ip", "netns", "exec", names[node], "unshare", "--uts", "sh", "-c", script, "sh", HOSTS[node], *command]


@contextmanager
def two_nodes() -> Iterator[tuple[tuple[str, str], Link]]:
    """(names of the namespaces, the link between them); all gone at the end."""
    names = tuple(f"rankscope-{os.getpid()}-{index}" for index in range(2))
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        ends = [_tun(name, address) for name, address in zip(names, ADDRESSES, strict=True)]
        link = Link((ends[0], ends[1]))
        try:
            yield (names[0], names[1]), link
        finally:
            link.close()
    finally:
        for name in made:
            _ip("netns", "del", name)


def _tun(name: str, address: str) -> int:
    """A TUN device in a namespace; its descriptor is read and written from here."""
    opened: list[int] = []

    def inside() -> None:
        # A thread enters the namespace and ends there.
        namespace = os.open(f"/run/netns/{name}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        opened.append(descriptor)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    (descriptor,) = opened
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", _DEVICE)
    _ip("-n", name, "link", "set", _DEVICE, "up", "mtu", "9000")
    _ip("-n", name, "link", "set", "lo", "up")
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
