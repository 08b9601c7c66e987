"""The simulated library under nvidia-ml-py: identity, readings, unsupported cells, and the rules of every call."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from simulated_nvml import ChildFactory, NodeFactory

from rankscope.simulator.build import installed_header
from rankscope.simulator.layout import Feature
from rankscope.simulator.profiles import PROFILES, GpuProfile

UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 1, 2, 3, 4
NOT_FOUND, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH, VERSION_MISMATCH = 6, 9, 18, 25
INSUFFICIENT_SIZE = 7

# A call whose answer depends on the feature; features without one are checked through field values elsewhere.
CALLS = {
    Feature.FAN: "nvmlDeviceGetFanSpeed(d0)",
    Feature.ROW_REMAP: "nvmlDeviceGetRemappedRows(d0)",
    Feature.RETIRED_PAGES: "nvmlDeviceGetRetiredPagesPendingStatus(d0)",
    Feature.NVLINK: "nvmlDeviceGetNvLinkState(d0, 0)",
    Feature.NVLINK_DL_ERRORS: "nvmlDeviceGetNvLinkErrorCounter(d0, 0, 0)",
    Feature.GPM: "nvmlGpmSampleGet(d0, nvmlGpmSampleAlloc())",
    Feature.MIG: "nvmlDeviceGetMigMode(d0)",
    Feature.APPLICATION_CLOCKS: "nvmlDeviceGetApplicationsClock(d0, 0)",
    Feature.AUTO_BOOST: "nvmlDeviceGetAutoBoostedClocksEnabled(d0)",
    Feature.GPU_OPERATION_MODE: "nvmlDeviceGetCurrentGpuOperationMode(d0)",
    Feature.SRAM_ECC_STATUS: "nvmlDeviceGetSramEccErrorStatus(d0, byref(sram))",
    Feature.FABRIC: "nvmlDeviceGetGpuFabricInfoV(d0, byref(fabric))",
    Feature.TLIMIT: "nvmlDeviceGetMarginTemperature(d0)",
}
PREPARE = (
    "sram = c_nvmlEccSramErrorStatus_v1_t(); sram.version = nvmlEccSramErrorStatus_v1\n"
    "fabric = c_nvmlGpuFabricInfoV_t(); fabric.version = nvmlGpuFabricInfo_v2"
)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_a_profile_reports_its_product(profile: GpuProfile, make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Name, clocks, limits, memory and capability arrive as the profile states them."""
    node = make_node(profile.name)
    child = nvml_child(node)
    assert child("nvmlDeviceGetName(d1)") == profile.product_name
    assert child("nvmlDeviceGetUUID(d1)") == node.gpus[1].uuid
    assert child("nvmlDeviceGetMaxClockInfo(d0, NVML_CLOCK_SM)") == profile.max_sm_clock_mhz
    assert child("nvmlDeviceGetPowerManagementLimitConstraints(d0)") == [
        profile.power_min_limit_mw,
        profile.power_max_limit_mw,
    ]
    assert child("nvmlDeviceGetMemoryInfo(d0).total") == profile.memory_total_bytes
    assert child("nvmlDeviceGetCudaComputeCapability(d0)") == list(profile.compute_capability)
    assert child("nvmlDeviceGetArchitecture(d0)") == profile.architecture
    assert child("nvmlDeviceGetMaxPcieLinkGeneration(d0)") == profile.pcie_max_generation


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_unsupported_cells_answer_not_supported(
    profile: GpuProfile, make_node: NodeFactory, nvml_child: ChildFactory
) -> None:
    """Each cell of the profile is refused as NOT_SUPPORTED, everything else is answered, and each cites a source."""
    child = nvml_child(make_node(profile.name))
    child(PREPARE)
    found = {feature: child.error(call) for feature, call in CALLS.items()}
    assert found == {feature: NOT_SUPPORTED if feature in profile.not_supported else 0 for feature in CALLS}
    assert all(source == "unverified" or "nvml.h" in source for source in profile.not_supported.values())


