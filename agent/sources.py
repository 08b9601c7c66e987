"""What the agent reads on this host: the built-in probes and those of other packages, less what is switched off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from rankscope.agent.config import ProbeSettings as ProbeChoice
from rankscope.agent.config import Settings
from rankscope.agent.third_party import third_party_probes
from rankscope.errors import ConfigurationError
from rankscope.probes.nvml import NvmlProbe
from rankscope.probes.nvml_reader import readable_metrics
from rankscope.probes.registry import FollowsRanks, ProbeSettings, built_in
from rankscope.reading import Group, Probe, ProbeResult


@dataclass(frozen=True, slots=True)
class Sources:
    """The probes, and the UUIDs of the GPUs that they have found so far, by index."""

    probes: Sequence[Probe]
    gpus: Callable[[], Sequence[str]]
    #: Names of probes that did not come with the agent.
    isolated: frozenset[str] = frozenset()
    #: By the name of a probe of which not every group is read, or not at its own period: what is.
    groups: Mapping[str, Sequence[Group]] = field(default_factory=dict)

    def groups_of(self, probe: Probe) -> Sequence[Group]:
        """What is read of a probe."""
        return self.groups.get(probe.name, probe.groups)


class _FollowingRanks:
    """A probe of the ranks' processes, told of those that came and went in the thread that reads it."""

    def __init__(self, probe: FollowsRanks, ranks: Callable[[], Mapping[int, int]]) -> None:
        self.name = probe.name
        self.groups: Sequence[Group] = probe.groups
        self._probe = probe
        self._ranks = ranks

    def read(self, group: str, now_ns: int) -> ProbeResult:
        self._probe.set_ranks(self._ranks())
        return self._probe.read(group, now_ns)

    def close(self) -> None:
        self._probe.close()


def build_sources(settings: Settings, ranks: Callable[[], Mapping[int, int]]) -> Sources:
    """Build every probe that is not disabled, those of other packages too.

    `ranks` gives the processes to look after now: rank -> process id.

    Raises ConfigurationError where a name in `probes.disabled` or `probes.period_seconds` is nobody's.
    """
    roots, chosen = settings.roots, settings.probes
    every = built_in(
        ProbeSettings(
            proc=Path(roots.proc),
            sys=Path(roots.sys),
            kernel_log=Path(roots.kernel_log),
            nvml_library=roots.nvml_library or None,
            nvml_deadline_ns=int(chosen.deadline_seconds * 1e9),
            nvml_replace_stuck_after_ns=int(chosen.replace_stuck_seconds * 1e9) or None,
            nvml_unread=frozenset(name.removeprefix("nvml/") for name in chosen.disabled),
        )
    )
    brought = third_party_probes({probe.name for probe in every})
    groups = {probe.name: _chosen(probe, chosen) for probe in (*every, *brought)}
    _refuse_strangers(chosen, (*every, *brought))
    nvml = next(probe for probe in every if isinstance(probe, NvmlProbe))
    used: list[Probe] = [
        _FollowingRanks(probe, ranks) if isinstance(probe, FollowsRanks) else probe
        for probe in (*every, *brought)
        if groups[probe.name]
    ]
    isolated = frozenset(probe.name for probe in brought)
    return Sources(used, lambda: [gpu.uuid for gpu in nvml.gpus], isolated=isolated, groups=groups)


def _chosen(probe: Probe, chosen: ProbeChoice) -> list[Group]:
    """The groups of a probe that are read, at the periods that are asked for."""
    if probe.name in chosen.disabled:
        return []
    return [
        _at_period(group, chosen.period_seconds.get(f"{probe.name}/{group.name}"))
        for group in probe.groups
        if f"{probe.name}/{group.name}" not in chosen.disabled
    ]


def _at_period(group: Group, seconds: float | None) -> Group:
    if seconds is None:
        return group
    steady_ns = int(seconds * 1e9)
    return replace(group, steady_ns=steady_ns, burst_ns=min(group.burst_ns, steady_ns))


def _refuse_strangers(chosen: ProbeChoice, probes: Sequence[Probe]) -> None:
    groups = [f"{probe.name}/{group.name}" for probe in probes for group in probe.groups]
    names = [probe.name for probe in probes]
    metrics = readable_metrics()
    for key, given, known in (
        ("disabled", chosen.disabled, [*names, *groups, *metrics]),
        ("period_seconds", chosen.period_seconds, groups),
    ):
        for name in given:
            if name not in known:
                probe = name.partition("/")[0]
                own = [group for group in groups if group.startswith(f"{probe}/")]
                own = own or get_close_matches(name, metrics, 3) or names
                raise ConfigurationError(f'probes.{key} names "{name}"', todo=f"there are {', '.join(own)}")
