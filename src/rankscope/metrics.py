"""The table of every metric of ours, and what is known of any other by its name."""

from __future__ import annotations

import re
from functools import cache

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
    TCP_METRICS,
)
from rankscope.metrics_nvlink import NVLINK_METRICS
from rankscope.metrics_rules import EVENT_METRICS, FINDING_METRICS

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
        *TCP_METRICS,
        *INFINIBAND_METRICS,
        *PCIE_METRICS,
        *AGENT_METRICS,
        *FINDING_METRICS,
        *EVENT_METRICS,
    )
}

#: End of a metric's name -> its unit (UCUM), for metrics of other packages' probes. The longest that fits counts.
UNITS = {
    "_bytes_per_second": "By/s",
    "_bits_per_second": "bit/s",
    "_ns": "ns",
    "_us": "us",
    "_ms": "ms",
    "_seconds": "s",
    "_bytes": "By",
    "_celsius": "Cel",
    "_watts": "W",
    "_joules": "J",
    "_volts": "V",
    "_amperes": "A",
    "_mhz": "MHz",
    "_hertz": "Hz",
    "_rpm": "{rotation}/min",
    "_percent": "%",
    "_ratio": "1",
}
#: At the end of a name it says that only differences mean something: `fan.spent_joules_total`.
_COUNTER = "_total"
_UNFIT = re.compile(r"[^A-Za-z0-9_./-]")


@cache
def metric_named(name: str) -> Metric:
    """The metric of this name: of our table, else what the name itself says of unit and kind."""
    if name in METRICS:
        return METRICS[name]
    counted = name.endswith(_COUNTER)
    stem = name.removesuffix(_COUNTER)
    unit = next((unit for end, unit in UNITS.items() if stem.endswith(end)), "1")
    otel = _UNFIT.sub("_", name)[:255]
    return Metric(name, unit, counted, otel if otel[:1].isalpha() else f"m{otel}", "Of a probe of another package")
