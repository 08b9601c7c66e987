"""Windows of the profiler that ranks recorded in the run: what their devices did meanwhile, kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankscope.reading import Event
from rankscope.rules.trace.bound import Bound

#: A device that idles for its host by less than this share of the time is busy; from the second on it plainly waits.
IDLE_FOR_HOST = (0.05, 0.2)


@dataclass(frozen=True, slots=True)
class KernelWindow:
    """What one window of one rank showed."""

    rank: int
    #: Of training, in which it ended; None where the rank did not say.
    step: int | None
    time_ns: int
    bound: str
    #: Share of the time in which the device idled because nothing was launched yet.
    idle_for_host: float | None
    #: The finding in words, with the longest stall, its operator and its line.
    said: str

    @property
    def host_bound(self) -> bool:
        """Whether the host, and not the device, set the pace."""
        return self.bound == Bound.HOST


def kernel_windows(events: Sequence[Event]) -> list[KernelWindow]:
    """Windows that were recorded and read, in order of time."""
    found: list[KernelWindow] = []
    steps: dict[int, int | None] = {}
    for event in sorted(events, key=lambda event: event.time_ns):
        rank, told = event.rank, event.attributes
        if rank is None:
            continue
        if event.kind == "profiler-window":
            step = told.get("step")
            steps[rank] = step if isinstance(step, int) else None
        elif event.kind == "kernel-stalls" and isinstance(bound := told.get("bound"), str):
            idle, host = told.get("idle_fraction"), told.get("host_wait_fraction")
            known = isinstance(idle, int | float) and isinstance(host, int | float)
            # An order is carried out and read before the next one.
            step = steps.pop(rank, None)
            share = float(idle) * float(host) if known and idle is not None and host is not None else None
            found.append(KernelWindow(rank, step, event.time_ns, bound, share, _said(event)))
    return found


def _said(event: Event) -> str:
    told = event.attributes
    text = event.text.partition("; longest stall")[0]
    kernel, stall_us = told.get("stall_kernel"), told.get("stall_us")
    if not isinstance(kernel, str) or not isinstance(stall_us, int | float):
        return text
    where = [str(each) for name in ("operator", "source") if (each := told.get(f"stall_{name}"))]
    host = told.get("stall_host_doing")
    text += f"; longest stalls before {kernel} ({stall_us / 1e3:.1f} ms"
    text += f", {', at '.join(where)}" if where else ""
    return text + (f"; the host was in {host})" if host else ")")
