"""What is fixed of a GPU and of a MIG instance: names, firmware, places and neighbours, read once.

Relations between two GPUs stand apart: such a call waits for both, so that a GPU that hangs would hold up its peers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import pynvml

from rankscope.probes.nvml_api import Facts
from rankscope.probes.nvml_call import call, optional, raw
from rankscope.probes.nvml_structures import DeviceAttributes

_LINKS = 18  # NVML_NVLINK_MAX_LINKS
_NODE_SCOPE = 0  # NVML_AFFINITY_SCOPE_NODE
#: Words of 64 bits: room for 1024 CPUs and as many nodes.
_WORDS = 16
_FIRMWARE_ROOM = 0x40  # NVML_GSP_FIRMWARE_VERSION_BUF_SIZE
#: nvmlGpuTopologyLevel_t.
_LEVELS = {0: "board", 10: "switch", 20: "switches", 30: "host-bridge", 40: "node", 50: "system"}
#: nvmlIntNvLinkDeviceType_t.
_REMOTES = {0: "gpu", 1: "npu", 2: "switch"}
#: nvmlGpuP2PCapsIndex_t that say how two GPUs reach each other, the best first; status 0 is yes.
_PATHS = ((2, "nvlink"), (4, "pcie"), (0, "read"))


def gpu_facts(library: Any, handle: Any) -> Facts:
    """Facts of a GPU by itself. Raises where it is down."""
    version = optional(call, pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return {
        "vbios": optional(call, pynvml.nvmlDeviceGetVbiosVersion, handle),
        "gsp_firmware": optional(_firmware, library, handle),
        "board_part_number": optional(call, pynvml.nvmlDeviceGetBoardPartNumber, handle),
        "compute_capability": None if version is None else f"{version[0]}.{version[1]}",
        "multiprocessors": optional(_attributes, library, handle, "multiprocessors"),
        "memory_bus_bits": optional(call, pynvml.nvmlDeviceGetMemoryBusWidth, handle),
        "cpu_affinity": optional(_near, library, "nvmlDeviceGetCpuAffinity", handle),
        "numa_node": optional(_near, library, "nvmlDeviceGetMemoryAffinity", handle, _NODE_SCOPE),
        "nvlink_version": next(
            (v for link in range(_LINKS) if (v := optional(call, pynvml.nvmlDeviceGetNvLinkVersion, handle, link))),
            None,
        ),
        "nvlink_remote": _remotes(handle),
    }


def relations(handle: Any, peers: Mapping[int, Any]) -> Facts:
    """How a GPU stands to others, by their index: common ancestor in the PCIe tree, and best path. Raises where one
    of them is down.
    """
    return {
        "topology": _pairs((index, optional(_level, handle, peer)) for index, peer in peers.items()),
        "p2p": _pairs((index, _path(handle, peer)) for index, peer in peers.items()),
    }


def mig_facts(library: Any, handle: Any, parent: str, gpu_instance: int, compute_instance: int) -> Facts:
    """Facts of a MIG instance of the GPU with the UUID `parent`."""
    mib = optional(_attributes, library, handle, "memory_mib")
    return {
        "name": optional(call, pynvml.nvmlDeviceGetName, handle),
        "parent": parent,
        "gpu_instance": gpu_instance,
        "compute_instance": compute_instance,
        "multiprocessors": optional(_attributes, library, handle, "multiprocessors"),
        "memory_bytes": None if mib is None else mib << 20,
    }


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as the kernel lists CPUs: "0-3,8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _firmware(library: Any, handle: Any) -> str:
    # Straight from the library: this one's arguments have changed within nvidia-ml-py.
    version = ctypes.create_string_buffer(_FIRMWARE_ROOM)
    raw(library, "nvmlDeviceGetGspFirmwareVersion", handle, version)
    return version.value.decode(errors="replace")


def _attributes(library: Any, handle: Any, name: str) -> int:
    attributes = DeviceAttributes()
    raw(library, "nvmlDeviceGetAttributes_v2", handle, ctypes.byref(attributes))
    return int(getattr(attributes, name))


def _near(library: Any, name: str, handle: Any, *scope: int) -> str | None:
    words = (ctypes.c_ulong * _WORDS)()
    raw(library, name, handle, _WORDS, words, *scope)
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    return ranges(n for n in range(_WORDS * bits) if words[n // bits] >> n % bits & 1) or None


def _level(handle: Any, peer: Any) -> str:
    level = int(call(pynvml.nvmlDeviceGetTopologyCommonAncestor, handle, peer))
    return _LEVELS.get(level, str(level))


def _path(handle: Any, peer: Any) -> str | None:
    answers = [(optional(call, pynvml.nvmlDeviceGetP2PStatus, handle, peer, kind), word) for kind, word in _PATHS]
    if all(status is None for status, _ in answers):
        return None
    return next((word for status, word in answers if status == 0), "none")


def _pairs(found: Iterable[tuple[int, str | None]]) -> str | None:
    return ",".join(f"{index}={word}" for index, word in found if word is not None) or None


def _remotes(handle: Any) -> str | None:
    """Links by what is at their other end: "switch 0000:05:00: 0,4; switch 0000:06:00: 1,5"."""
    links: dict[str, list[int]] = {}
    for link in range(_LINKS):
        pci = optional(call, pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        if pci is not None:
            kind = optional(call, pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
            where = f"{_REMOTES.get(kind, 'unknown')} {pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}"
            links.setdefault(where, []).append(link)
    return "; ".join(f"{where}: {ranges(numbers)}" for where, numbers in links.items()) or None
