"""Metrics that tell of a GPU's health: ECC, row remapping, retired pages, PCIe errors, fabric, recovery.

"Volatile" counts since the driver was loaded, "aggregate" over the board's life: history, not an event.
Sources of the meanings: nvml.h 13.5.
"""

from __future__ import annotations

from rankscope.metric import Metric, counter, gauge

#: Where ECC errors are counted (nvmlMemoryLocation_t), and which kinds are: the CBU reports uncorrected errors only.
_BOTH = ("corrected", "uncorrected")
ECC_LOCATIONS = {
    "l1": ("L1 cache", _BOTH),
    "l2": ("L2 cache", _BOTH),
    "dram": ("device memory", _BOTH),
    "register_file": ("register file", _BOTH),
    "texture": ("texture memory", _BOTH),
    "cbu": ("convergence barrier unit", ("uncorrected",)),
}
_LIFETIMES = {
    "volatile": ("", "since the driver was loaded"),
    "aggregate": (".lifetime", "in the board's life (history)"),
}


def _ecc(name: str, otel: str, what: str) -> tuple[Metric, ...]:
    return tuple(
        counter(f"gpu.{name}_{lifetime}", "{error}", f"rankscope.gpu.{otel}{suffix}", f"{what} {since}")
        for lifetime, (suffix, since) in _LIFETIMES.items()
    )


_ECC = tuple(
    metric
    for kind in _BOTH
    for metric in (
        *_ecc(f"ecc_{kind}", f"ecc.{kind}", f"{kind.capitalize()} ECC errors"),
        *(
            place
            for location, (words, kinds) in ECC_LOCATIONS.items()
            if kind in kinds
            for place in _ecc(
                f"ecc_{kind}_{location}", f"ecc.{kind}.{location}", f"{kind.capitalize()} ECC errors, {words},"
            )
        ),
    )
)

_SRAM = (
    *_ecc("sram_ecc_corrected", "sram.ecc.corrected", "Corrected SRAM errors"),
    *_ecc("sram_ecc_uncorrected_parity", "sram.ecc.uncorrected.parity", "Uncorrected SRAM errors found by parity"),
    *_ecc("sram_ecc_uncorrected_secded", "sram.ecc.uncorrected.secded", "Uncorrected SRAM errors found by SEC-DED"),
    *(
        counter(
            f"gpu.sram_ecc_uncorrected_{place}_aggregate",
            "{error}",
            f"rankscope.gpu.sram.ecc.uncorrected.{place}.lifetime",
            f"Uncorrected SRAM errors in the board's life, {words}",
        )
        for place, words in {
            "l2": "in the L2 cache",
            "sm": "in the SMs",
            "microcontroller": "in microcontrollers",
            "pcie": "in the PCIe unit",
            "other": "elsewhere",
        }.items()
    ),
    gauge(
        "gpu.sram_ecc_threshold_exceeded",
        "1",
        "rankscope.gpu.sram.ecc.threshold_exceeded",
        "1 where uncorrected SRAM errors passed the board's threshold",
    ),
)

_ROWS = (
    gauge("gpu.ecc_mode", "1", "rankscope.gpu.ecc.mode", "1 where ECC is on"),
    counter(
        "gpu.rows_remapped_corrected",
        "{row}",
        "rankscope.gpu.rows_remapped.corrected",
        "Rows remapped for corrected errors in the board's life",
    ),
    counter(
        "gpu.rows_remapped_uncorrected",
        "{row}",
        "rankscope.gpu.rows_remapped.uncorrected",
        "Rows remapped for uncorrected errors in the board's life",
    ),
    gauge("gpu.row_remap_pending", "1", "rankscope.gpu.row_remap.pending", "1 where a row remap waits for a reset"),
    gauge("gpu.row_remap_failure", "1", "rankscope.gpu.row_remap.failure", "1 where a row could not be remapped"),
    *(
        gauge(
            f"gpu.row_remap_banks_{level}",
            "{bank}",
            f"rankscope.gpu.row_remap.banks.{level}",
            f"Memory banks with {words}",
        )
        for level, words in {
            "max": "all spare rows left",
            "high": "one spare row used",
            "partial": "several spare rows used",
            "low": "one spare row left",
            "none": "no spare row left",
        }.items()
    ),
    counter(
        "gpu.retired_pages_single_bit",
        "{page}",
        "rankscope.gpu.retired_pages.single_bit",
        "Pages retired for single-bit errors in the board's life (before Ampere)",
    ),
    counter(
        "gpu.retired_pages_double_bit",
        "{page}",
        "rankscope.gpu.retired_pages.double_bit",
        "Pages retired for double-bit errors in the board's life (before Ampere)",
    ),
    gauge(
        "gpu.retired_pages_pending",
        "1",
        "rankscope.gpu.retired_pages.pending",
        "1 where a page retirement waits for a reset",
    ),
    gauge(
        "gpu.recovery_action",
        "1",
        "rankscope.gpu.recovery_action",
        "What the driver asks for: 0 nothing, 1 GPU reset, 2 reboot, 3 drain P2P, 4 drain and reset",
    ),
)

#: Name -> (unit, meaning) of the PCIe error counters (fields 94, 95, 169, 173-183).
PCIE_ERRORS = {
    "pcie_replays": ("{replay}", "PCIe packets sent again"),
    "pcie_replay_rollovers": ("{rollover}", "Times the PCIe replay number rolled over"),
    "pcie_recoveries": ("{recovery}", "Times the PCIe link went from L0 to recovery"),
    "pcie_correctable_errors": ("{error}", "Correctable PCIe errors"),
    "pcie_naks_received": ("{nak}", "PCIe NAKs received"),
    "pcie_receiver_errors": ("{error}", "PCIe receiver errors"),
    "pcie_bad_tlps": ("{packet}", "Bad PCIe transaction-layer packets"),
    "pcie_naks_sent": ("{nak}", "PCIe NAKs sent"),
    "pcie_bad_dllps": ("{packet}", "Bad PCIe data-link-layer packets"),
    "pcie_non_fatal_errors": ("{error}", "Non-fatal PCIe errors"),
    "pcie_fatal_errors": ("{error}", "Fatal PCIe errors"),
    "pcie_unsupported_requests": ("{request}", "PCIe requests that were not supported"),
    "pcie_lcrc_errors": ("{error}", "PCIe link CRC errors"),
    "pcie_lane_errors": ("{error}", "PCIe lane errors"),
}

_FABRIC = (
    gauge(
        "gpu.fabric_state",
        "1",
        "rankscope.gpu.fabric.state",
        "Registration with the fabric: 1 not started, 2 in progress, 3 complete",
    ),
    gauge("gpu.fabric_status", "1", "rankscope.gpu.fabric.status", "NVML code of a complete registration: 0 is well"),
    gauge(
        "gpu.fabric_health_mask",
        "1",
        "rankscope.gpu.fabric.health_mask",
        "Health of the fabric (NVML bit fields: degraded bandwidth, route recovery, route unhealthy, access timeout)",
    ),
    gauge(
        "gpu.fabric_health_summary",
        "1",
        "rankscope.gpu.fabric.health_summary",
        "Health of the fabric in one word: 1 healthy, 2 unhealthy, 3 limited capacity",
    ),
)

GPU_HEALTH_METRICS = (
    *_ECC,
    *_SRAM,
    *_ROWS,
    *(
        counter(f"gpu.{name}", unit, f"rankscope.gpu.pcie.{name.removeprefix('pcie_')}", meaning)
        for name, (unit, meaning) in PCIE_ERRORS.items()
    ),
    *_FABRIC,
)
