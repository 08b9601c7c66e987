"""The table of built-in probes."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from rankscope.errors import ConfigurationError, Unsupported
from rankscope.metrics import METRICS
from rankscope.probes.cpu import CpuProbe
from rankscope.probes.kernel_log import KernelLogProbe
from rankscope.probes.nvml import BREAKER_NS, NvmlProbe
from rankscope.probes.registry import ProbeSettings, built_in, distinct


def test_the_built_in_probes_run_on_this_machine(tmp_path: Path) -> None:
    """Every group of every built-in probe can be read here, and names only metrics of the vocabulary."""
    probes = built_in(ProbeSettings(kernel_log=tmp_path / "kmsg", nvml_library=str(tmp_path / "none.so")))
    try:
        for probe in probes:
            for group in probe.groups:
                assert group.burst_ns <= group.steady_ns
                assert group.why
                with contextlib.suppress(Unsupported):
                    result = probe.read(group.name, time.monotonic_ns())
                    assert {reading.metric for reading in result.readings} <= set(METRICS)
    finally:
        for probe in probes:
            probe.close()
    assert [p.name for p in probes] == [
        "kernel-log", "nvml", "cpu", "cpu-clock", "memory", "numa", "edac", "pressure", "cgroup", "disk", "filesystem",
        "nfs", "lustre", "network", "tcp", "infiniband", "pcie", "process",
    ]  # fmt: skip


def test_two_probes_of_one_name_are_refused() -> None:
    """A name stands for one source."""
    with pytest.raises(ConfigurationError, match="'cpu'"):
        distinct([CpuProbe(), CpuProbe()])


def test_the_kernel_log_holds_nvml_back(tmp_path: Path) -> None:
    """A firmware timeout in the kernel log opens NVML's breaker without anyone in between."""
    log = tmp_path / "kmsg"
    log.touch()
    probes = {p.name: p for p in built_in(ProbeSettings(kernel_log=log, nvml_library=str(tmp_path / "none.so")))}
    kernel_log, nvml = probes["kernel-log"], probes["nvml"]
    assert isinstance(kernel_log, KernelLogProbe)
    assert isinstance(nvml, NvmlProbe)
    now = time.monotonic_ns()
    log.write_text(
        f"3,0,{now // 1000},-;NVRM: Xid (PCI:0000:1b:00): 119, pid=1, name=x, Timeout waiting for RPC from GSP!\n"
    )
    assert len(kernel_log.read("events", now).events) == 1
    assert nvml._breaker_until_ns == now // 1000 * 1000 + BREAKER_NS
    for probe in probes.values():
        probe.close()
