"""Where it is and what it costs: every slowness of a window, each priced by what the step gives back without it."""

from __future__ import annotations

from rankscope.rules.change import LEAST_STEPS
from rankscope.rules.locate_groups import slow_stages, slow_transfers
from rankscope.rules.locate_job import late_batches, slow_job, syncs, uneven_work
from rankscope.rules.locate_links import slow_links
from rankscope.rules.locate_ranks import slow_hosts, slow_ranks
from rankscope.rules.stalls import stalls
from rankscope.rules.suspect import Suspect
from rankscope.rules.whatif_price import Prices

#: Fewer steps cannot be judged at all.
LEAST_JUDGED = 2 * LEAST_STEPS
#: A rank of a slow host is a suspect of its own where it is slower by this factor than its host.
_OVER_HOST = 1.4
#: Beside a suspect that slows the whole job, a rank must cost at least this share of it to be named too.
_BESIDE = 0.3


def suspects(prices: Prices) -> list[Suspect]:
    """Every slowness of a frame, the dearest first."""
    frame = prices.frame
    if not frame.ranks or int(frame.usable.sum()) < LEAST_JUDGED:
        return []
    data = late_batches(prices)
    found = [*data, *stalls(frame), *syncs(prices), *uneven_work(prices)]
    found += [*slow_stages(prices), *(slow_links(frame) or slow_transfers(frame))]
    hosts = slow_hosts(prices)
    found += hosts
    covering = max((suspect.fraction for suspect in found if not suspect.located), default=0.0)
    ranks = [each for each in slow_ranks(prices, data=not data) if each.fraction >= _BESIDE * covering]
    found += [each for each in ranks if not any(_with_its_host(each, host) for host in hosts)]
    found += slow_job(frame, found)
    return sorted(found, key=lambda suspect: -suspect.ms_per_step)


def _with_its_host(rank: Suspect, host: Suspect) -> bool:
    """Whether a rank is slow because all of its host's are."""
    return rank.rows[0] in host.rows and rank.excess_ms <= _OVER_HOST * host.excess_ms and rank.overlaps(host)
