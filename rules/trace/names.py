"""What a kernel is, told by its name: the profiler says no more of it."""

from __future__ import annotations

import re
from enum import IntEnum

from rankscope.rules.trace.events import Kind

#: As Holistic Trace Analysis tells communication (hta/utils/utils.py): NCCL's and RCCL's kernels.
_NCCL = re.compile(r"^nccl.*Kernel")
#: Kernels that exchange data between GPUs and do not begin so: NCCL from inlined templates, MSCCL, NVSHMEM, PyTorch's
#: symmetric memory, vLLM's, TensorRT-LLM's and FlashInfer's all-reduce, DeepEP's dispatch and combine.
_EXCHANGE = re.compile(
    r"nccl(Dev|Symk|Sym)?Kernel|^msccl|nvshmem|multimem_|(one|two)_shot_all_reduce|cross_device_reduce"
    r"|allreduce_fusion_kernel|customAllReduce|deep_ep::|^rccl|oneccl|stable_barrier_kernel",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"^(Memcpy|Memset|dma|Copy(Host|Device)To)|^(memcpy|memset)(32|128)?(_post|\b)")
#: The instruction a library's kernel was built on: mma shapes of cuBLAS and cuDNN (884, 1688, 16816, 16832 stand for
#: m16n8k16 and its like), CUTLASS's tensorop, the warp and warp-group instructions, Hopper's and Blackwell's cuBLAS
#: (nvjet), fused attention, and on AMD the matrix-core tiles Tensile writes as MI16x16 (formerly MFMA).
_TENSOR_CORES = re.compile(
    r"(884|1688|16816|16832|16864|168128|168256)(gemm|cudnn|fprop|dgrad|wgrad|_|\b)|tensor_?op|wmma|[hibdq]mma|wgmma"
    r"|tcgen05|warpgroup|nvjet|_tensor\d+x\d+x\d+|flash_(fwd|bwd)|flash::|flashattn|fmha|_mfma_|_MI\d+x\d+",
    re.IGNORECASE,
)
#: Matrix products, convolutions and attention, on tensor cores or not.
_MATRIX = re.compile(
    r"gemm|gemv|conv(?!ert)|fprop|dgrad|wgrad|cutlass|xmma|nvjet|flash_|flash::|fmha|^Cijk_|implicit_|winograd|attention",
    re.IGNORECASE,
)
_LENGTH = re.compile(r"[1-9]\d{0,2}")
_COPY = re.compile(r"\((?P<source>[^()]+?) -> (?P<target>[^()]+)\)")
#: A name is shown no longer than this.
_SHOWN = 96


class Type(IntEnum):
    """What a device event does for the job."""

    COMPUTATION = 0
    COMMUNICATION = 1
    MEMORY = 2
    OTHER = 3


def event_type(name: str, kind: int) -> Type:
    """What an event does: copies and sets by their category, waits are other, kernels by their name."""
    if kind == Kind.SYNC:
        return Type.OTHER
    if kind != Kind.KERNEL or _MEMORY.search(name):
        return Type.MEMORY
    if _NCCL.match(name) or _EXCHANGE.search(name):
        return Type.COMMUNICATION
    return Type.COMPUTATION


#: `hta/utils/utils.py` of Holistic Trace Analysis 0.5.0, in its order.
_HTA_MEMORY = re.compile(r"(^Memcpy)|(^Memset)|(^dma)")
_HTA_NO_COMPUTE = re.compile(r"(^nccl.*Kernel)|(.*(Memcpy)|(Memset))|(.*Sync)")


def hta_type(name: str) -> Type:
    """What Holistic Trace Analysis takes an event for: by its name alone ("Stream Wait Event" is computation)."""
    if _NCCL.match(name):
        return Type.COMMUNICATION
    if _HTA_MEMORY.match(name):
        return Type.MEMORY
    return Type.OTHER if _HTA_NO_COMPUTE.match(name) else Type.COMPUTATION


def is_matrix(name: str) -> bool:
    """Whether a kernel multiplies matrices, convolves or attends, by its name."""
    return _MATRIX.search(name) is not None or on_tensor_cores(name)


def on_tensor_cores(name: str) -> bool:
    """Whether a kernel's name says that it uses tensor (matrix) cores."""
    return _TENSOR_CORES.search(name) is not None


def copy_sides(name: str) -> tuple[str | None, str | None]:
    """Source and target of a copy, as in `Memcpy HtoD (Pageable -> Device)`; None where its name does not say."""
    found = _COPY.search(name)
    return (found["source"].strip(), found["target"].strip()) if found else (None, None)


def short(name: str) -> str:
    """A kernel's name without return type, arguments and template arguments, at most 96 characters."""
    if name.startswith(("Memcpy", "Memset")):
        return name[:_SHOWN]
    if name.startswith("_ZN"):
        # The compiler's own spelling: lengths and names.
        name = "::".join(_mangled(name)) or name
    text = name.replace("(anonymous namespace)::", "").replace("->", "")
    kept: list[str] = []
    depth = 0
    for character in text[:2000]:
        if character in "<({":
            depth += 1
        elif character in ">)}":
            depth = max(0, depth - 1)
        elif depth == 0:
            kept.append(character)
    plain = "".join(kept).strip()
    return (plain.rsplit(" ", 1)[-1] if plain else name)[:_SHOWN]


def _mangled(name: str) -> list[str]:
    parts, place = [], 3
    while (found := _LENGTH.match(name, place)) is not None:
        place = found.end() + int(found[0])
        parts.append(name[found.end() : place])
    return parts


def collective_name(kernel: str) -> str | None:
    """`allreduce` and its like from the name of a kernel, or None."""
    found = _COLLECTIVE.search(kernel)
    return None if found is None else found[0].lower().replace("_", "")


_COLLECTIVE = re.compile(
    r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|broadcast|send_?recv|reduce|gather|scatter", re.IGNORECASE
)
