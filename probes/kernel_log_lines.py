"""What one line of the kernel log reports, about GPUs first."""

from __future__ import annotations

from rankscope.probes.kernel_log_gpu import gpu_notice, uuid_announced
from rankscope.probes.kernel_log_host import host_notice, oom_context
from rankscope.probes.kernel_log_record import KernelRecord, Notice, address, parse

__all__ = ["KernelRecord", "Notice", "address", "notice", "oom_context", "parse", "uuid_announced"]


def notice(text: str) -> Notice | None:
    """What one record reports, or None."""
    return gpu_notice(text) or host_notice(text)
