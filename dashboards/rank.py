"""One rank's phases beside what its GPU did meanwhile."""

from __future__ import annotations

from dashboards.expressions import JOB, mean_ms, share_of_time
from dashboards.job import JOB_VARIABLE
from dashboards.panels import RATE, Dashboard, Panel, Variable

_RANK = f'{JOB}, rankscope_rank=~"$rank"'
#: A GPU's series, chosen by the rank that uses it: `rankscope_rank_info` joins the two.
_USED = f"on (host_name, hw_id) group_left (rankscope_rank) max by (host_name, hw_id, rankscope_rank) (rankscope_rank_info{{{_RANK}}})"


def _of_rank(expression: str) -> str:
    return f"({expression}) * {_USED}"


def _phases(clock: str) -> str:
    select = f'{{{_RANK}, rankscope_clock="{clock}"}}'
    return (
        f"1000 * sum by (rankscope_rank, rankscope_phase) (rate(rankscope_step_phase_duration_seconds_sum{select}{RATE}))"
        f" / on (rankscope_rank) group_left sum by (rankscope_rank) (rate(rankscope_step_duration_seconds_count{select}{RATE}))"
    )


RANK = Dashboard(
    uid="rankscope-rank",
    title="Rankscope: rank and GPU",
    description="One rank's phases beside its GPU's clocks, throttling, power, memory and links.",
    variables=(
        JOB_VARIABLE,
        Variable("rank", "Rank", "rankscope_rank_step", "rankscope_rank", within='rankscope_job=~"$job"', several=True),
    ),
    rows={
        "Rank": (
            Panel(
                "Phases, on the host",
                "Where does the training thread's time go?",
                _phases("host"),
                "rank {{rankscope_rank}} {{rankscope_phase}}",
                "ms",
                worst="max",
            ),
            Panel(
                "Phases, on the device",
                "Where does the device's time go?",
                _phases("device"),
                "rank {{rankscope_rank}} {{rankscope_phase}}",
                "ms",
                worst="max",
            ),
            Panel(
                "Wait by process group",
                "In which group does the rank come last (smallest wait)?",
                mean_ms(
                    "rankscope_collective_wait_duration",
                    ', rankscope_rank=~"$rank"',
                    "by (rankscope_rank, rankscope_group)",
                ),
                "rank {{rankscope_rank}} in {{rankscope_group}}",
                "ms",
                worst="min",
            ),
            Panel(
                "Waiting for a core",
                "Is the training thread kept from its core?",
                share_of_time("rankscope_process_runqueue", _RANK),
                "rank {{rankscope_rank}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
        ),
        "GPU": (
            Panel(
                "SM clock",
                "Does the GPU run slower than its peers?",
                _of_rank("rankscope_gpu_clock_sm_MHz"),
                "rank {{rankscope_rank}}",
                "rotmhz",
                minimum=None,
                worst="min",
            ),
            Panel(
                "Temperature",
                "Does it run hot?",
                _of_rank('max by (host_name, hw_id) (hw_temperature_celsius{hw_type="gpu"})'),
                "rank {{rankscope_rank}}",
                "celsius",
                minimum=None,
                worst="max",
            ),
            Panel(
                "Held down by heat",
                "For how much of the time did the GPU slow itself for heat?",
                _of_rank(share_of_time("rankscope_gpu_throttle_hw_thermal", 'hw_type="gpu"')),
                "rank {{rankscope_rank}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
            Panel(
                "Held down by the power cap",
                "For how much of the time was the power limit reached? Normal at full load.",
                _of_rank(share_of_time("rankscope_gpu_throttle_sw_power", 'hw_type="gpu"')),
                "rank {{rankscope_rank}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
            Panel(
                "Power",
                "Is it at its limit, or drawing less than peers that do the same work?",
                _of_rank('max by (host_name, hw_id) (hw_power_watts{hw_type="gpu"})'),
                "rank {{rankscope_rank}}",
                "watt",
                worst="min",
            ),
            Panel(
                "Memory in use",
                "How full is the device?",
                _of_rank(
                    "max by (host_name, hw_id) (hw_gpu_memory_usage_bytes) / max by (host_name, hw_id) (hw_gpu_memory_limit_bytes)"
                ),
                "rank {{rankscope_rank}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
            Panel(
                "NVLink, received",
                "How much comes over the links?",
                _of_rank(f"sum by (host_name, hw_id) (rate(rankscope_nvlink_rx_bytes_total{RATE}))"),
                "rank {{rankscope_rank}}",
                "Bps",
                sampled="60s",
                worst="min",
            ),
            Panel(
                "PCIe, received",
                "How much is copied to the device?",
                _of_rank("max by (host_name, hw_id) (rankscope_gpu_pcie_rx_rate_bytes_per_second)"),
                "rank {{rankscope_rank}}",
                "Bps",
                worst="min",
            ),
        ),
    },
)
