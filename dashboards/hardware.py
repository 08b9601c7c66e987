"""Is a host's hardware sound: Xids, ECC, links, throttling?"""

from __future__ import annotations

from dashboards.expressions import share_of_time, short_gpu
from dashboards.panels import RATE, Dashboard, Panel, Variable
from dashboards.xids import xids

_HOST = 'host_name=~"$host"'


HARDWARE = Dashboard(
    uid="rankscope-hardware",
    title="Rankscope: hardware",
    description="What the driver, the kernel and the links report, by GPU and host.",
    variables=(Variable("host", "Host", "rankscope_agent_cpu_ratio", "host_name", several=True),),
    rows={
        "GPUs": (
            xids("Which errors did the driver report, on which GPU?", _HOST),
            Panel(
                "Uncorrected ECC errors",
                "Did GPU memory fail?",
                short_gpu(f"rankscope_gpu_ecc_uncorrected_total{{{_HOST}}}"),
                "{{host_name}} {{gpu}}",
                worst="max",
            ),
            Panel(
                "Corrected ECC errors an hour",
                "Does a GPU correct more than its peers?",
                short_gpu(f"increase(rankscope_gpu_ecc_corrected_total{{{_HOST}}}[1h])"),
                "{{host_name}} {{gpu}}",
                worst="max",
            ),
            Panel(
                "Rows waiting to be remapped",
                "Is a reset needed before the GPU is sound again?",
                short_gpu(f"max by (host_name, hw_id) (rankscope_gpu_row_remap_pending_ratio{{{_HOST}}})"),
                "{{host_name}} {{gpu}}",
                worst="max",
            ),
            Panel(
                "Held down by heat",
                "Which GPU slows itself?",
                short_gpu(share_of_time("rankscope_gpu_throttle_hw_thermal", _HOST)),
                "{{host_name}} {{gpu}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
            Panel(
                "Held down by the power brake",
                "Does the power supply pull the brake?",
                short_gpu(share_of_time("rankscope_gpu_throttle_hw_power_brake", _HOST)),
                "{{host_name}} {{gpu}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
            Panel(
                "PCIe replays",
                "Is a slot or riser bad?",
                short_gpu(f"rate(rankscope_gpu_pcie_replays_total{{{_HOST}}}{RATE})"),
                "{{host_name}} {{gpu}}",
                worst="max",
            ),
        ),
        "Links": (
            Panel(
                "NVLink errors",
                "Does a link repeat or retrain?",
                short_gpu(
                    f"sum by (host_name, hw_id, rankscope_link) (rate(rankscope_nvlink_replay_errors_total{{{_HOST}}}{RATE}))"
                ),
                "{{host_name}} {{gpu}} link {{rankscope_link}}",
                sampled="60s",
                worst="max",
                empty="no NVLink is read",
            ),
            Panel(
                "InfiniBand faults",
                "Is a cable or port bad? Each of these counts a fault, not congestion.",
                f"sum by (host_name, system_device) (rate(rankscope_ib_fault_symbol_total{{{_HOST}}}{RATE}))",
                "{{host_name}} {{system_device}}",
                worst="max",
                empty="no InfiniBand port is read",
            ),
            Panel(
                "InfiniBand congestion",
                "Is the fabric busy? Nothing here is the host's fault.",
                f"sum by (host_name, system_device) (rate(rankscope_ib_congestion_transmit_wait_total{{{_HOST}}}{RATE}))",
                "{{host_name}} {{system_device}}",
                worst="max",
                empty="no InfiniBand port is read",
            ),
            Panel(
                "PCIe errors corrected",
                "Does a device of the host correct errors on its link?",
                f"rate(rankscope_pcie_correctable_total{{{_HOST}}}{RATE})",
                "{{host_name}} {{system_device}}",
                sampled="30s",
                worst="max",
                empty="no device counts them",
            ),
        ),
        "Host": (
            Panel(
                "I/O pressure",
                "For how much of the time did tasks wait for storage?",
                share_of_time("rankscope_host_pressure_io_some", _HOST),
                "{{host_name}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
            Panel(
                "CPU pressure",
                "For how much of the time did tasks wait for a core?",
                share_of_time("rankscope_host_pressure_cpu_some", _HOST),
                "{{host_name}}",
                "percentunit",
                maximum=1,
                worst="max",
            ),
        ),
    },
)
