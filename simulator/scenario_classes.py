"""What can be wrong, or odd but innocent, in a scenario: the tables scenario files are checked by.

Every class can be generated (rankscope.simulator.generate); those marked `real` can also strike a real job on the
simulated node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.finding import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultClass:
    """What a fault of one class means in a scenario."""

    side: Side
    #: The keys that may say where, one of which must be given: gpu, rank, host, stage.
    places: tuple[str, ...]
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
    #: Kinds of workload it needs; empty: any.
    workloads: tuple[str, ...] = ()
    #: Whether a real job can have it.
    real: bool = False


_WORK = "factor on the duration of the GPU's compute work"
_PAUSE = "milliseconds of each pause"
_TRANSFER = "factor on the time of the transfers that cross it"
_COPY = "factor on the time to copy a batch to the device"
_FETCH = "factor on the time to fetch a batch"
_LAUNCH = "factor on the processor time to launch a step"


def _gpu(side: Side, *, real: bool = False, places: tuple[str, ...] = ("gpu",)) -> FaultClass:
    return FaultClass(side=side, places=places, severity=_WORK, default_severity=1.25, twins=True, real=real)


def _stop(side: Side, *, real: bool = False, twins: bool = False) -> FaultClass:
    return FaultClass(side=side, places=("gpu",), fatal=True, twins=twins, xid=real, real=real)


def _pause(severity_ms: float, *, real: bool = True) -> FaultClass:
    return FaultClass(
        side=Side.CODE,
        places=("rank",),
        severity=_PAUSE,
        default_severity=severity_ms,
        everywhere=True,
        periodic=True,
        real=real,
    )


def _counter() -> FaultClass:
    return FaultClass(side=Side.HARDWARE, places=("gpu",))


def _link(side: Side, places: tuple[str, ...], *, everywhere: bool = False) -> FaultClass:
    return FaultClass(
        side=side, places=places, severity=_TRANSFER, default_severity=4.0, twins=True, everywhere=everywhere
    )


def _on_host(severity: str, default: float, *, twins: bool = True, everywhere: bool = False) -> FaultClass:
    return FaultClass(
        side=Side.ENVIRONMENT,
        places=("host",),
        severity=severity,
        default_severity=default,
        twins=twins,
        everywhere=everywhere,
    )


def _on_rank(side: Side, severity: str, default: float, **more: bool) -> FaultClass:
    return FaultClass(side=side, places=("rank",), severity=severity, default_severity=default, **more)  # type: ignore[arg-type]


def _everywhere(severity: str, default: float) -> FaultClass:
    return FaultClass(side=Side.CODE, places=(), severity=severity, default_severity=default, everywhere=True)


#: Every class of fault that can be injected. The slugs are those of the evidence table.
FAULT_CLASSES: Mapping[str, FaultClass] = {
    # A GPU computes slowly.
    "gpu-thermal-slowdown": _gpu(Side.HARDWARE, real=True),
    "gpu-hw-slowdown": _gpu(Side.HARDWARE),
    "gpu-clocks-locked": _gpu(Side.ENVIRONMENT, real=True),
    "gpu-power-brake": _gpu(Side.ENVIRONMENT, places=("gpu", "host")),
    "gpu-power-limit-low": _gpu(Side.ENVIRONMENT),
    "gpu-sync-boost": _gpu(Side.ENVIRONMENT, places=("host",)),
    "cooling-plant": _gpu(Side.ENVIRONMENT, places=("host",)),
    "noisy-neighbour": _gpu(Side.ENVIRONMENT),
    "mig-misconfigured": _gpu(Side.ENVIRONMENT),
    # Links.
    "nvlink-degraded": _link(Side.HARDWARE, ("gpu",)),
    "pcie-downgraded": FaultClass(
        side=Side.HARDWARE, places=("gpu",), severity=_COPY, default_severity=6.0, twins=True
    ),
    "pcie-replays": FaultClass(side=Side.HARDWARE, places=("gpu",), severity=_COPY, default_severity=6.0, twins=True),
    "network-link-flap": _link(Side.HARDWARE, ("host",)),
    "network-link-errors": _link(Side.HARDWARE, ("host",)),
    "network-congestion": _link(Side.ENVIRONMENT, ("host",), everywhere=True),
    # The host.
    "cpu-contention": _on_rank(Side.ENVIRONMENT, "busy processes that compete for the rank's core", 3.0, real=True),
    "cpu-frequency-low": _on_host(_LAUNCH, 4.0),
    "memory-pressure": _on_host("milliseconds of each stall", 60.0),
    "page-cache-thrash": _on_host(_FETCH, 20.0),
    "slow-storage": FaultClass(
        side=Side.ENVIRONMENT, places=("host",), severity=_FETCH, default_severity=20.0, twins=True, real=True
    ),
    "network-filesystem-slow": _on_host(_FETCH, 20.0, everywhere=True),
    # The job's own code, data and configuration.
    "numa-misbound": _on_rank(Side.CODE, "factor on the host's part of the step and on copies", 3.0, twins=True),
    "input-bound": _on_rank(
        Side.CODE, "factor on the processor time to prepare a batch", 20.0, everywhere=True, real=True
    ),
    "pageable-copies": _everywhere(_COPY, 6.0),
    "host-sync": _on_rank(
        Side.CODE, "times a step that the host waits for its device", 4.0, everywhere=True, periodic=True, real=True
    ),
    "launch-bound": _everywhere(_LAUNCH, 15.0),
    "gc-pause": _pause(60.0),
    "checkpoint-stall": _pause(200.0),
    "recompilation": _pause(300.0, real=False),
    "allocator-retries": _pause(40.0, real=False),
    "logging-stall": _pause(150.0, real=False),
    "work-imbalance": _on_rank(Side.CODE, "factor on the size of the rank's batches", 1.25, real=True, everywhere=True),
    "stage-imbalance": FaultClass(
        side=Side.CODE,
        places=("stage",),
        severity="factor on what the stage computes",
        default_severity=1.5,
        workloads=("pipeline",),
    ),
    "expert-imbalance": _on_rank(Side.CODE, "factor on the tokens of the rank's expert", 1.5),
    # What ends a job.
    "gpu-off-bus": _stop(Side.HARDWARE, real=True, twins=True),
    "gpu-ecc-uncorrectable": _stop(Side.HARDWARE, real=True, twins=True),
    "gpu-row-remap-failed": _stop(Side.HARDWARE),
    "gpu-ecc-contained": _stop(Side.HARDWARE),
    "gpu-engine-exception": _stop(Side.CODE),
    "gpu-page-fault": _stop(Side.CODE),
    "gpu-firmware-hang": _stop(Side.HARDWARE),
    "nvlink-down": _stop(Side.HARDWARE),
    "gpu-fabric-error": _stop(Side.HARDWARE),
    "nvlink-training-failed": _stop(Side.HARDWARE),
    "gpu-peer-access-refused": _stop(Side.CODE),
    "disk-full": FaultClass(side=Side.ENVIRONMENT, places=("rank",), fatal=True),
    "rank-killed": FaultClass(side=Side.ENVIRONMENT, places=("rank",), fatal=True, real=True),
    "rank-hang": FaultClass(side=Side.CODE, places=("rank",), fatal=True, real=True),
    "rank-exception": FaultClass(side=Side.CODE, places=("rank",), fatal=True, real=True),
    "collective-mismatch": FaultClass(side=Side.CODE, places=("rank",), fatal=True),
    "gpu-out-of-memory": FaultClass(side=Side.CODE, places=("rank",), fatal=True),
    # What only counts up.
    "gpu-ecc-corrected-storm": _counter(),
    "gpu-row-remap-pending": _counter(),
    "gpu-board-error": _counter(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfounderKind:
    """Something odd that must not be accused."""

    what: str
    #: The key that says where; "" for everywhere.
    place: str = ""
    #: Meaning of `severity`; "" where it has none.
    severity: str = ""
    default_severity: float = 1.0
    least: float = 1.0
    most: float = 100.0
    periodic: bool = False
    real: bool = False


#: Every confounder.
CONFOUNDERS: Mapping[str, ConfounderKind] = {
    "power-cap": ConfounderKind(
        what="every GPU runs at its power limit and says so",
        severity="factor on compute time",
        default_severity=1.05,
        real=True,
    ),
    "old-xid": ConfounderKind(what="the kernel log holds an Xid from hours before the job", place="gpu", real=True),
    "ecc-history": ConfounderKind(what="lifetime ECC counters tell of errors long past", place="gpu", real=True),
    "silicon-spread": ConfounderKind(
        what="one GPU is slower by nature",
        place="gpu",
        severity="fraction, 0.08 for 8 %",
        default_severity=0.08,
        least=0.0,
        most=0.5,
        real=True,
    ),
    "more-work": ConfounderKind(
        what="one rank is given larger batches",
        place="rank",
        severity="factor on their size",
        default_severity=1.25,
        real=True,
    ),
    "variable-length": ConfounderKind(
        what="batches of every step differ in length, on all ranks alike",
        severity="longest against shortest",
        default_severity=2.0,
    ),
    "batch-ramp": ConfounderKind(
        what="batches grow in the course of the run, on all ranks alike",
        severity="factor at the end",
        default_severity=1.5,
    ),
    "warm-up": ConfounderKind(
        what="the first steps take long", severity="factor on the first step", default_severity=10.0
    ),
    "periodic-checkpoint": ConfounderKind(
        what="checkpoints are written, each in little time",
        severity="milliseconds of each",
        default_severity=50.0,
        most=60_000,
        periodic=True,
    ),
    "periodic-evaluation": ConfounderKind(
        what="the job evaluates now and then, on all ranks alike",
        severity="milliseconds of each",
        default_severity=1_000.0,
        most=600_000,
        periodic=True,
    ),
    "slow-code": ConfounderKind(
        what="the model is slow by itself, on all ranks and from the first step",
        severity="factor on compute time",
        default_severity=2.0,
    ),
    "idle-pcie-downshift": ConfounderKind(what="a PCIe link says that it is slow where it idles", place="gpu"),
    "healed-flap": ConfounderKind(what="a link of the network flapped once, and nothing waited for it", place="host"),
    "telemetry-missing": ConfounderKind(what="one GPU says nothing", place="gpu"),
    "hot-chassis": ConfounderKind(
        what="a GPU is warmer for where it sits, and not slower",
        place="gpu",
        severity="degrees above its peers",
        default_severity=12.0,
    ),
    "cold-cache": ConfounderKind(
        what="the first batches come slowly, until caches are warm",
        severity="milliseconds of the first wait",
        default_severity=200.0,
        most=60_000,
    ),
    "asynchronous-checkpoint": ConfounderKind(
        what="a checkpoint is uploaded while training goes on: disk and network are busy", periodic=True
    ),
    "brief-throttle": ConfounderKind(what="a GPU throttles for one or two per cent of the time", place="gpu"),
    "rare-spikes": ConfounderKind(
        what="single steps of single ranks are late",
        severity="per cent of the steps",
        default_severity=1.0,
        least=0.0,
        most=20.0,
    ),
}
