"""What one rank's end says of its cause: its own fault, or the echo of another rank's.

When a rank dies, its peers end in words about collectives: time-outs, closed connections, aborted communicators. Those
words are alike whatever the cause, so they are told apart from the rest by what PyTorch, NCCL, gloo and the TCP store
write. A text that is none of these is the rank's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """How a rank ended."""

    #: Its device failed: a CUDA error that is not the code's by its words.
    DEVICE = "device"
    #: SIGKILL, or the kernel's or cgroup's killer for memory.
    KILLED = "killed"
    #: SIGSEGV, SIGBUS, SIGILL, SIGFPE: native code.
    NATIVE = "native"
    #: Device memory ran out.
    DEVICE_MEMORY = "device-memory"
    EXCEPTION = "exception"
    #: SIGABRT: native code gave up, as the watchdog of collectives does too.
    ABORTED = "aborted"
    #: A status other than 0, and no word why.
    STATUS = "status"
    #: Gone, and nobody saw how.
    VANISHED = "vanished"
    #: A collective did not end in time.
    TIMEOUT = "timeout"
    #: A peer's connection closed, a communicator was aborted by another.
    PEER_LOST = "peer-lost"
    #: Ended by the launcher, a scheduler or a person: SIGTERM, SIGINT, KeyboardInterrupt.
    STOPPED = "stopped"


#: Causes that no other rank's death produces. SIGKILL is among them although launchers use it last of all: then
#: another cause came before.
OWN = frozenset(
    {
        FailureKind.DEVICE,
        FailureKind.KILLED,
        FailureKind.NATIVE,
        FailureKind.DEVICE_MEMORY,
        FailureKind.EXCEPTION,
    }
)
#: Without a word: a cause of its own only where no rank has a better one.
WEAK = frozenset({FailureKind.ABORTED, FailureKind.STATUS, FailureKind.VANISHED})
#: What follows from another rank's death.
ECHO = frozenset({FailureKind.TIMEOUT, FailureKind.PEER_LOST, FailureKind.STOPPED})

_BY_HAND = re.compile(r"\b(KeyboardInterrupt|SystemExit|SignalException)\b")
_DEVICE_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|HIP out of memory|CUDA error: out of memory")
_DEVICE = re.compile(
    r"CUDA error(?!: (device-side assert|out of memory|invalid))|\bDeviceError\b|AcceleratorError|\bcudaError|"
    r"GPU is lost|uncorrectable ECC|HIP error|unspecified launch failure|illegal memory access"
)
#: A collective that did not end: c10d's watchdog, gloo, the store, barriers with a deadline.
_TIMEOUT = re.compile(
    r"watchdog (caught|timeout|thread terminated)|collective operation timeout|timed out waiting|"
    r"ran for \d+ milliseconds before timing out|operations? ha(s|ve) (failed or )?timed out|wait timeout|"
    r"store.{0,40}timed? ?out|timed? ?out.{0,60}(store|gloo|nccl|rendezvous|barrier)|"
    r"(store|gloo|nccl|rendezvous|barrier|collective).{0,80}timed? ?out|heartbeat monitor|"
    r"timed out after \d+ ?(ms|seconds)|Application timeout caused pair closure|"
    r"DistStoreError|failed to pass monitoredBarrier",
    re.IGNORECASE | re.DOTALL,
)
_PEER_LOST = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|remote process exited|remote peer|"
    r"socket (error|timeout|closed)|closed by (the )?(remote )?peer|peer (has )?(closed|exited|disconnected)|"
    r"NCCL (communicator|comm) (was|has been) aborted|communicator was aborted|ncclRemoteError|ncclSystemError|"
    r"ncclInProgress|DistNetworkError|failed to recv, got 0 bytes|recvValue failed|sendBytes failed|"
    r"RendezvousConnectionError|RendezvousClosedError|unhandled system error|Duplicate GPU|"
    r"\bgloo\b.{0,60}(error|failed)|process group.{0,40}(destroyed|aborted)",
    re.IGNORECASE | re.DOTALL,
)
#: Words about collectives that are nonetheless the rank's own fault.
_OWN_WORDS = re.compile(
    r"invalid usage|invalid argument|ncclInvalid|Duplicate GPU|not initialized|mismatch", re.IGNORECASE
)
#: Characters looked at from either end of a text.
_LONGEST = 8192
_NATIVE_SIGNALS = frozenset({4, 7, 8, 11})


@dataclass(frozen=True, slots=True)
class Failure:
    """One word of how a rank ended: an exception, an exit, an error file, the tail of its standard error."""

    rank: int
    #: Nanoseconds on a clock that the failures of one host share; None where it was not said.
    time_ns: int | None
    text: str = ""
    signal: int | None = None
    status: int | None = None
    host: str = ""
    #: The kernel, or its cgroup, killed it for memory.
    out_of_memory: bool = False


def kind_of_text(text: str) -> FailureKind | None:
    """What an exception's or a log's words say; None for words that say nothing of a failure."""
    if not text.strip():
        return None
    if len(text) > 2 * _LONGEST:
        # The error stands at the end, and what led to it at the begin.
        text = f"{text[:_LONGEST]}\n{text[-_LONGEST:]}"
    if _DEVICE_MEMORY.search(text):
        return FailureKind.DEVICE_MEMORY
    # The watchdog dies of a device error too, and then says so: the device comes before the peers.
    if _DEVICE.search(text):
        return FailureKind.DEVICE
    if _TIMEOUT.search(text):
        return FailureKind.TIMEOUT
    if _OWN_WORDS.search(text):
        return FailureKind.EXCEPTION
    if _PEER_LOST.search(text):
        return FailureKind.PEER_LOST
    if _BY_HAND.search(text):
        return FailureKind.STOPPED
    return FailureKind.EXCEPTION


def kind_of_exit(failure: Failure) -> FailureKind | None:
    """What the way a process ended says; None for status 0."""
    if failure.out_of_memory or failure.signal == 9:
        return FailureKind.KILLED
    if failure.signal in _NATIVE_SIGNALS:
        return FailureKind.NATIVE
    if failure.signal == 6:
        return FailureKind.ABORTED
    if failure.signal is not None:
        return FailureKind.STOPPED if failure.signal in (1, 2, 3, 10, 12, 15) else FailureKind.ABORTED
    if failure.status:
        return FailureKind.STATUS
    return FailureKind.VANISHED if failure.status is None and not failure.text else None


def kind_of_rank(failures: Sequence[Failure]) -> FailureKind | None:
    """How one rank ended, from all that was said of it.

    Its own words go before the way its process ended: an exception ends in status 1, and a watchdog in SIGABRT. Only a
    death from outside goes before words about peers, which a rank may have logged and survived.
    """
    words = [kind for each in failures if (kind := kind_of_text(each.text)) is not None]
    exits = [
        kind
        for each in failures
        if (each.signal, each.status) != (None, None) or each.out_of_memory or not each.text
        if (kind := kind_of_exit(each)) is not None
    ]
    own_words = [kind for kind in words if kind in OWN]
    if own_words:
        return min(own_words, key=_ORDER.index)
    outside = [kind for kind in exits if kind in (FailureKind.KILLED, FailureKind.NATIVE)]
    if outside and not (words and FailureKind.KILLED in outside):
        return min(outside, key=_ORDER.index)
    if any(each.out_of_memory for each in failures):
        return FailureKind.KILLED
    if words:
        return min(words, key=_ORDER.index)
    return min(exits, key=_ORDER.index, default=None)


_ORDER = tuple(FailureKind)

#: What to do about each kind.
NEXT_ACTION: dict[FailureKind, str] = {
    FailureKind.DEVICE: "Look for Xids and ECC errors of that rank's GPU, and run the job once without it: the code "
    "and the board can both do this.",
    FailureKind.KILLED: "Look who sent SIGKILL: the kernel's or the cgroup's killer for memory, or a scheduler at its "
    "limit; give the job more host memory or fewer loader workers.",
    FailureKind.NATIVE: "Get a core dump of that rank (ulimit -c unlimited) and its native stack; suspect extensions "
    "and, if it stays on one host, the host's memory.",
    FailureKind.DEVICE_MEMORY: "Make the batch smaller, or look at what grew in that rank's device memory.",
    FailureKind.EXCEPTION: "Read the exception and its traceback on that rank; the errors of the others only follow.",
    FailureKind.ABORTED: "Read that rank's standard error: native code aborted it.",
    FailureKind.STATUS: "Read that rank's standard error: it ended itself with that status.",
    FailureKind.VANISHED: "Look at that rank's host: the process is gone and nothing says how.",
    FailureKind.TIMEOUT: "Nobody failed before the time-outs: compare the flight-recorder dumps (rankscope hang) for "
    "who did not come.",
    FailureKind.PEER_LOST: "Look for the rank or host that the others lost: it left no word of its own.",
    FailureKind.STOPPED: "Look who stopped the job: a person, a scheduler's limit or preemption.",
}
