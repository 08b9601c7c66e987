"""How a generated job ends: the events of the rank or GPU that broke first, and the echoes of all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankscope.reading import Event, Severity
from rankscope.simulator.generated_job import Job
from rankscope.simulator.scenario import Fault
from rankscope.simulator.scenario_classes import FAULT_CLASSES

MS = 1_000_000
SECOND = 1_000_000_000
#: What a rank says of a device that failed under it, and of a peer that went away.
_DEVICE_ERROR = ("AcceleratorError", "CUDA error: unspecified launch failure")
_ECHO = (
    "DistBackendError",
    "NCCL error: remote process exited or there was a network error. ncclRemoteError: connection closed by remote peer",
)
#: How long after the last step ranks are called hung.
_HANG_NS = 60 * SECOND


@dataclass(frozen=True, slots=True)
class Ending:
    """What one class does: Xids in the order of the log, and what the rank says."""

    xids: tuple[tuple[int, str], ...] = ()
    exception: tuple[str, str] | None = _DEVICE_ERROR
    hangs: bool = False
    lost: bool = False
    signal: int | None = None


#: By class. Messages are worded as the driver and PyTorch word them.
ENDINGS: Mapping[str, Ending] = {
    "gpu-off-bus": Ending(((79, "GPU has fallen off the bus."),), lost=True),
    "gpu-ecc-uncorrectable": Ending(
        (
            (
                48,
                "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer.",
            ),
            (63, "Row Remapper: New row (0x00000000007fffa8) marked for remapping, reset gpu to activate."),
            (45, "Ch 00000008"),
            (154, "GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)"),
        )
    ),
    "gpu-row-remap-failed": Ending(
        ((64, "Row Remapper: Failed to remap row (0x00000000007fffa8)."), (45, "Ch 00000008"))
    ),
    "gpu-ecc-contained": Ending(((94, "Contained: CE User Channel (0x9). RST: No, D-RST: No"), (45, "Ch 00000008"))),
    "gpu-engine-exception": Ending(
        ((13, "Graphics SM Warp Exception on (GPC 0, TPC 1, SM 1): Out Of Range Address"), (43, "Ch 00000008"))
    ),
    "gpu-page-fault": Ending(
        (
            (31, "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7f2a_4c000000."),
            (43, "Ch 00000008"),
        ),
        ("AcceleratorError", "CUDA error: an illegal memory access was encountered"),
    ),
    "gpu-firmware-hang": Ending(
        ((119, "Timeout after 6s of waiting for RPC response from GPU3 GSP!"),), None, hangs=True
    ),
    "nvlink-down": Ending(((74, "NVLink: fatal error detected on link 3(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"),)),
    "gpu-fabric-error": Ending(((145, "RLW_REMAP (Fatal) XC0 in Link 03 (0x1 0x0 0x0 0x0 0x0 0x0)"),)),
    "nvlink-training-failed": Ending(((136, "NVLink: link 3 failed to train"),)),
    "gpu-peer-access-refused": Ending(((137, "NVLink: peer access fault on link 3"), (43, "Ch 00000008"))),
    "disk-full": Ending(exception=("OSError", "[Errno 28] No space left on device: 'checkpoint-0100.pt'")),
    "rank-killed": Ending(exception=None, signal=9),
    "rank-hang": Ending(exception=None, hangs=True),
    "rank-exception": Ending(exception=("ValueError", "expected a batch of 64 columns, got 32")),
    "collective-mismatch": Ending(
        exception=(
            "RuntimeError",
            "Detected mismatch between collectives on ranks. Rank 0 is running collective: OpType=ALLREDUCE, but ...",
        )
    ),
    "gpu-out-of-memory": Ending(
        exception=("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 0.61 GiB free.")
    ),
}


@dataclass
class Ended:
    """The end of a job: when, what was said, and what does not answer any more."""

    step: int
    status: int | None
    events: list[Event] = field(default_factory=list)
    silent_from_ns: int | None = None
    silent_rank: int | None = None


def fatal_of(job: Job) -> Fault | None:
    """The first fault that ends the job."""
    fatal = [fault for fault in job.scenario.faults if FAULT_CLASSES[fault.class_slug].fatal and fault.slowdown]
    return min(fatal, key=lambda fault: fault.from_step, default=None)


def end_of(job: Job, fault: Fault, at_ns: int, uuids: list[str], hosts: list[str]) -> Ended:
    """What follows when a fault strikes at `at_ns`, in the step it names."""
    ending = ENDINGS[fault.class_slug]
    root = fault.rank if fault.rank is not None else fault.gpu or 0
    ended = Ended(fault.from_step, 1)
    device = uuids[root] if root < len(uuids) else ""
    if fault.counters:
        ended.events += signs(fault, at_ns, device, hosts[root])
        if ending.lost:
            ended.silent_from_ns, ended.silent_rank = at_ns, root
    if ending.hangs:
        _hang(job, ended, root, at_ns, uuids, hosts)
        return ended
    said = ending.exception
    seconds = job.random.uniform(0.3, 1.5)
    first = at_ns + int(seconds * SECOND)
    status: int | None = None
    if said is not None:
        ended.events.append(_exception(root, said, first, fault.from_step, uuids, hosts))
        status = 1
    else:
        ended.status = 128 + (ending.signal or 0)
    for rank in range(job.shape[0]):
        if rank == root:
            continue
        later = first + int(job.random.uniform(0.05, 1.0) * SECOND)
        ended.events.append(_exception(rank, _ECHO, later, fault.from_step, uuids, hosts))
    for rank in range(job.shape[0]):
        mine = rank == root
        signal = ending.signal if mine else 15
        ended.events.append(
            _exited(
                rank,
                first + (0 if mine and status is None else 2 * SECOND),
                fault.from_step,
                uuids,
                hosts,
                status=status if mine else None,
                signal=signal,
                clean=not mine or status is not None,
            )
        )
    return ended


def signs(fault: Fault, at_ns: int, device: str, host: str) -> list[Event]:
    """What driver and kernel log say of it."""
    ending = ENDINGS[fault.class_slug]
    events = []
    if fault.xid:
        for place, (number, message) in enumerate(ending.xids):
            text = f"NVRM: Xid (PCI:0000:1b:00): {number}, {message}"
            attributes: dict[str, str | int | float | None] = {
                "number": number,
                "message": message,
                "source": "kernel-log",
                "pci": "0000:1b:00",
            }
            events.append(
                Event("xid", at_ns + place * MS, text, Severity.WARNING, device, host=host, attributes=dict(attributes))
            )
            events.append(
                Event(
                    "xid",
                    at_ns + place * MS + 5 * MS,
                    f"Xid {number} reported by NVML",
                    Severity.WARNING,
                    device,
                    host=host,
                    attributes={"number": number, "message": None, "source": "nvml", "pci": "0000:1b:00"},
                )
            )
    if ending.lost:
        events.append(
            Event(
                "gpu-lost",
                at_ns + 150 * MS,
                f"{device}: it is lost (NVML code 15)",
                Severity.CRITICAL,
                device,
                host=host,
                attributes={"source": "nvml", "pci": "0000:1b:00"},
            )
        )
    if fault.class_slug == "gpu-firmware-hang":
        events.append(
            Event(
                "probe-stalled",
                at_ns + 6 * SECOND,
                "nvml does not answer",
                Severity.WARNING,
                host=host,
                attributes={"probe": "nvml", "waited_ns": 6 * SECOND},
            )
        )
    return events


def _hang(job: Job, ended: Ended, root: int, at_ns: int, uuids: list[str], hosts: list[str]) -> None:
    ended.status = 143
    for rank in range(job.shape[0]):
        step = ended.step if rank == root else ended.step + 1
        phase = "forward" if rank == root else "collective_wait"
        ended.events.append(
            Event(
                "rank-hung",
                at_ns + _HANG_NS,
                f"rank {rank} has been in {phase} of step {step} for 60.0 s (process state S)",
                Severity.CRITICAL,
                uuids[rank],
                rank,
                hosts[rank],
                {
                    "step": step,
                    "phase": phase,
                    "since_ns": at_ns,
                    "state": "S",
                    "waited_ns": _HANG_NS,
                    "pid": 1000 + rank,
                },
            )
        )
    for rank in range(job.shape[0]):
        ended.events.append(
            _exited(rank, at_ns + _HANG_NS + 10 * SECOND, ended.step, uuids, hosts, status=None, signal=15, clean=False)
        )


def _exception(rank: int, said: tuple[str, str], at_ns: int, step: int, uuids: list[str], hosts: list[str]) -> Event:
    kind, text = said
    return Event(
        "rank-exception",
        at_ns,
        f"rank {rank} ended with {kind}: {text}",
        Severity.CRITICAL,
        uuids[rank],
        rank,
        hosts[rank],
        {"type": kind, "step": step, "pid": 1000 + rank},
    )


def _exited(
    rank: int,
    at_ns: int,
    step: int,
    uuids: list[str],
    hosts: list[str],
    *,
    status: int | None,
    signal: int | None,
    clean: bool,
) -> Event:
    how = f"was ended by signal {signal}" if status is None else f"ended with status {status}"
    attributes: dict[str, str | int | float | None] = {
        "pid": 1000 + rank,
        "clean": int(clean),
        "last_step": step - 1,
        "phase": "ended" if clean else "forward",
        "attempt": 0,
    }
    attributes |= {"signal": signal} if status is None else {"status": status}
    severity = Severity.INFO if clean else Severity.CRITICAL
    return Event(
        "rank-exited",
        at_ns,
        f"rank {rank} (pid {1000 + rank}) {how}",
        severity,
        uuids[rank],
        rank,
        hosts[rank],
        attributes,
    )
