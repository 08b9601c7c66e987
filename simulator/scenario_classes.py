"""What can be wrong, or odd but innocent, in a simulated run: the tables scenario files are checked by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.finding import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultClass:
    """What a fault of one class means in a scenario."""

    side: Side
    #: The key that says where: gpu, rank or host.
    place: str
    #: Meaning of `severity`, and its least value; "" where the class has none.
    severity: str = ""
    default_severity: float = 1.0
    least_severity: float = 1.0
    #: Without its place the fault is on every rank.
    everywhere: bool = False
    #: Whether counters=false and slowdown=false (the twins) make sense.
    twins: bool = False
    #: Whether it comes back every N steps (`every`); without, it lasts from from_step to to_step.
    periodic: bool = False
    #: Whether it may be silent in the kernel log and event queue (`xid`).
    xid: bool = False
    #: Whether it ends the job: `to_step` has no meaning.
    fatal: bool = False


_WORK = "factor on the duration of the GPU's compute work"
_PAUSE = "milliseconds of each pause"

#: Every class of fault that can be injected.
FAULT_CLASSES: Mapping[str, FaultClass] = {
    "gpu-thermal-slowdown": FaultClass(
        side=Side.HARDWARE, place="gpu", severity=_WORK, default_severity=1.25, twins=True
    ),
    "gpu-off-bus": FaultClass(side=Side.HARDWARE, place="gpu", twins=True, xid=True, fatal=True),
    "gpu-ecc-uncorrectable": FaultClass(side=Side.HARDWARE, place="gpu", twins=True, xid=True, fatal=True),
    "gpu-clocks-locked": FaultClass(
        side=Side.ENVIRONMENT, place="gpu", severity=_WORK, default_severity=1.25, twins=True
    ),
    "cpu-contention": FaultClass(
        side=Side.ENVIRONMENT,
        place="rank",
        severity="busy processes that compete for the rank's core",
        default_severity=3.0,
    ),
    "slow-storage": FaultClass(
        side=Side.ENVIRONMENT,
        place="host",
        severity="factor on the time to fetch a batch from storage",
        default_severity=20.0,
        twins=True,
    ),
    "rank-killed": FaultClass(side=Side.ENVIRONMENT, place="rank", fatal=True),
    "input-bound": FaultClass(
        side=Side.CODE,
        place="rank",
        severity="factor on the processor time to prepare a batch",
        default_severity=20.0,
        everywhere=True,
    ),
    "host-sync": FaultClass(
        side=Side.CODE,
        place="rank",
        severity="times a step that the host waits for its device",
        default_severity=4.0,
        everywhere=True,
        periodic=True,
    ),
    "gc-pause": FaultClass(
        side=Side.CODE,
        place="rank",
        severity=_PAUSE,
        default_severity=60.0,
        everywhere=True,
        periodic=True,
    ),
    "checkpoint-stall": FaultClass(
        side=Side.CODE,
        place="rank",
        severity=_PAUSE,
        default_severity=200.0,
        everywhere=True,
        periodic=True,
    ),
    "rank-hang": FaultClass(side=Side.CODE, place="rank", fatal=True),
    "rank-exception": FaultClass(side=Side.CODE, place="rank", fatal=True),
    "work-imbalance": FaultClass(
        side=Side.CODE,
        place="rank",
        severity="factor on the size of the rank's batches",
        default_severity=1.25,
    ),
}

#: Every confounder, with its meaning and the place it takes ("" for every GPU alike).
CONFOUNDERS: Mapping[str, tuple[str, str]] = {
    "power-cap": ("every GPU runs at its power limit and says so; severity: factor on compute time", ""),
    "old-xid": ("the kernel log holds an Xid from hours before the job", "gpu"),
    "ecc-history": ("lifetime ECC counters tell of errors long past", "gpu"),
    "silicon-spread": ("one GPU is slower by nature; severity: the fraction, 0.08 for 8 %", "gpu"),
    "more-work": ("one rank is given larger batches; severity: factor on their size", "rank"),
}
