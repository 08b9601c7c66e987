"""What a read of the `tcp` probe costs where the ranks have many connections.

    python benchmarks/tcp_probe.py 400 4000

Opens so many sockets in this process, two a connection over loopback addresses, and prints the CPU time of a read.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import sys
import time
from pathlib import Path

from rankscope.probes.sock_diag import connections
from rankscope.probes.tcp import MAX_SOCKETS, sockets_of

READS = 11


def opened(count: int) -> list[socket.socket]:
    """So many sockets, connected with each other."""
    found: list[socket.socket] = []
    with socket.create_server(("127.0.0.2", 0), backlog=128) as server:
        for number in range(count // 2):
            found.append(socket.create_connection(server.getsockname(), source_address=(f"127.0.1.{number % 8}", 0)))
            found.append(server.accept()[0])
    return found


def main() -> None:
    """A line a size: sockets, ms of CPU to find them, ms of CPU to ask the kernel for those that are looked at."""
    sizes = [int(text) for text in sys.argv[1:]] or [400]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(sizes) + 100), hard))
    for size in sizes:
        held = opened(size)
        asked: list[float] = []
        begun = time.process_time()
        inodes = sorted(sockets_of(Path(f"/proc/{os.getpid()}/fd")))
        looked_up = time.process_time() - begun
        chosen = frozenset(inodes[:MAX_SOCKETS])
        for _ in range(READS):
            begun = time.process_time()
            connections(chosen)
            asked.append(time.process_time() - begun)
        print(
            f"{len(inodes)} sockets: {looked_up * 1e3:.1f} ms to find, {statistics.median(asked) * 1e3:.1f} ms to read"
        )
        for each in held:
            each.close()


if __name__ == "__main__":
    main()
