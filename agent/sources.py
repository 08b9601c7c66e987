"""What the agent reads on this host: the built-in probes and those of other packages, less what is switched off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankscope.agent.config import Settings
from rankscope.agent.third_party import third_party_probes
from rankscope.errors import ConfigurationError
from rankscope.probes.nvml import NvmlProbe
from rankscope.probes.registry import FollowsRanks, ProbeSettings, built_in
from rankscope.reading import Group, Probe, ProbeResult


@dataclass(frozen=True, slots=True)
class Sources:
    """The probes, and the UUIDs of the GPUs that they have found so far, by index."""

    probes: Sequence[Probe]
    gpus: Callable[[], Sequence[str]]
    #: Names of probes that did not come with the agent.
    isolated: frozenset[str] = frozenset()


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

    Raises ConfigurationError where a name in `probes.disabled` is nobody's.
    """
    roots = settings.roots
    every = built_in(
        ProbeSettings(
            proc=Path(roots.proc),
            sys=Path(roots.sys),
            kernel_log=Path(roots.kernel_log),
            nvml_library=roots.nvml_library or None,
            nvml_deadline_ns=int(settings.probes.deadline_seconds * 1e9),
            nvml_replace_stuck_after_ns=int(settings.probes.replace_stuck_seconds * 1e9) or None,
        )
    )
    brought = third_party_probes({probe.name for probe in every})
    names = [probe.name for probe in (*every, *brought)]
    for name in settings.probes.disabled:
        if name not in names:
            raise ConfigurationError(f'probes.disabled names "{name}"', todo=f"there are {', '.join(names)}")
    nvml = next(probe for probe in every if isinstance(probe, NvmlProbe))
    used: list[Probe] = [
        _FollowingRanks(probe, ranks) if isinstance(probe, FollowsRanks) else probe
        for probe in (*every, *brought)
        if probe.name not in settings.probes.disabled
    ]
    isolated = frozenset(probe.name for probe in brought)
    return Sources(used, lambda: [gpu.uuid for gpu in nvml.gpus], isolated=isolated)
