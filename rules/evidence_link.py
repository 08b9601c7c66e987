"""Evidence on links: PCIe of one GPU, NVLinks of any GPU, ports of any host. Rates, not totals, and under load."""

from __future__ import annotations

from collections.abc import Iterable

from rankscope.gpu_device import part_of
from rankscope.rules.evidence import Case, Observation, graded, middling, unseen
from rankscope.rules.frame import Intervals
from rankscope.rules.telemetry import Telemetry

#: PCIe replays a second that a link in order stays below (DCGM: 0.15 to 3.84 a lane and minute, 16 lanes).
_REPLAYS = (1.0, 6.0)
#: Errors a second: CRC errors of an NVLink (DCGM fails it at 100), replays and recoveries (DCGM: any).
_CRC, _RECOVERIES = (10.0, 100.0), (0.02, 0.3)
#: Symbol errors a second of a port, and retrainings.
_SYMBOLS, _RETRAININGS = (1.0, 30.0), (0.01, 0.1)
#: A link that went down this often while it was slow.
_DOWN = (0.5, 2.5)
#: Growth of congestion counters against before, and the least rates that mean anything (a second).
_CONGESTED = (3.0, 15.0)
_LEAST_TICKS, _LEAST_MARKS = 1e6, 100.0


def pcie_width(case: Case) -> Observation:
    """The PCIe link is narrower or slower than it is made for, while it is used."""
    gpu = case.gpu(case.row)
    if gpu is None:
        return unseen(f"rank {case.frame.ranks[case.row]} did not say which GPU it runs on")
    now, before = (_speed(case.telemetry, gpu.host, gpu.uuid, over) for over in (gpu.over, gpu.before))
    if now is None:
        return unseen(f"no PCIe link of {gpu.uuid}")
    peers = middling([_speed(case.telemetry, peer.host, peer.uuid, peer.over) for peer in case.peer_gpus()])
    # What it always was does not explain what changed.
    lost = max(0.0, (1.0 if before is None else before) - now)
    strength = graded(lost, 0.2, 0.45)
    return Observation(strength, f"PCIe link at {now:.0%} of what it is made for", round(now, 2), peers)


def _speed(telemetry: Telemetry, host: str, uuid: str, over: Intervals) -> float | None:
    ratio = telemetry.typical(host, "gpu.pcie_link_speed_ratio", uuid, over)
    width = telemetry.typical(host, "gpu.pcie_link_width", uuid, over)
    most = telemetry.typical(host, "gpu.pcie_link_width_max", uuid, over)
    parts = [ratio] if ratio is not None else []
    if width is not None and most:
        parts.append(width / most)
    return min(parts, default=None)


def pcie_replays(case: Case) -> Observation:
    """The PCIe link sends packets again."""
    gpu = case.gpu(case.row)
    if gpu is None:
        return unseen(f"rank {case.frame.ranks[case.row]} did not say which GPU it runs on")
    now = case.telemetry.rate(gpu.host, "gpu.pcie_replays", gpu.uuid, gpu.over)
    if now is None:
        return unseen(f"no PCIe replays of {gpu.uuid}")
    before = case.telemetry.rate(gpu.host, "gpu.pcie_replays", gpu.uuid, gpu.before) or 0.0
    peers = middling(
        [case.telemetry.rate(peer.host, "gpu.pcie_replays", peer.uuid, peer.over) for peer in case.peer_gpus()]
    )
    what = f"{now:.1f} PCIe replays a second (before: {before:.1f})"
    return Observation(graded(now - before, *_REPLAYS), what, round(now, 2), peers)


def nvlink(case: Case) -> Observation:
    """Some NVLink of the job's GPUs repeats packets or trains anew."""
    best: Observation | None = None
    for row in range(case.frame.shape[0]):
        gpu = case.gpu(row)
        if gpu is None:
            continue
        for metric, limits in (
            ("nvlink.crc_errors", _CRC),
            ("nvlink.replay_errors", _RECOVERIES),
            ("nvlink.recovery_errors", _RECOVERIES),
            ("nvlink.recoveries", _RECOVERIES),
        ):
            for device in case.telemetry.devices(gpu.host, metric):
                part = part_of(device)
                if part.uuid != gpu.uuid:
                    continue
                rate = _grown(case.telemetry, gpu.host, metric, device, gpu.over, gpu.before)
                if rate is None:
                    continue
                what = (
                    f"link {part.link} of {gpu.uuid}: {rate:.1f} {metric.partition('.')[2].replace('_', ' ')} a second"
                )
                found = Observation(
                    graded(rate, *limits),
                    what,
                    round(rate, 2),
                    0.0,
                    rank=case.frame.ranks[row],
                    host=gpu.host,
                    device=str(part.link),
                )
                best = _stronger(best, found)
    return best or unseen("no error counters of NVLinks")


