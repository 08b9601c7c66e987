"""Evidence on the way between hosts: round-trip times of the ranks' own connections, and whom the slow ones share.

A host that answers late makes one end measure longer round trips, since it acknowledges late what it gets; what it
sends is acknowledged as fast as ever. So a way counts as slow only where both of its ends see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rankscope.metrics_rules import LABELS, unpack
from rankscope.rules.evidence import Case, Observation, graded, unseen
from rankscope.rules.frame import NS_PER_MS, Intervals, mean
from rankscope.rules.telemetry import Telemetry

_METRIC = "tcp.rtt_ns"
_LOCAL, _PEER = LABELS["tcp"]
#: Growth of a round-trip time that speaks, and speaks fully; and the least growth that counts at all, ms.
_LONGER = (2.0, 4.0)
_LEAST_MS = 0.2
#: Share of what a step lost that the growth must make up, times the passes that a ring makes over all ranks.
_EXPLAINS = (0.1, 0.4)
#: Where a rank came to wait for its cores by this share of the growth, its host is late to send and to acknowledge, and
#: what is measured there is no matter of the network.
_STARVED = 0.5
#: A way is slow from this strength on.
_SLOW = 0.5
#: Of several, those that grew by this share of the largest growth are what it is about, and those that grew by no more
#: than the other are well: where one way is slow, what shares cores or a queue with it grows a little, too.
_AS_SLOW, _WELL = 0.5, 0.25
#: A host is the place where this share of the ways to it are slow, and no more than that of the others are not well.
_OF_ITS_OWN, _OF_OTHERS = 0.8, 0.1

#: Ways that are told one by one.
_SHOWN = 3

Way = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Trip:
    """The round trip between two hosts now and before, ms, by the end that saw it grow less."""

    now_ms: float
    before_ms: float
    strength: float

    @property
    def grown_ms(self) -> float:
        """By how much it takes longer."""
        return max(0.0, self.now_ms - self.before_ms)


def round_trips(case: Case) -> Observation:
    """Packets take longer between some of the job's hosts than before, in the view of both ends."""
    hosts = _hosts(case)
    elsewhere = [host for host, (over, _) in hosts.items() if _past_tcp(case.telemetry, host, over)]
    if elsewhere:
        return unseen(f"ranks of {elsewhere[0]} send over InfiniBand or RoCE, of which TCP's round trips tell nothing")
    trips = _trips(case, hosts)
    if not trips:
        return unseen("no round-trip times between hosts, seen from both ends, now and before")
    worst = max(trips, key=lambda way: (trips[way].strength, trips[way].grown_ms))
    trip = trips[worst]
    slow = {way for way, of in trips.items() if of.strength >= _SLOW and of.grown_ms >= _AS_SLOW * trip.grown_ms}
    well = {way for way, of in trips.items() if of.grown_ms <= _WELL * trip.grown_ms}
    told = "; ".join(
        f"{link_name(way)}: round trips of {trips[way].now_ms:.2f} ms (before: {trips[way].before_ms:.2f} ms)"
        for way in sorted(slow or {worst}, key=lambda way: -trips[way].grown_ms)[:_SHOWN]
    )
    what = f"{told}; longer on {len(slow)} of {len(trips)} ways between hosts"
    host = _shared(trips, slow, well)
    alone = slow == {worst} and len(well) == len(trips) - 1 and (well or len(hosts) == 2)
    link = link_name(worst) if host is None and alone else None
    return Observation(
        trip.strength,
        what,
        round(trip.now_ms, 2),
        _elsewhere(trips[way] for way in well),
        host=host if trip.strength >= _SLOW else None,
        link=link,
    )


def link_name(way: Way) -> str:
    """The link between two hosts, as findings write it."""
    return f"{way[0]} - {way[1]}"


def _elsewhere(well: Iterable[_Trip]) -> float | None:
    """The longest round trip of the ways that are well."""
    return max((round(trip.now_ms, 2) for trip in well), default=None)


