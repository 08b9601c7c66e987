"""The table of every metric: a reading of any other name is a mistake."""

from __future__ import annotations

from rankscope.metric import Metric
from rankscope.metrics_gpu import GPU_METRICS
from rankscope.metrics_host import AGENT_METRICS, HOST_METRICS

#: Every metric by name.
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*GPU_METRICS, *HOST_METRICS, *AGENT_METRICS)}
