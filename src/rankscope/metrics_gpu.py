"""Every metric of a GPU."""

from __future__ import annotations

from rankscope.metric import counter, gauge

GPU_METRICS = (
    gauge(
        "gpu.utilization_ratio",
        "1",
        "hw.gpu.utilization",
        "Share of time in which a kernel ran, spin-waits included",
    ),
    gauge(
        "gpu.memory_utilization_ratio",
        "1",
        "rankscope.gpu.memory.activity",
        "Share of time in which memory was read or written",
    ),
    gauge("gpu.memory_used_bytes", "By", "hw.gpu.memory.usage", "Device memory in use"),
    gauge("gpu.memory_total_bytes", "By", "hw.gpu.memory.limit", "Device memory there is"),
    gauge("gpu.power_watts", "W", "hw.power", "Board power, averaged by the device"),
    gauge("gpu.power_instant_watts", "W", "rankscope.gpu.power.instant", "Board power at the moment"),
    gauge("gpu.power_limit_watts", "W", "rankscope.gpu.power.limit", "Enforced power limit"),
    gauge(
        "gpu.power_default_limit_watts",
        "W",
        "rankscope.gpu.power.limit.default",
        "Power limit the board ships with",
    ),
    counter("gpu.energy_joules", "J", "hw.energy", "Energy drawn since the driver was loaded"),
    gauge("gpu.sm_clock_mhz", "MHz", "rankscope.gpu.clock.sm", "Clock of the streaming multiprocessors"),
    gauge("gpu.sm_clock_max_mhz", "MHz", "rankscope.gpu.clock.sm.max", "Highest SM clock of the device"),
    gauge("gpu.memory_clock_mhz", "MHz", "rankscope.gpu.clock.memory", "Memory clock"),
    gauge(
        "gpu.clock_event_reasons",
        "1",
        "rankscope.gpu.clock.event_reasons",
        "Why the clock is where it is (NVML bit mask)",
    ),
    counter(
        "gpu.throttle_sw_power_ns",
        "ns",
        "rankscope.gpu.throttle.sw_power",
        "Time held down by the software power cap",
    ),
    counter(
        "gpu.throttle_sw_thermal_ns",
        "ns",
        "rankscope.gpu.throttle.sw_thermal",
        "Time held down by software thermal slowdown",
    ),
    counter(
        "gpu.throttle_sync_boost_ns",
        "ns",
        "rankscope.gpu.throttle.sync_boost",
        "Time held down by sync boost",
    ),
    counter(
        "gpu.throttle_hw_thermal_ns",
        "ns",
        "rankscope.gpu.throttle.hw_thermal",
        "Time held down by hardware thermal slowdown",
    ),
    counter(
        "gpu.throttle_hw_power_brake_ns",
        "ns",
        "rankscope.gpu.throttle.hw_power_brake",
        "Time held down by the power brake",
    ),
    gauge("gpu.temperature_celsius", "Cel", "hw.temperature", "GPU temperature"),
    gauge("gpu.memory_temperature_celsius", "Cel", "rankscope.gpu.memory.temperature", "Memory temperature"),
    gauge(
        "gpu.slowdown_temperature_celsius",
        "Cel",
        "rankscope.gpu.temperature.slowdown",
        "Temperature at which the device slows itself down",
    ),
    counter(
        "gpu.ecc_corrected_volatile",
        "{error}",
        "rankscope.gpu.ecc.corrected",
        "Corrected ECC errors since the driver was loaded",
    ),
    counter(
        "gpu.ecc_uncorrected_volatile",
        "{error}",
        "rankscope.gpu.ecc.uncorrected",
        "Uncorrected ECC errors since the driver was loaded",
    ),
    counter(
        "gpu.ecc_corrected_aggregate",
        "{error}",
        "rankscope.gpu.ecc.corrected.lifetime",
        "Corrected ECC errors in the board's life (history, not an event)",
    ),
    counter(
        "gpu.ecc_uncorrected_aggregate",
        "{error}",
        "rankscope.gpu.ecc.uncorrected.lifetime",
        "Uncorrected ECC errors in the board's life (history, not an event)",
    ),
    counter("gpu.pcie_tx_bytes", "By", "rankscope.gpu.pcie.tx", "PCIe bytes sent"),
    counter("gpu.pcie_rx_bytes", "By", "rankscope.gpu.pcie.rx", "PCIe bytes received"),
    counter("gpu.pcie_replays", "{replay}", "rankscope.gpu.pcie.replays", "PCIe packets sent again"),
    counter("gpu.nvlink_tx_bytes", "By", "rankscope.gpu.nvlink.tx", "NVLink payload bytes sent over all links"),
    counter("gpu.nvlink_rx_bytes", "By", "rankscope.gpu.nvlink.rx", "NVLink payload bytes received over all links"),
)
