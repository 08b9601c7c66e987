"""What a host is, for comparing two runs: kernel, firmware, driver, network cards. Read once, by files alone.

The driver's own files under /proc/driver are left alone: they answer through the driver, which may hang.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankscope.fingerprint import allowed_environment

Text = Callable[[str], str | None]


def host_facts(*, proc: Path = Path("/proc"), sys: Path = Path("/sys"), etc: Path = Path("/etc")) -> dict[str, Any]:
    """Facts by name; what this host does not have or does not let us read is left out."""

    def of(root: Path) -> Text:
        def read(name: str) -> str | None:
            try:
                return (root / name).read_text(errors="replace").strip()
            except OSError:
                return None

        return read

    from_proc, from_sys, from_etc = of(proc), of(sys), of(etc)
    facts: dict[str, Any] = {
        "kernel": from_proc("sys/kernel/osrelease"),
        "bios": from_sys("class/dmi/id/bios_version"),
        "board": from_sys("class/dmi/id/product_name"),
        "gpu_driver": from_sys("module/nvidia/version"),
        "rdma_driver": from_sys("module/mlx5_core/version"),
        "cpu_governor": from_sys("devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_huge_pages": _chosen(from_sys("kernel/mm/transparent_hugepage/enabled")),
        "numa_nodes": from_sys("devices/system/node/online"),
        "numa_balancing": from_proc("sys/kernel/numa_balancing"),
        **parse_cpuinfo(from_proc("cpuinfo") or ""),
        "memory_total_kib": parse_memory_total(from_proc("meminfo") or ""),
        # NCCL takes its variables from here too.
        "nccl_conf": allowed_environment(parse_nccl_conf(from_etc("nccl.conf") or "")),
        "network": {
            path.name: {
                name: value
                for name, value in (("firmware", of(path)("fw_ver")), ("model", of(path)("hca_type")))
                if value is not None
            }
            for path in _listed(sys / "class/infiniband")
        },
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _chosen(text: str | None) -> str | None:
    """The word in brackets: `always [madvise] never`."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found.group(1) if found else None


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """Model, microcode and number of cores of /proc/cpuinfo."""
    fields = re.findall(r"^(model name|microcode|processor)\s*:\s*(.*)$", text, re.MULTILINE)
    first = dict(reversed(fields))
    return {
        "cpu": first.get("model name"),
        "microcode": first.get("microcode"),
        "cores": sum(name == "processor" for name, _ in fields) or None,
    }


def parse_nccl_conf(text: str) -> dict[str, str]:
    """Variables of /etc/nccl.conf."""
    lines = (line.partition("#")[0].partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in lines if equals}


def parse_memory_total(text: str) -> int | None:
    """MemTotal of /proc/meminfo, KiB."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) if found else None
