"""The table of every metric: a reading of any other name is a mistake."""

from __future__ import annotations

from rankscope.metric import Metric
from rankscope.metrics_gpu import GPU_METRICS
from rankscope.metrics_gpu_health import GPU_HEALTH_METRICS
from rankscope.metrics_host import AGENT_METRICS, CGROUP_METRICS, HOST_METRICS, PROCESS_METRICS
from rankscope.metrics_io import (
    DISK_METRICS,
    FILESYSTEM_METRICS,
    INFINIBAND_METRICS,
    LUSTRE_METRICS,
    NETWORK_METRICS,
    NFS_METRICS,
    PCIE_METRICS,
)
from rankscope.metrics_nvlink import NVLINK_METRICS

#: Every metric by name.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *GPU_METRICS,
        *GPU_HEALTH_METRICS,
        *NVLINK_METRICS,
        *HOST_METRICS,
        *CGROUP_METRICS,
        *PROCESS_METRICS,
        *DISK_METRICS,
        *FILESYSTEM_METRICS,
        *NFS_METRICS,
        *LUSTRE_METRICS,
        *NETWORK_METRICS,
        *INFINIBAND_METRICS,
        *PCIE_METRICS,
        *AGENT_METRICS,
    )
}
