"""Peak rates of common GPUs, to turn a model's flops into the share of the GPU that it uses (MFU)."""

from __future__ import annotations

from typing import Any

#: Begin of the name that CUDA gives a GPU -> dense bfloat16 rate of its tensor cores (float16 where it has no
#: bfloat16), operations a second. Source: NVIDIA's data sheet of each; where one gives the rate with sparsity, half.
_PEAK_FLOPS = {
    "Tesla T4": 65e12,
    "Tesla V100": 125e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A800": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 366e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H800": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
}


def peak_flops(gpu_name: str) -> int | None:
    """The rate of the GPU whose name begins with whole words of an entry, the longest one; None where unknown."""
    words = gpu_name.replace("-", " ").split()
    for count in range(len(words), 0, -1):
        peak = _PEAK_FLOPS.get(" ".join(words[:count]))
        if peak is not None:
            return int(peak)
    return None


def device_peak_flops(cuda: Any) -> int | None:
    """The rate of the GPU in use; `cuda` is torch.cuda. None where it cannot be told."""
    try:
        return peak_flops(str(cuda.get_device_properties(cuda.current_device()).name))
    except (AttributeError, RuntimeError, AssertionError):
        return None
