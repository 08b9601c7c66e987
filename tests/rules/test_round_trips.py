"""Round-trip times between hosts: which host or link is named, and where nobody may be."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from synthetic_job import SECOND, Job

from rankscope.finding import Finding, Overhead, Side, Where
from rankscope.rules import judge
from rankscope.window import Series, SeriesKey, Window

FROM = 60
#: Round trips, ms, where nothing is slow.
USUAL_MS = 0.2
#: (host that tells, peer, slow) -> ms.
Trips = Callable[[str, str, bool], float | None]


def host(rank: int) -> str:
    """Each rank has a host of its own."""
    return f"node-{chr(97 + rank)}"


def spread(job: Job, trips: Trips, *, addresses: Mapping[str, str] | None = None) -> Window:
    """The job's window with a host a rank, each telling of round trips to all others."""
    window = job.window()
    ranks = {
        rank: replace(of, identity=replace(of.identity, host=host(rank), local_rank=0))
        for rank, of in window.ranks.items()
    }
    anchor = next(iter(window.anchors.values()))
    names = [host(rank) for rank in ranks]
    known = {name: f"10.0.0.{place + 1}" for place, name in enumerate(names)} | dict(addresses or {})
    slow_ns = job.starts()[FROM]
    series = {}
    for one in names:
        for other in names:
            times = range(window.begin_ns, window.end_ns, SECOND // 2)
            told = [(time_ns, trips(one, other, time_ns >= slow_ns)) for time_ns in times]
            known_ones = [(time_ns, ms) for time_ns, ms in told if ms is not None]
            if one != other and known_ones:
                series[SeriesKey(one, "tcp.rtt_ns", f"{known[one]}|{known[other]}")] = Series(
                    array("q", (time_ns for time_ns, _ in known_ones)), array("d", (ms * 1e6 for _, ms in known_ones))
                )
    return replace(window, ranks=ranks, anchors=dict.fromkeys(names, anchor), series=series)


def waiting(ranks: int, *, device: bool = False) -> Job:
    """A job whose collectives take 30 ms longer from the middle on."""
    job = Job(ranks=ranks, device=device, nvml=False)
    job.transfer[FROM:] += 30
    return job


def slow_between(*ways: tuple[str, str], to_ms: float = 8.0) -> Trips:
    """Ways that are slow in both directions."""
    return lambda one, other, slow: to_ms if slow and ((one, other) in ways or (other, one) in ways) else USUAL_MS


def told(window: Window) -> Finding:
    """The one finding."""
    (found,) = judge(window, Overhead()).findings
    return found


def place(of: Finding) -> dict[str, object]:
    """What is named, and nothing else."""
    names = ("host", "link", "rank", "device")
    return {name: getattr(of.where, name) for name in names if getattr(of.where, name) is not None}


@pytest.mark.parametrize("device", [True, False], ids=["device-clock", "host-clock"])
def test_the_host_that_all_slow_ways_share_is_named(device: bool) -> None:
    """Two of three ways are slow, and the third is not: the host that both have."""
    found = told(spread(waiting(3, device=device), slow_between(("node-a", "node-c"), ("node-b", "node-c"))))
    assert (found.class_slug, found.side) == ("network-delay", Side.ENVIRONMENT)
    assert place(found) == {"host": "node-c"}
    assert "host node-c" in found.summary


def test_a_link_is_named_with_both_ends() -> None:
    """One of three ways is slow; or there are but two hosts, so that nothing tells which end it is."""
    for ranks in (3, 2):
        found = told(spread(waiting(ranks), slow_between(("node-a", "node-b"))))
        assert (found.class_slug, place(found)) == ("network-delay", {"link": "node-a - node-b"})
        assert "between node-a and node-b" in found.summary


def test_where_every_way_is_slow_no_host_is() -> None:
    """All three ways; and of four hosts, two ways that share nothing."""
    everywhere = told(spread(waiting(3), lambda _one, _other, slow: 8.0 if slow else USUAL_MS))
    assert (everywhere.class_slug, place(everywhere)) == ("network-delay", {})
    two = told(spread(waiting(4), slow_between(("node-a", "node-b"), ("node-c", "node-d"))))
    assert (two.class_slug, place(two)) == ("network-delay", {})


def test_what_grows_a_little_beside_a_slow_host_is_well() -> None:
    """The third way takes 2 ms in place of 0.2, as where all share a machine's cores; 5 ms are too much to say."""
    ways = [("node-a", "node-c"), ("node-b", "node-c")]

    def beside(ms: float) -> Trips:
        slow = slow_between(*ways, to_ms=16.0)
        return lambda one, other, late: ms if late and {one, other} == {"node-a", "node-b"} else slow(one, other, late)

    assert place(told(spread(waiting(3), beside(2.0)))) == {"host": "node-c"}
    assert place(told(spread(waiting(3), beside(6.0)))) == {}


def one_sided(one: str, other: str, slow: bool) -> float | None:
    """Everybody sees node-c answer late; node-c sees nothing."""
    return 8.0 if slow and other == "node-c" and one != other else USUAL_MS


def unseen_by_c(one: str, other: str, slow: bool) -> float | None:
    """The same, and node-c told nothing at all."""
    return None if one == "node-c" else one_sided(one, other, slow)


@pytest.mark.parametrize(
    "trips",
    [one_sided, unseen_by_c, lambda *_: None, lambda *_: USUAL_MS, lambda _one, _other, slow: 0.35 if slow else 0.2,
     lambda _one, other, slow: None if not slow else 8.0 if other == "node-c" else USUAL_MS],
    ids=["one end only", "the other end silent", "nothing", "as before", "a little longer", "no time before"],
)  # fmt: skip
def test_what_only_one_end_sees_accuses_nobody(trips: Trips) -> None:
    """A host that acknowledges late is seen late by the others alone; without both ends, or the time before, or growth
    to speak of, the wait of all ranks stays unexplained."""
    found = told(spread(waiting(3), trips))
    assert (found.side, place(found)) == (Side.UNKNOWN, {})


def test_a_rank_that_its_host_slows_is_no_matter_of_the_network() -> None:
    """A rank that waits for its core is told as such, though the others see its host answer late, and it them."""
    job = Job(ranks=3, device=False, nvml=False).contended(2, 40, FROM)
    found = told(spread(job, slow_between(("node-a", "node-c"), ("node-b", "node-c"))))
    assert (found.class_slug, found.where.rank) == ("cpu-contention", 2)


def test_a_healthy_job_is_healthy_whatever_its_round_trips_do() -> None:
    """Round trips that no step is longer for are no finding."""
    window = spread(Job(ranks=3, device=False, nvml=False), slow_between(("node-a", "node-c"), ("node-b", "node-c")))
    assert judge(window, Overhead()).verdict == "healthy"


@pytest.mark.parametrize(("ports", "interfaces", "named"), [(9e9, 2e6, False), (2e5, 9e8, True), (None, 2e6, True)])
def test_round_trips_say_nothing_of_what_goes_past_tcp(ports: float | None, interfaces: float, named: bool) -> None:
    """Where a host sends more by InfiniBand or RoCE ports than by its interfaces, slow ways of TCP explain nothing."""
    window = spread(waiting(3, device=True), slow_between(("node-a", "node-c"), ("node-b", "node-c")))
    series = dict(window.series)
    times = range(window.begin_ns, window.end_ns, SECOND // 2)
    for metric, device, rate in (("ib.tx_bytes", "mlx5_0/1", ports), ("net.tx_bytes", "eth0", interfaces)):
        if rate is not None:
            grown = array("d", ((time_ns - window.begin_ns) / 1e9 * rate for time_ns in times))
            series[SeriesKey("node-b", metric, device)] = Series(array("q", times), grown)
    found = told(replace(window, series=series))
    assert place(found) == ({"host": "node-c"} if named else {})
    assert (found.side is Side.ENVIRONMENT) is named


def test_an_address_of_two_hosts_says_nothing() -> None:
    """Bridges have the same address everywhere: ways to it are left out, and with them whom they would name."""
    same = {"node-a": "172.17.0.1", "node-b": "172.17.0.1"}
    window = spread(waiting(3), slow_between(("node-a", "node-c"), ("node-b", "node-c")), addresses=same)
    assert place(told(window)) == {}
    assert told(window).where == Where(phase="collective_wait")
