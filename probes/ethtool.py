"""What an interface's driver counts by itself (ETHTOOL_GSTATS), and of it the pauses of priority flow control.

Linux: include/uapi/linux/ethtool.h; names of the counters as mlx5, bnxt_en, ice and i40e have them. Needs no privilege.
"""

from __future__ import annotations

import ctypes
import fcntl
import re
import socket
import struct

from rankscope.errors import ProbeError, Unsupported

_SIOCETHTOOL = 0x8946
_GSTRINGS = 0x1B
_GSTATS = 0x1D
_GSSET_INFO = 0x37
_STATS_SET = 1
_NAME_BYTES = 32
#: More counters than any driver has: mlx5 has some thousands, by queue.
_MAX_COUNTERS = 65536
_US_NS = 1000

_PAUSE = re.compile(
    r"(?:port\.)?(?P<way>rx|tx)_(?:prio\d_pause|pfc_ena_frames_pri\d|priority_\d_xoff(?:\.nic)?|global_pause)"
)
_DURATION = re.compile(r"rx_prio\d_pause_duration")
_METRICS = {"rx": "net.pfc_pauses_received", "tx": "net.pfc_pauses_sent"}


def parse_names(data: bytes) -> list[str]:
    """Names of counters, 32 bytes each and ended by a zero byte. Never raises."""
    return [
        data[at : at + _NAME_BYTES].partition(b"\x00")[0].decode("ascii", "replace")
        for at in range(0, len(data) - _NAME_BYTES + 1, _NAME_BYTES)
    ]


def pauses(counters: dict[str, int]) -> dict[str, int]:
    """Metric -> value over all priorities; nothing where the driver counts none. Never raises.

    mlx5 shows global pauses or those of each priority, whichever are in use.
    """
    values: dict[str, int] = {}
    for name, value in counters.items():
        if (match := _PAUSE.fullmatch(name)) is not None:
            metric = _METRICS[match["way"]]
            values[metric] = values.get(metric, 0) + value
        elif _DURATION.fullmatch(name):
            values["net.pfc_paused_ns"] = values.get("net.pfc_paused_ns", 0) + value * _US_NS
    return values


def counters_of(interface: str) -> dict[str, int]:
    """What an interface's driver counts, by name. Raises Unsupported where it counts nothing, or ProbeError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        info = ctypes.create_string_buffer(struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _STATS_SET, 0))
        _ask(asked, interface, info)
        _, _, known, count = struct.unpack_from("=IIQI", info.raw)
        if not known or not 0 < count <= _MAX_COUNTERS:
            raise Unsupported("its driver counts nothing by itself", where=interface)
        names = ctypes.create_string_buffer(struct.pack("=III", _GSTRINGS, _STATS_SET, count), 12 + count * _NAME_BYTES)
        _ask(asked, interface, names)
        values = ctypes.create_string_buffer(struct.pack("=II", _GSTATS, count), 8 + count * 8)
        _ask(asked, interface, values)
    told = struct.unpack_from(f"={count}Q", values.raw, 8)
    return dict(zip(parse_names(names.raw[12:]), told, strict=False))


def _ask(asked: socket.socket, interface: str, buffer: ctypes.Array[ctypes.c_char]) -> None:
    request = struct.pack("16sP16x", interface.encode()[:15], ctypes.addressof(buffer))
    try:
        fcntl.ioctl(asked, _SIOCETHTOOL, request)
    except OSError as error:
        raise Unsupported(error.strerror or "cannot be asked", where=interface) from error
    except ValueError as error:
        raise ProbeError(str(error), where=interface) from error
