"""How links and processes of a GPU are named as devices of readings."""

from __future__ import annotations

import pytest

from rankscope.gpu_device import GpuPart, link_of, part_of, process_on


def test_a_part_is_found_again_by_its_name() -> None:
    """A link and a process name their GPU or MIG instance, and the whole GPU names itself."""
    assert part_of(link_of("GPU-1", 17)) == GpuPart("GPU-1", link=17)
    assert part_of(process_on("MIG-2", 4711)) == GpuPart("MIG-2", pid=4711)
    assert part_of("GPU-1") == GpuPart("GPU-1")


@pytest.mark.parametrize("device", ["", "GPU-1/nvlink:", "GPU-1/nvlink:x", "GPU-1/pid:-1", "GPU-1/pid:\u0661", "/pid:"])
def test_a_name_that_is_no_part_is_taken_whole(device: str) -> None:
    """What only looks like a part is a device of its own."""
    assert part_of(device) == GpuPart(device)
