"""Nodes on one machine: a network namespace and a host name each, and a switch between them that a process here is,
packet by packet, as late on each port or path as it is told to be. Needs root, as `ip netns` and TUN devices do."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

#: Linux: if_tun.h, sched.h.
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_DEVICE = "link0"
_PACKET_BYTES = 65536
_NETWORK = "10.213.7."
#: Of an IPv4 header.
_DESTINATION = slice(16, 20)
_WALL_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long ahead(void) { const char *text = getenv("CLOCK_AHEAD_S"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    if (!result && now) now->tv_sec += ahead();
    return result;
}

time_t time(time_t *told) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told) *told = now.tv_sec;
    return now.tv_sec;
}
"""
HOSTS = ("node-a", "node-b", "node-c")


def address_of(node: int) -> str:
    """Address of a node, by its number."""
    return f"{_NETWORK}{node + 1}"


def why_not() -> str:
    """Why nodes cannot be had here; "" where they can."""
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


class Switch:
    """Forwards between the nodes. Delays are one way, and may be changed at any time."""

    def __init__(self, ports: Sequence[int]) -> None:
        #: Of all that a node sends or receives.
        self.port_delay_s = [0.0] * len(ports)
        #: Of what two nodes send each other.
        self.path_delay_s: dict[frozenset[int], float] = {}
        self.packets = 0
        self._ports = tuple(ports)
        self._nodes = {bytes(int(part) for part in address_of(node).split(".")): node for node in range(len(ports))}
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._forward, name="switch")
        self._thread.start()

    def close(self) -> None:
        """Forward no more."""
        os.write(self._stopped, b".")
        self._thread.join()
        for descriptor in (*self._ports, self._stop, self._stopped):
            os.close(descriptor)

    def _delay_s(self, one: int, other: int) -> float:
        path_s = self.path_delay_s.get(frozenset((one, other)), 0.0)
        return self.port_delay_s[one] + self.port_delay_s[other] + path_s

    def _forward(self) -> None:
        numbers = count()
        # In order of what is due; the number keeps packets of one moment in order.
        waiting: list[tuple[float, int, int, bytes]] = []
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, port, packet = heapq.heappop(waiting)
                os.write(port, packet)
            timeout = waiting[0][0] - now if waiting else None
            readable, _, _ = select.select([self._stop, *self._ports], [], [], timeout)
            if self._stop in readable:
                return
            for port in readable:
                packet = os.read(port, _PACKET_BYTES)
                source, to = self._ports.index(port), self._nodes.get(packet[_DESTINATION])
                if to is None:
                    continue
                self.packets += 1
                due = time.monotonic() + self._delay_s(source, to)
                heapq.heappush(waiting, (due, next(numbers), self._ports[to], packet))


def on_node(node: int, names: Sequence[str], command: list[str]) -> list[str]:
    """The command as it runs on a node: in its network, under its host name, as a kernel of its own that was booted at
    another time."""
    script = (
        'hostname "$1" && named=$(mktemp) && echo "$2" > "$named" && '
        'mount --bind "$named" /proc/sys/kernel/random/boot_id && rm "$named" && shift 2 && exec "$@"'
    )
    booted = [f"--monotonic={node * 1000}", f"--boottime={node * 1000}"]
    boot_id = f"{node:08x}-0000-4000-8000-000000000000"
    apart = ["unshare", "--uts", "--mount", "--time", *booted, "--fork", "--kill-child=SIGTERM"]
    return ["ip", "netns", "exec", names[node], *apart, "sh", "-c", script, "sh", HOSTS[node], boot_id, *command]


def wall_clock_library(directory: Path) -> Path:
    """A library to preload that sets the wall clock ahead by CLOCK_AHEAD_S, as no namespace can."""
    source, library = directory / "wall_clock.c", directory / "wall_clock.so"
    source.write_text(_WALL_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@contextmanager
def switched(nodes: int) -> Iterator[tuple[tuple[str, ...], Switch]]:
    """(names of the namespaces, the switch between them); all gone at the end."""
    names = tuple(f"rankscope-{os.getpid()}-{index}" for index in range(nodes))
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        switch = Switch([_tun(name, address_of(node)) for node, name in enumerate(names)])
        try:
            yield names, switch
        finally:
            switch.close()
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