def test_handles_are_found_by_every_name(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Index, UUID, serial and PCI bus id (long and short) lead to the same GPU; unknown names are not found."""
    node = make_node(gpus=4)
    gpu = node.gpus[2]
    child = nvml_child(node)
    for lookup in (
        "nvmlDeviceGetHandleByIndex(2)",
        f"nvmlDeviceGetHandleBySerial({gpu.serial!r})",
        f"nvmlDeviceGetHandleByPciBusId({gpu.pci_bus_id!r})",
        f"nvmlDeviceGetHandleByPciBusId({gpu.kernel_pci_id + '.0'!r})",
    ):
        assert child(f"nvmlDeviceGetUUID({lookup})") == gpu.uuid
    assert child.error("nvmlDeviceGetHandleByIndex(4)") == INVALID_ARGUMENT
    assert child.error("nvmlDeviceGetHandleByUUID('GPU-00000000-0000-0000-0000-000000000000')") == NOT_FOUND
    assert child.error("nvmlDeviceGetHandleByPciBusId('0000:ff:1f.0')") == NOT_FOUND


def test_calls_need_init_and_count_references(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """Before nvmlInit and after the last nvmlShutdown calls are UNINITIALIZED; in between shutdowns only count."""
    child = nvml_child(make_node(), init=False)
    child("from pynvml import _LoadNvmlLibrary; _LoadNvmlLibrary()")
    assert child.error("nvmlDeviceGetCount()") == UNINITIALIZED
    assert child.error("nvmlShutdown()") == UNINITIALIZED
    child("nvmlInit(); nvmlInit(); nvmlShutdown()")
    assert child("nvmlDeviceGetCount()") == 2
    child("d0 = nvmlDeviceGetHandleByIndex(0); nvmlShutdown()")
    assert child.error("nvmlDeviceGetName(d0)") == UNINITIALIZED


def test_arguments_are_checked_as_the_header_says(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A bad handle, a NULL result, a wrong structure version and a short buffer each get their own code."""
    child = nvml_child(make_node())
    assert child.error("nvmlDeviceGetName(c_nvmlDevice_t())") == INVALID_ARGUMENT
    assert child.error("nvmlDeviceGetName(cast(0x1234, c_nvmlDevice_t))") == INVALID_ARGUMENT
    child("lib = CDLL('libnvidia-ml.so.1')")
    assert child("lib.nvmlDeviceGetPowerUsage(d0, None)") == INVALID_ARGUMENT
    assert child("lib.nvmlDeviceGetUUID(d0, create_string_buffer(8), 8)") == INSUFFICIENT_SIZE
    assert child.error("nvmlDeviceGetMemoryInfo(d0, version=0x7000028)") == VERSION_MISMATCH
    child("fabric = c_nvmlGpuFabricInfoV_t(); fabric.version = 0")
    assert child.error("nvmlDeviceGetGpuFabricInfoV(d0, byref(fabric))") == VERSION_MISMATCH
    assert child.error("nvmlDeviceGetClockInfo(d0, 99)") == INVALID_ARGUMENT
    assert child.error("nvmlDeviceSetPowerManagementLimit(d0, 300000)") == NO_PERMISSION


def test_no_state_is_no_driver(make_node: NodeFactory, nvml_library: Path, tmp_path: Path) -> None:
    """Without a state file the library says the driver is not loaded, with a foreign one that versions mismatch."""
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\0" * 100)
    codes = []
    for path in (tmp_path / "absent", foreign):
        environment = {**make_node().environment(nvml_library), "RANKSCOPE_SIM_NVML_STATE": str(path)}
        script = "import pynvml\ntry:\n pynvml.nvmlInit()\nexcept pynvml.NVMLError as e:\n print(e.value)"
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True
        )
        codes.append(int(done.stdout))
    assert codes == [DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH]


def test_memory_and_processes(make_node: NodeFactory, nvml_child: ChildFactory) -> None:
    """A process shows with its bytes; `used` counts the reserved part in version 1 of the call only."""
    node = make_node()
    gpu = node.gpus[0]
    gpu.set_process(os.getpid(), 10 << 30)
    child = nvml_child(node)
    assert child("[(p.pid, p.usedGpuMemory) for p in nvmlDeviceGetComputeRunningProcesses(d0)]") == [
        [os.getpid(), 10 << 30]
    ]
    assert child("nvmlDeviceGetMemoryInfo(d0, version=nvmlMemory_v2).used") == 10 << 30
    assert child("nvmlDeviceGetMemoryInfo(d0).used") == (10 << 30) + gpu.memory_reserved_bytes
    assert child("nvmlDeviceGetGraphicsRunningProcesses(d0)") == []
    gpu.set_process(0, 0)
    assert child("nvmlDeviceGetComputeRunningProcesses(d0)") == []


def test_every_function_of_the_header_is_exported(nvml_library: Path) -> None:
    """Whatever nvidia-ml-py looks up and the header declares is there: no FUNCTION_NOT_FOUND by accident."""
    library = ctypes.CDLL(str(nvml_library / "libnvidia-ml.so.1"))
    looked_up = set(re.findall(r'_nvmlGetFunctionPointer\("(nvml\w+)"\)', Path(pynvml.__file__).read_text()))
    declared = set(re.findall(r"\b(nvml\w+)\s*\(", installed_header().read_text()))
    assert len(looked_up & declared) > 250
    assert [name for name in sorted(looked_up & declared) if not hasattr(library, name)] == []


def test_nvitop_sees_the_node(make_node: NodeFactory, nvml_library: Path) -> None:
    """nvitop's own device snapshot works over the library, with no reading that it could not get by our fault."""
    node = make_node("A100-SXM4-80GB")
    node.gpus[1].set_process(os.getpid(), 1 << 30)
    script = (
        "import json\nfrom nvitop import Device\n"
        "d = Device.all()[1]; s = d.as_snapshot()\n"
        "keys = [k for k, v in vars(s).items() if v == 'N/A']\n"
        "print(json.dumps([s.name, s.uuid, s.power_limit, s.memory_used, keys, list(d.processes())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **node.environment(nvml_library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, uuid, limit, used, absent, processes = json.loads(done.stdout)
    assert (name, uuid, limit, used) == ("NVIDIA A100-SXM4-80GB", node.gpus[1].uuid, 400_000, 1 << 30)
    assert set(absent) == {"fan_speed", "current_driver_model"}
    assert processes == [os.getpid()]
