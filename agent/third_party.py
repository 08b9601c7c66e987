"""Probes that other packages bring, found by the entry point group `rankscope.probes`.

Each is a callable without arguments that returns a Probe. One that cannot be loaded takes no one with it: it stands in
the list as a probe whose every read says why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from rankscope.errors import ProbeError
from rankscope.reading import Group, Priority, Probe, ProbeResult

GROUP = "rankscope.probes"
#: A package that does not load within this time is left behind, s.
LOAD_SECONDS = 5.0
#: Groups of one probe.
MAX_GROUPS = 32
_SHORTEST_PERIOD_NS = 10_000_000


class UnusableProbe:
    """Stands for a probe that could not be had; every read raises ProbeError with the reason."""

    groups: Sequence[Group] = (Group("load", 600 * 10**9, 600 * 10**9, "it cannot be read", Priority.LOW),)

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    def read(self, group: str, now_ns: int) -> ProbeResult:  # noqa: ARG002 - none can be read
        """Raises ProbeError."""
        raise ProbeError(self.reason, where=self.name)

    def close(self) -> None:
        """Nothing is open."""


def third_party_probes(taken: Collection[str], entries: Iterable[EntryPoint] | None = None) -> list[Probe]:
    """Every probe of other packages, in the order of their names; those in `taken` are names it may not have."""
    found = sorted(entry_points(group=GROUP) if entries is None else entries, key=lambda entry: entry.name)
    names = set(taken)
    probes: list[Probe] = []
    for entry in found:
        probe = _load(entry, names)
        names.add(probe.name)
        probes.append(probe)
    return probes


def _load(entry: EntryPoint, taken: Collection[str]) -> Probe:
    where = f"{entry.name} ({entry.value})"
    outcome: list[object] = []

    def load() -> None:
        try:
            make: Callable[[], Probe] = entry.load()
            outcome.append(make())
        except BaseException as error:
            outcome.append(error)

    # A thread that never comes back ends with the agent.
    thread = threading.Thread(target=load, name=f"load-{entry.name}", daemon=True)
    thread.start()
    thread.join(LOAD_SECONDS)
    if not outcome:
        return UnusableProbe(where, f"did not load within {LOAD_SECONDS:g} s")
    [found] = outcome
    if isinstance(found, BaseException):
        return UnusableProbe(where, f"cannot be loaded: {type(found).__name__}: {found}".replace("\n", " "))
    fault = _fault(found, taken)
    return cast(Probe, found) if fault is None else UnusableProbe(where, fault)


def _fault(probe: object, taken: Collection[str]) -> str | None:
    """Why an object is no probe, or None."""
    try:
        name, groups = getattr(probe, "name", None), getattr(probe, "groups", None)
        if not (isinstance(name, str) and name and name.isprintable() and len(name) <= 100):
            return f"is no probe: its name is {name!r:.80}"
        if name in taken:
            return f'names its probe "{name}", as another is named'
        missing = [method for method in ("read", "close") if not callable(getattr(probe, method, None))]
        if missing:
            return f"is no probe: it has no {missing[0]}()"
        if not isinstance(groups, Sequence) or not 1 <= len(groups) <= MAX_GROUPS:
            return f"is no probe: groups is {groups!r:.80}"
        for group in groups:
            if not (isinstance(group, Group) and _SHORTEST_PERIOD_NS <= group.burst_ns <= group.steady_ns):
                shortest_ms = _SHORTEST_PERIOD_NS // 10**6
                return f"has a group that cannot be: {group!r:.120} ({shortest_ms} ms <= burst_ns <= steady_ns)"
        if len({group.name for group in groups}) < len(groups):
            return "has two groups of one name"
    except Exception as error:
        return f"is no probe: {type(error).__name__}: {error}"
    return None