def _grown(
    telemetry: Telemetry, host: str, metric: str, device: str, over: Intervals, before: Intervals
) -> float | None:
    """A counter's rate above what it was before."""
    now = telemetry.rate(host, metric, device, over)
    return None if now is None else now - (telemetry.rate(host, metric, device, before) or 0.0)


def _stronger(best: Observation | None, found: Observation) -> Observation:
    return found if best is None or (found.strength or 0.0) > (best.strength or 0.0) else best


def _hosts(case: Case) -> Iterable[tuple[str, Intervals, Intervals]]:
    """Each host of the job with the suspect time and the time before, on its clock."""
    told = set()
    for row in range(case.frame.shape[0]):
        host = case.frame.identity(row).host
        if host not in told:
            told.add(host)
            mask, baseline = case.suspect.mask, case.suspect.baseline
            yield host, case.frame.intervals(row, mask), case.frame.intervals(row, baseline)


def _ports(
    case: Case, metrics: Iterable[tuple[str, tuple[float, float]]], what: str, *, growth: bool = False
) -> Observation:
    best: Observation | None = None
    for host, over, before in _hosts(case):
        for metric, limits in metrics:
            for device in case.telemetry.devices(host, metric):
                if growth:
                    value = case.telemetry.growth(host, metric, device, over)
                else:
                    value = _grown(case.telemetry, host, metric, device, over, before)
                if value is None:
                    continue
                unit = "times" if growth else f"{metric.partition('.')[2].replace('_', ' ')} a second"
                text = f"{what} {device} of {host}: {value:.1f} {unit}"
                found = Observation(graded(value, *limits), text, round(value, 2), host=host, device=device)
                best = _stronger(best, found)
    return best or unseen(f"no counters of network ports ({what})")


def link_down(case: Case) -> Observation:
    """A port went down and came back, more than once."""
    metrics = (("ib.link_downed", _DOWN), ("net.carrier_changes", (1.5, 5.5)))
    return _ports(case, metrics, "went down: port", growth=True)


def link_errors(case: Case) -> Observation:
    """A port receives damaged symbols, or trains again."""
    metrics = (("ib.symbol_errors", _SYMBOLS), ("ib.link_error_recoveries", _RETRAININGS))
    return _ports(case, metrics, "port")


def congestion(case: Case) -> Observation:
    """Ports have to wait for credit, and switches mark packets, many times as often as before."""
    strengths: list[tuple[float, str, str]] = []
    for host, over, before in _hosts(case):
        strongest = None
        for metric, least in (
            ("ib.transmit_wait_ticks", _LEAST_TICKS),
            ("ib.cnps_handled", _LEAST_MARKS),
            ("ib.ecn_marked_packets", _LEAST_MARKS),
        ):
            for device in case.telemetry.devices(host, metric):
                now = case.telemetry.rate(host, metric, device, over)
                usual = case.telemetry.rate(host, metric, device, before)
                if now is None:
                    continue
                times = now / max(usual or 0.0, least)
                if strongest is None or times > strongest[0]:
                    strongest = (times, f"{metric} of {device} on {host} {times:.0f} times the usual")
        if strongest is not None:
            strengths.append((graded(strongest[0], *_CONGESTED), strongest[1], host))
    if not strengths:
        return unseen("no congestion counters of network ports")
    strengths.sort(reverse=True)
    spread = sum(strength >= 0.5 for strength, _, _ in strengths)
    top = strengths[0]
    only = top[2] if spread == 1 and len(strengths) > 1 else None
    return Observation(top[0], f"{top[1]}; so on {spread} of {len(strengths)} hosts", spread, host=only)