def _shared(trips: Mapping[Way, _Trip], slow: set[Way], well: set[Way]) -> str | None:
    """The one host that the slow ways have in common and the others do not; None where several could be it.

    Two ways at least must be slow, and one that passes it by be well: a link alone has two ends.
    """
    candidates = []
    for host in {end for way in slow for end in way}:
        its_own = [way for way in trips if host in way]
        others = [way for way in trips if host not in way]
        if (
            len(slow & set(its_own)) >= max(2, _OF_ITS_OWN * len(its_own))
            and well & set(others)
            and len(set(others) - well) <= _OF_OTHERS * len(others)
        ):
            candidates.append(host)
    return candidates[0] if len(candidates) == 1 else None


def _hosts(case: Case) -> dict[str, tuple[Intervals, Intervals]]:
    """Each host of the job with the suspect time and the time before, on its clock."""
    hosts: dict[str, tuple[Intervals, Intervals]] = {}
    for row in range(case.frame.shape[0]):
        host = case.frame.identity(row).host
        if host not in hosts:
            mask, baseline = case.suspect.mask, case.suspect.baseline
            hosts[host] = case.frame.intervals(row, mask), case.frame.intervals(row, baseline)
    return hosts


def _trips(case: Case, hosts: Mapping[str, tuple[Intervals, Intervals]]) -> dict[Way, _Trip]:
    """Every pair of hosts of which both tell of the other; where they have several addresses, the slowest pair."""
    seen: dict[tuple[str, str], tuple[float, float]] = {}
    owners: dict[str, set[str]] = {}
    for host, (over, before) in hosts.items():
        for device in case.telemetry.devices(host, _METRIC):
            ends = unpack("tcp", device)
            if len(ends) == 2:
                owners.setdefault(ends[_LOCAL], set()).add(host)
                times = _now_and_before(case.telemetry, host, device, over, before)
                if times is not None:
                    seen[ends[_LOCAL], ends[_PEER]] = times
    starved = {host: _starved_ms(case, host) for host in hosts}
    trips: dict[Way, _Trip] = {}
    for (local, peer), mine in seen.items():
        theirs = seen.get((peer, local))
        of = owners.get(local, set()), owners.get(peer, set())
        # An address that two hosts have, as of a bridge, says nothing of where it is.
        if theirs is None or local > peer or any(len(each) != 1 for each in of):
            continue
        one, other = sorted((*of[0], *of[1]))
        trip = min((_trip(case, each) for each in (mine, theirs)), key=lambda each: each.strength)
        known = trips.get((one, other))
        if trip.strength > 0 and max(starved[one], starved[other]) > _STARVED * trip.grown_ms:
            continue
        if one != other and (known is None or trip.strength > known.strength):
            trips[one, other] = trip
    return trips


def _past_tcp(telemetry: Telemetry, host: str, over: Intervals) -> bool:
    """Whether a host sends more by ports that pass the kernel by than by its interfaces."""

    def sent(metric: str) -> float:
        rates = [telemetry.rate(host, metric, device, over) for device in telemetry.devices(host, metric)]
        return sum(each for each in rates if each is not None)

    return sent("ib.tx_bytes") > sent("net.tx_bytes")


def _now_and_before(
    telemetry: Telemetry, host: str, device: str, over: Intervals, before: Intervals
) -> tuple[float, float] | None:
    now, usual = (telemetry.typical(host, _METRIC, device, each) for each in (over, before))
    return None if now is None or usual is None else (now / NS_PER_MS, usual / NS_PER_MS)


def _starved_ms(case: Case, host: str) -> float:
    """ms a step by which the rank of a host that came to wait most for its cores waits longer than before."""
    waits = case.frame.host("runqueue_ns") / NS_PER_MS
    rows = [row for row in range(case.frame.shape[0]) if case.frame.identity(row).host == host]
    grown = [mean(waits[row][case.mask]) - mean(waits[row][case.baseline]) for row in rows]
    return max((each for each in grown if each == each), default=0.0)


def _trip(case: Case, times: tuple[float, float]) -> _Trip:
    now, before = times
    grown = now - before
    if grown < _LEAST_MS:
        return _Trip(now, before, 0.0)
    passes = 2 * max(1, case.frame.window.world_size - 1)
    explained = grown * passes / max(case.suspect.excess_ms, 1e-9)
    return _Trip(now, before, graded(now / max(before, 1e-6), *_LONGER) * graded(explained, *_EXPLAINS))
