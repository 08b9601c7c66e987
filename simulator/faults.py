"""The faults and confounders a scenario can put on a simulated GPU."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# nvmlClocksEventReason* bits (nvml.h).
REASON_IDLE = 0x1
REASON_APPLICATION_CLOCKS = 0x2
REASON_SW_POWER_CAP = 0x4
REASON_HW_SLOWDOWN = 0x8
REASON_SYNC_BOOST = 0x10
REASON_SW_THERMAL = 0x20
REASON_HW_THERMAL = 0x40
REASON_POWER_BRAKE = 0x80
REASON_BOARD_LIMIT = 0x200
REASON_RELIABILITY = 0x400


class FaultKind(enum.StrEnum):
    """What can be applied to a GPU. The value is the name a scenario uses."""

    THERMAL_SLOWDOWN = "gpu-thermal-slowdown"
    CLOCKS_LOCKED = "gpu-clocks-locked"
    POWER_CAP = "gpu-power-cap"
    POWER_BRAKE = "gpu-power-brake"
    OFF_BUS = "gpu-off-bus"
    ECC_UNCORRECTABLE = "gpu-ecc-uncorrectable"
    SILICON_SPREAD = "silicon-spread"
    PCIE_DOWNSHIFT = "pcie-idle-downshift"
    OLD_XID = "old-xid"
    ECC_HISTORY = "ecc-history"


@dataclass(frozen=True)
class Fault:
    """One fault at work on one GPU.

    `severity` is the factor on the duration of compute work (1.25: a quarter longer). `counters=False` leaves
    only the slowness, `slowdown=False` only the counters: the two twins of a scenario. `xid=False` keeps the
    kernel log and the event queue silent.
    """

    kind: FaultKind
    severity: float = 1.0
    counters: bool = True
    slowdown: bool = True
    xid: bool = True


# Kinds that stretch compute work by their severity and hold the clock at max / severity while they last.
SLOWING = frozenset(
    {
        FaultKind.THERMAL_SLOWDOWN,
        FaultKind.CLOCKS_LOCKED,
        FaultKind.POWER_CAP,
        FaultKind.POWER_BRAKE,
        FaultKind.SILICON_SPREAD,
    }
)

# The clock event reason each kind raises. Hardware thermal comes with the general hardware slowdown bit.
REASONS = {
    FaultKind.THERMAL_SLOWDOWN: REASON_HW_THERMAL | REASON_HW_SLOWDOWN,
    FaultKind.CLOCKS_LOCKED: REASON_APPLICATION_CLOCKS,
    FaultKind.POWER_CAP: REASON_SW_POWER_CAP,
    FaultKind.POWER_BRAKE: REASON_POWER_BRAKE | REASON_HW_SLOWDOWN,
}
