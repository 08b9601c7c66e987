"""How a part of a GPU is named as the device of a reading: an NVLink, or a process on a GPU or MIG instance."""

from __future__ import annotations

from typing import NamedTuple

_LINK = "/nvlink:"
_PROCESS = "/pid:"


class GpuPart(NamedTuple):
    """The GPU or MIG instance, and the link or process on it that a device names (None: the whole)."""

    uuid: str
    link: int | None = None
    pid: int | None = None


def link_of(uuid: str, link: int) -> str:
    """The device "GPU-.../nvlink:3"."""
    return f"{uuid}{_LINK}{link}"


def process_on(uuid: str, pid: int) -> str:
    """The device "GPU-.../pid:4711" or "MIG-.../pid:4711"."""
    return f"{uuid}{_PROCESS}{pid}"


def part_of(device: str) -> GpuPart:
    """What a device names; the whole device where it ends in no link or process."""
    for mark in (_LINK, _PROCESS):
        uuid, found, number = device.rpartition(mark)
        if found and number.isascii() and number.isdigit():
            return GpuPart(uuid, link=int(number)) if mark == _LINK else GpuPart(uuid, pid=int(number))
    return GpuPart(device)
