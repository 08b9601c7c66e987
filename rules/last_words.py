"""Exceptions that name their class outright, and Xids that an exception contradicts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rankscope.reading import Event
from rankscope.rules import gpu_trouble
from rankscope.rules.evidence import Observation, unseen

#: What a rank says when its device failed: the code, the driver or the board. An assertion or a lack of memory is the
#: code's own.
DEVICE = re.compile(r"CUDA error(?!: device-side assert)|DeviceError|AcceleratorError|cudaError|GPU is lost")
#: By family.
_OUTRIGHT = {
    "no-space": re.compile(r"\[Errno (28|122)\]|No space left on device|Disk quota exceeded|errno 28\b"),
    "mismatch": re.compile(
        r"Detected mismatch between collectives|collectives? (shapes|types)? ?(do|does) not match|"
        r"mismatch(ed)? (collective|shapes between ranks)|ncclInvalidUsage|mixed types between ranks",
        re.IGNORECASE,
    ),
    "device-memory": re.compile(r"OutOfMemoryError|(CUDA|HIP)( error:)? out of memory"),
}


def last_words(events: Sequence[Event], rank: int | None) -> dict[str, Observation]:
    """What the exception of the rank that failed first says outright, by family."""
    texts = _texts(events, rank)
    if not texts:
        return dict.fromkeys(_OUTRIGHT, unseen(f"no exception of rank {rank}"))
    return {
        family: Observation(1.0, texts[0]) if pattern.search(texts[0]) else Observation(0.0, "its exception differs")
        for family, pattern in _OUTRIGHT.items()
    }


def contradicted(events: Sequence[Event], rank: int | None, seen: dict[str, Observation]) -> dict[str, Observation]:
    """Xids of the job's own kernels say nothing where the rank died of an error that is not its device's."""
    texts = _texts(events, rank)
    if not texts or DEVICE.search(texts[0]):
        return {}
    return {
        family: Observation(0.0, f"{seen[family].what}; the rank died of another error")
        for family in gpu_trouble.OF_THE_CODE
        if seen[family].strength
    }


def _texts(events: Sequence[Event], rank: int | None) -> list[str]:
    return [event.text for event in events if event.kind == "rank-exception" and event.rank == rank]
