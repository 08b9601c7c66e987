"""The binary interface: what nvidia-ml-py lays out in memory is what the official header lays out."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest

from rankscope.probes.nvml_structures import C_NAMES
from rankscope.simulator.build import installed_header
from rankscope.simulator.layout import c_header

# C name -> nvidia-ml-py's structure.
STRUCTURES = {
    "nvmlFieldValue_t": pynvml.c_nvmlFieldValue_t,
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
    "nvmlSample_t": pynvml.c_nvmlSample_t,
    "nvmlProcessInfo_t": pynvml.c_nvmlProcessInfo_v3_t,
    "nvmlGpmMetricsGet_t": pynvml.c_nvmlGpmMetricsGet_t,
    "nvmlGpuFabricInfo_v2_t": pynvml.c_nvmlGpuFabricInfo_v2_t,
    "nvmlEccSramErrorStatus_v1_t": pynvml.c_nvmlEccSramErrorStatus_v1_t,
    "nvmlRowRemapperHistogramValues_t": pynvml.c_nvmlRowRemapperHistogramValues,
    "nvmlTemperature_v1_t": pynvml.c_nvmlTemperature_v1_t,
}


def test_structures_have_the_header_sizes(tmp_path: Path) -> None:
    """Every structure the probes and tools exchange with the library has one size on both sides."""
    header = installed_header()
    source = tmp_path / "sizes.c"
    lines = "".join(f'printf("{name} %zu\\n", sizeof({name}));' for name in STRUCTURES)
    source.write_text(f"#include <stdio.h>\n#include <nvml.h>\nint main(void) {{ {lines} return 0; }}\n")
    program = tmp_path / "sizes"
    subprocess.run(["cc", f"-I{header.parent}", str(source), "-o", str(program)], check=True)
    said = dict(line.split() for line in subprocess.check_output([str(program)], text=True).splitlines())
    assert {name: int(size) for name, size in said.items()} == {
        name: ctypes.sizeof(structure) for name, structure in STRUCTURES.items()
    }


def test_the_probes_structures_are_the_header_s(tmp_path: Path) -> None:
    """Each structure that the probe fills by itself has the header's size, and its fields the header's offsets."""
    header = installed_header()
    text = header.read_text()
    source = tmp_path / "offsets.c"
    calls = []
    for name in C_NAMES:
        body = re.search(rf"typedef struct[^{{}}]*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}\s*{_tag(name, text)}\s*;", text)
        assert body, name
        calls.append(f'printf("{name} %zu", sizeof({name}));')
        calls += (f'printf(" %zu", offsetof({name}, {field}));' for field in _fields(body.group(1)))
        calls.append('printf("\\n");')
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n#include <nvml.h>\nint main(void) {{ {''.join(calls)} return 0; }}\n"
    )
    program = tmp_path / "offsets"
    subprocess.run(["cc", f"-I{header.parent}", str(source), "-o", str(program)], check=True)
    for line in subprocess.check_output([str(program)], text=True).splitlines():
        name, size, *offsets = line.split()
        ours = C_NAMES[name]
        assert ctypes.sizeof(ours) == int(size), name
        own = [getattr(ours, field[0]).offset for field in ours._fields_]
        assert len(offsets) >= len(own) - 3, name
        assert own[: len(offsets)] == [int(offset) for offset in offsets], name


def _tag(name: str, text: str) -> str:
    """The name that the structure's own typedef gives, behind an alias of it."""
    alias = re.search(rf"typedef (nvml\w+) {name};", text)
    found = alias.group(1) if alias else name
    return rf"(?:\w+\s*,\s*)*{found}(?:\s*,\s*\w+)*"


def _fields(body: str) -> list[str]:
    """Names of the fields in order; one nested structure counts as what it is called, and is not compared."""
    plain = re.sub(r"/\*.*?\*/|//[^\n]*", "", body, flags=re.DOTALL)
    plain = re.sub(r"struct\s*\{[^{}]*\}\s*\w+\s*;", "", plain)
    return re.findall(r"(\w+)\s*(?:\[[^\]]*\])?\s*;", plain)


def test_a_drifted_layout_does_not_compile(tmp_path: Path) -> None:
    """The generated header asserts every offset: a field of another width on one side stops the build."""
    header = c_header()
    drifted = header.replace("    uint64_t busy_ns;", "    uint32_t busy_ns;", 1)
    assert drifted != header
    compiler = shutil.which("cc")
    assert compiler is not None
    codes = []
    for name, text in (("good", header), ("drifted", drifted)):
        file = tmp_path / f"{name}.c"
        file.write_text(text)
        codes.append(subprocess.run([compiler, "-fsyntax-only", str(file)], capture_output=True).returncode)
    assert codes[0] == 0
    assert codes[1] != 0


@pytest.mark.parametrize("name", ["nvmlInit_v2", "nvmlEventSetWait_v2", "nvmlDeviceGetComputeRunningProcesses_v3"])
def test_versioned_and_plain_names_both_exist(name: str, nvml_library: Path) -> None:
    """Old clients look up the plain name and new ones the versioned name: both are exported."""
    library = ctypes.CDLL(str(nvml_library / "libnvidia-ml.so.1"))
    assert hasattr(library, name)
    assert hasattr(library, name.rsplit("_v", 1)[0])
