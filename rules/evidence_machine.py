"""Evidence on the host as a machine: its clock, its memory, its page cache, its file server, and who is bound where."""

from __future__ import annotations

import numpy as np

from rankscope.rules.evidence import Case, Observation, graded, middling, unseen
from rankscope.rules.frame import NS_PER_MS, Intervals

#: A processor clock this much below its own past or its peers'.
_SLOWER_CORES = (0.15, 0.4)
#: Share of the time in which some task waited for memory; pages swapped in and major faults a second.
_WAITED, _SWAPPED, _FAULTS = (0.05, 0.2), (200.0, 2_000.0), (200.0, 1_500.0)
#: Pages read again soon after they were evicted, a second.
_REFAULTS = (1_000.0, 10_000.0)
#: A server that takes this many times as long to answer, or (without a past) this many ms.
_SLOWER, _ANSWER_MS = (2.0, 6.0), (15.0, 50.0)


def _other_hosts(case: Case) -> list[tuple[str, Intervals]]:
    """The other hosts, each with the suspect time on its clock."""
    found: dict[str, Intervals] = {}
    for row in case.peers:
        host = case.frame.identity(row).host
        if host != case.host and host not in found:
            found[host] = case.frame.intervals(row, case.mask)
    return list(found.items())


def cpu_frequency(case: Case) -> Observation:
    """The host's cores run slower than they did, or than those of the other hosts."""
    metric = "host.cpu_frequency_mhz"
    now = case.telemetry.typical(case.host, metric, "", case.over)
    if now is None:
        return unseen("no processor frequency")
    before = case.telemetry.typical(case.host, metric, "", case.before)
    peers = middling([case.telemetry.typical(host, metric, "", over) for host, over in _other_hosts(case)])
    usual = before if before is not None else peers
    if usual is None:
        return unseen("no processor frequency to compare with")
    what = f"cores at {now:.0f} MHz against {usual:.0f} MHz"
    return Observation(graded(1 - now / usual, *_SLOWER_CORES), what, round(now), peers)


def _rate_above(case: Case, metric: str) -> float | None:
    now = case.telemetry.rate(case.host, metric, "", case.over)
    return None if now is None else max(0.0, now - (case.telemetry.rate(case.host, metric, "", case.before) or 0.0))


def memory(case: Case) -> Observation:
    """The host is short of memory: tasks wait for it, pages come back from swap."""
    pieces = []
    for metric, limits, unit, scale in (
        ("host.pressure_memory_some_ns", _WAITED, "of the time some task waited for memory", 1e9),
        ("host.swap_in_pages", _SWAPPED, "pages a second came back from swap", 1.0),
        ("host.major_faults", _FAULTS, "major faults a second", 1.0),
    ):
        rate = _rate_above(case, metric)
        if rate is not None:
            value = rate / scale
            shown = f"{value:.0%}" if scale > 1 else f"{value:.0f}"
            pieces.append(Observation(graded(value, *limits), f"{shown} {unit}", round(value, 3)))
    return max(pieces, key=lambda piece: piece.strength or 0.0, default=unseen("no memory pressure of the host"))


def refaults(case: Case) -> Observation:
    """Files are read again soon after they left the page cache."""
    rate = _rate_above(case, "host.refaulted_pages")
    if rate is None:
        return unseen("no refaults of the page cache")
    return Observation(graded(rate, *_REFAULTS), f"{rate:.0f} pages a second read again after eviction", round(rate))


def file_server(case: Case) -> Observation:
    """A network filesystem's server takes longer to answer."""
    slowest: Observation | None = None
    for operations, waited in (("nfs.operations", "nfs.rtt_ns"), ("lustre.rpcs", "lustre.rpc_wait_ns")):
        for device in case.telemetry.devices(case.host, operations):
            now = _answer_ms(case, operations, waited, device, case.over)
            if now is None:
                continue
            before = _answer_ms(case, operations, waited, device, case.before)
            strength = graded(now, *_ANSWER_MS) if before is None else graded(now / max(before, 1.0), *_SLOWER)
            what = f"{device} answered in {now:.1f} ms" + ("" if before is None else f" (before: {before:.1f} ms)")
            if slowest is None or strength > (slowest.strength or 0.0):
                slowest = Observation(strength, what, round(now, 2))
    return slowest or unseen("no requests to a network filesystem")


def _answer_ms(case: Case, operations: str, waited: str, device: str, over: Intervals) -> float | None:
    count = case.telemetry.growth(case.host, operations, device, over)
    took = case.telemetry.growth(case.host, waited, device, over)
    if count is None or took is None or count < 10:
        return None
    return took / count / NS_PER_MS


def numa(case: Case) -> Observation:
    """The rank's thread is bound to another NUMA node than its GPU's."""
    identity = case.frame.identity(case.row)
    bound = case.telemetry.typical(identity.host, "process.numa_node", f"rank:{identity.rank}", case.over)
    near = next(
        (
            event.attributes.get("numa_node")
            for event in reversed(case.frame.window.events)
            if event.kind == "gpu-described" and event.device == identity.gpu_uuid
        ),
        None,
    )
    if bound is None or not isinstance(near, int | float):
        return unseen("no NUMA node of the rank or of its GPU")
    before = case.telemetry.typical(identity.host, "process.numa_node", f"rank:{identity.rank}", case.before)
    away = bound != near and not (before is not None and np.isclose(before, bound))
    what = f"the rank runs on NUMA node {bound:.0f}, its GPU is on node {near:.0f}"
    return Observation(1.0 if away else 0.0, what, bound, float(near))
