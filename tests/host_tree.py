"""Unpacks the hosts of tests/fixtures/host and says what the probes make of each; as a script it writes all anew."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path

from rankscope.errors import Absent, PermissionDenied, ProbeError, Unsupported
from rankscope.probes.filesystem import FilesystemProbe
from rankscope.probes.network import NetworkProbe
from rankscope.probes.nvml import NvmlProbe
from rankscope.probes.registry import FollowsRanks, ProbeSettings, built_in
from rankscope.probes.sock_diag import Connection
from rankscope.probes.tcp import TcpProbe
from rankscope.reading import Event, Outcome, Probe, ProbeResult

HOSTS = Path(__file__).parent / "fixtures/host"
#: The rank that every tree has: rank 0 is process 100.
RANKS = {0: 100}
_BLOCK = re.compile(r"^-- (?P<path>\S+)(?: -> (?P<target>\S+))?(?: \(mode (?P<mode>[0-7]+)\))? --\n", re.MULTILINE)
#: Seconds between the first and the second read.
_LATER_NS = 10**12


def names() -> list[str]:
    """Names of the hosts."""
    return sorted(path.stem for path in HOSTS.glob("*.tree"))


def blocks(text: str) -> Iterator[tuple[str, str | None, str | None, str]]:
    """(path, target of a link, mode, content) of each block of a tree."""
    found = list(_BLOCK.finditer(text))
    for match, following in zip(found, [*found[1:], None], strict=True):
        content = text[match.end() : following.start() if following is not None else len(text)]
        yield match["path"], match["target"], match["mode"], content


def unpack(text: str, root: Path) -> None:
    """Write a tree's files below a directory."""
    for path, target, mode, content in blocks(text):
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if target is not None:
            place.symlink_to(target)
            continue
        place.write_text(content)
        if mode is not None:
            place.chmod(int(mode, 8))


def apply_after(root: Path) -> None:
    """Bring a tree to the state of its second read; the log grows, all else is replaced."""
    for path in (root / "after").rglob("*"):
        if path.is_file():
            target = root / path.relative_to(root / "after")
            content = path.read_text()
            with target.open("a" if target.name == "kmsg" else "w") as file:
                file.write(content)


def probes(root: Path) -> list[Probe]:
    """Every built-in probe but NVML's, over an unpacked tree."""
    settings = ProbeSettings(
        proc=root / "proc",
        sys=root / "sys",
        kernel_log=root / "kmsg",
        kernel_log_history=True,
        nvml_library=str(root / "none.so"),
    )
    found: list[Probe] = []
    for probe in built_in(settings):
        if isinstance(probe, NvmlProbe):
            probe.close()
        elif isinstance(probe, FilesystemProbe):
            found.append(FilesystemProbe(root / "proc", statvfs=_Answers(root), clock_ns=lambda: 0, grace_s=30))
        elif isinstance(probe, NetworkProbe):
            found.append(NetworkProbe(root / "proc", root / "sys", counters_of=_Counters(root)))
        elif isinstance(probe, TcpProbe):
            found.append(TcpProbe(root / "proc", connections=_Connections(root)))
        else:
            found.append(probe)
    return found


class _Connections:
    """What the kernel of a tree tells of TCP connections."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, inodes: Container[int]) -> list[Connection]:
        found = []
        for line in (self._root / "connections").read_text().splitlines():
            inode, local, peer, *numbers = line.split()
            if int(inode) in inodes:
                found.append(Connection(int(inode), local, peer, *map(int, numbers)))
        return found


class _Counters:
    """What the interfaces' drivers of a tree count."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, interface: str) -> dict[str, int]:
        try:
            lines = (self._root / "ethtool" / interface).read_text().splitlines()
        except FileNotFoundError as error:
            raise Unsupported("its driver counts nothing by itself", where=interface) from error
        return {name: int(value) for name, value in (line.split() for line in lines)}


class _Answers:
    """What the filesystems of a tree answer."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, path: str) -> os.statvfs_result:
        # Those of a process in a namespace of its own are asked through its root.
        mount = re.sub(r"^.*/proc/\d+/root", "", path)
        for line in (self._root / "statvfs").read_text().splitlines():
            name, *numbers = line.split()
            if name == mount:
                size, blocks, available, inodes, inodes_available = (int(number) for number in numbers)
                return os.statvfs_result(
                    (size, size, blocks, available, available, inodes, inodes_available, inodes_available, 0, 255)
                )
        raise FileNotFoundError(2, "No such file or directory", path)


@contextlib.contextmanager
def host(name: str) -> Iterator[Path]:
    """A host's tree, unpacked where everybody may look."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        unpack((HOSTS / f"{name}.tree").read_text(), root)
        yield root


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom permissions bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def described(root: Path) -> str:
    """What every probe says of a tree, and then what is different in its second state."""
    with unprivileged():
        listed = probes(root)
        first = [line for probe in listed for line in _lines(probe, 0, root)]
    apply_after(root)
    with unprivileged():
        second = [line for probe in listed for line in _lines(probe, _LATER_NS, root)]
    for probe in listed:
        probe.close()
    changed = [line for line in second if line not in first]
    return "\n".join([*first, "", "Later:", *changed, ""])


def _lines(probe: Probe, now_ns: int, root: Path) -> list[str]:
    lines: list[str] = []
    for group in probe.groups:
        # Ticks of the log's clock are before every read.
        result = read_group(probe, group.name, now_ns or _LATER_NS // 2)
        lines += [
            f"{probe.name}: {reading.metric}{{{reading.device}}} {reading.value:.15g}"
            for reading in sorted(result.readings, key=lambda r: (r.metric, r.device))
        ]
        lines += [f"{probe.name}: {_event(event)}" for event in result.events]
        lines += [
            f"{probe.name}: {group.name}{{{device}}} {outcome}: {reason}".replace(str(root), "")
            for device, outcome, reason in result.outcomes
        ]
    return lines


def read_group(probe: Probe, group: str, now_ns: int) -> ProbeResult:
    """One group of a probe that has been told of the rank, its typed errors as outcomes."""
    if isinstance(probe, FollowsRanks):
        probe.set_ranks(RANKS)
    try:
        return probe.read(group, now_ns)
    except Absent as error:
        return ProbeResult(outcomes=[("", Outcome.NO_DATA, str(error))])
    except Unsupported as error:
        return ProbeResult(outcomes=[("", Outcome.UNSUPPORTED, str(error))])
    except PermissionDenied as error:
        return ProbeResult(outcomes=[("", Outcome.NO_PERMISSION, str(error))])
    except ProbeError as error:
        return ProbeResult(outcomes=[("", Outcome.FAILED, str(error))])


def _event(event: Event) -> str:
    told = ", ".join(f"{name}={value}" for name, value in event.attributes.items() if name != "message")
    return f"{event.kind} ({event.severity}) {{{event.device}}} at {event.time_ns / 1e9:.6f} s: {told}"


def main() -> None:
    """Write what is expected of every host anew."""
    for name in names():
        with host(name) as root:
            (HOSTS / f"{name}.expected").write_text(described(root))
        sys.stdout.write(f"{name}: written\n")


if __name__ == "__main__":
    main()
