"""Evidence on what holds a GPU back beside heat and set clocks: slowdown without a reason, supply, limit, company."""

from __future__ import annotations

from rankscope.gpu_device import part_of
from rankscope.rules.evidence import Case, Gpu, Observation, graded, middling, unseen
from rankscope.rules.evidence_gpu import HW_SLOWDOWN, POWER_BRAKE, REASONS, SW_POWER_CAP, THERMAL
from rankscope.rules.frame import Intervals
from rankscope.rules.gpu_trouble import auxiliary_power

_SYNC_BOOST = 0x10
#: Share of the readings from which a bit speaks, and speaks fully: it also comes with changes of power state.
_LASTING = (0.2, 0.6)
#: A power limit this much below the board's own, or the peers', is low.
_LOWER_LIMIT = (0.02, 0.06)
#: SM time that another process takes.
_TAKEN = (0.03, 0.15)


def _of(case: Case) -> Gpu | Observation:
    gpu = case.gpu(case.row)
    return gpu or unseen(f"rank {case.frame.ranks[case.row]} did not say which GPU it runs on")


def _share(case: Case, gpu: Gpu, mask: int, over: Intervals) -> float | None:
    return case.telemetry.bit_share(gpu.host, REASONS, gpu.uuid, mask, over)


def _bit(case: Case, mask: int, what: str, *, without: int = 0) -> Observation:
    gpu = _of(case)
    if isinstance(gpu, Observation):
        return gpu
    now = _share(case, gpu, mask, gpu.over)
    if now is None:
        return unseen(f"no clock event reasons of {gpu.uuid}")
    if without:
        now = max(0.0, now - (_share(case, gpu, without, gpu.over) or 0.0))
    before = _share(case, gpu, mask, gpu.before) or 0.0
    peers = middling([_share(case, peer, mask, peer.over) for peer in case.peer_gpus()])
    strength = graded(now - before, *_LASTING)
    return Observation(strength, f"{what} in {now:.0%} of the readings", round(now, 3), peers)


def hw_slowdown(case: Case) -> Observation:
    """The hardware's own slowdown, and neither heat nor the supply given as its reason."""
    return _bit(case, HW_SLOWDOWN, "the GPU slowed itself and gave no reason", without=THERMAL | POWER_BRAKE)


def power_brake(case: Case) -> Observation:
    """The supply asks the GPU to slow down, or the board's power cable is not connected."""
    gpu = case.gpu(case.row)
    if gpu is not None and (unplugged := auxiliary_power(case.telemetry, gpu.uuid)) is not None:
        return unplugged
    return _bit(case, POWER_BRAKE, "the power supply braked the GPU")


def sync_boost(case: Case) -> Observation:
    """The GPU is held to the slowest of its sync boost group."""
    return _bit(case, _SYNC_BOOST, "sync boost held the clock")


def power_limit(case: Case) -> Observation:
    """The GPU runs into a power limit that is set lower than the board's own, or than its peers'."""
    gpu = _of(case)
    if isinstance(gpu, Observation):
        return gpu
    telemetry = case.telemetry
    limit = telemetry.typical(gpu.host, "gpu.power_limit_watts", gpu.uuid, gpu.over)
    held = _share(case, gpu, SW_POWER_CAP, gpu.over)
    if limit is None or held is None:
        return unseen(f"no power limit of {gpu.uuid}")
    own = telemetry.typical(gpu.host, "gpu.power_default_limit_watts", gpu.uuid, gpu.over)
    peers = middling(
        [telemetry.typical(peer.host, "gpu.power_limit_watts", peer.uuid, peer.over) for peer in case.peer_gpus()]
    )
    usual = max((value for value in (own, peers) if value is not None), default=limit)
    lower = graded(1 - limit / usual, *_LOWER_LIMIT) if usual > 0 else 0.0
    what = f"power limit {limit:.0f} W against {usual:.0f} W, reached in {held:.0%} of the readings"
    return Observation(min(lower, graded(held, *_LASTING)), what, round(limit), peers)


def foreign(case: Case) -> Observation:
    """A process that is none of the job's uses the rank's GPU."""
    gpu = _of(case)
    if isinstance(gpu, Observation):
        return gpu
    telemetry = case.telemetry
    ours = {of.identity.pid for of in case.frame.window.ranks.values() if of.identity.host == gpu.host}
    metric = "gpu_process.sm_utilization_ratio"
    on_gpu = [
        (part, device)
        for device in telemetry.devices(gpu.host, metric)
        if (part := part_of(device)).uuid == gpu.uuid and part.pid is not None
    ]
    if not on_gpu:
        return unseen(f"no list of the processes on {gpu.uuid}")
    if not any(part.pid in ours for part, _ in on_gpu):
        return unseen(f"process numbers on {gpu.uuid} are not the ranks' own: another namespace")
    taken, who = 0.0, None
    for part, device in on_gpu:
        if part.pid not in ours:
            now = telemetry.average(gpu.host, metric, device, gpu.over) or 0.0
            before = telemetry.average(gpu.host, metric, device, gpu.before) or 0.0
            if now - before > taken:
                taken, who = now - before, part.pid
    what = "no other process uses the GPU" if who is None else f"process {who} took {taken:.0%} of the GPU"
    return Observation(graded(taken, *_TAKEN), what, who)


def instance(case: Case) -> Observation:
    """The GPU is split into instances, and its peers are not."""
    gpu = _of(case)
    if isinstance(gpu, Observation):
        return gpu
    mode = case.telemetry.typical(gpu.host, "gpu.mig_mode", gpu.uuid, gpu.over)
    if mode is None:
        return unseen(f"no word on instances of {gpu.uuid}")
    peers = middling(
        [case.telemetry.typical(peer.host, "gpu.mig_mode", peer.uuid, peer.over) for peer in case.peer_gpus()]
    )
    before = case.telemetry.typical(gpu.host, "gpu.mig_mode", gpu.uuid, gpu.before)
    split = mode >= 0.5
    # Against the peers, or against the own past: where all always were, it explains no difference.
    differs = (peers is not None and peers < 0.5) or (before is not None and before < 0.5)
    strength = 0.0 if not split else 1.0 if differs else 0.3
    return Observation(strength, f"the GPU is {'' if split else 'not '}split into instances", mode, peers)
