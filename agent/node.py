"""`rankscope agent`: one agent for every job of a host whose ranks attached by themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rankscope.agent.config import Settings
from rankscope.agent.containers import ContainerDirectories
from rankscope.agent.daemon import build_agent
from rankscope.agent.directories import ChangedDirectories
from rankscope.agent.export import check_export
from rankscope.agent.exposition import open_exposition
from rankscope.agent.job import WatchedJob
from rankscope.agent.places import find_process, sees_every_process
from rankscope.agent.recording_file import new_recording_path, state_directory
from rankscope.allocator import share_one_arena
from rankscope.clock import SystemClock
from rankscope.errors import RingError
from rankscope.identity import host_name
from rankscope.ring import SUFFIX, RingReader

#: Where the hooks put rings unless they are told otherwise.
DEFAULT_DIRECTORY = "/dev/shm/rankscope"


def watch_node(
    settings: Settings, *, say: Callable[[str, Path], None], refuse: Callable[[str], None], once: bool = False
) -> None:
    """Watch until SIGTERM or SIGINT; with `once`, until every job that was seen is over. Raises RankscopeError.

    `say` hears of each new job and its recording, `refuse` of each ring that cannot be read.
    """
    check_export(settings.export, os.environ)
    share_one_arena()
    clock = SystemClock()
    directory = Path(settings.rings.directory or os.environ.get("RANKSCOPE_DIR", "") or DEFAULT_DIRECTORY)
    state = settings.recording.state_directory
    exposition = open_exposition(settings, clock)
    jobs: list[WatchedJob] = []
    agent = build_agent(jobs, settings, clock)
    containers = ContainerDirectories(directory, clock)
    directories = ChangedDirectories()
    #: Rings looked at by path, so that one header is read once.
    looked_at: set[str] = set()

    def look() -> None:
        if exposition is not None:
            exposition.refresh()
        rings = [path for place in (directory, *containers.paths()) for path in _rings(place, directories)]
        for name in sorted(_jobs(rings, looked_at, refuse) - {job.name for job in agent.jobs}):
            path = new_recording_path(Path(state) if state else state_directory(), name, host_name())
            job = WatchedJob(
                job=name,
                host=host_name(),
                recording=path,
                rings=directory,
                settings=settings,
                clock=clock,
                environ=os.environ,
                only_job=name,
                containers=containers.paths,
                exposition=exposition,
            )
            agent.jobs.append(job)
            say(name, path)
        for job in [job for job in agent.jobs if job.over]:
            agent.jobs.remove(job)
            job.close("every rank has ended")
            if once and not agent.jobs:
                agent.stop("every job has ended")

    agent.run(look)


def _rings(place: Path, directories: ChangedDirectories) -> list[Path]:
    """Rings of a directory, where any may have come since it was last looked into."""
    try:
        return sorted(place.glob(f"*{SUFFIX}")) if directories.changed(place) else []
    except OSError:
        # It comes with the first ring.
        return []


def _jobs(rings: Sequence[Path], looked_at: set[str], refuse: Callable[[str], None]) -> set[str]:
    """Names of the jobs whose rings are new and whose ranks live, as far as can be seen."""
    found: set[str] = set()
    for path in rings:
        if str(path) in looked_at:
            continue
        looked_at.add(str(path))
        try:
            reader = RingReader(path, owners=frozenset({os.getuid()}) if os.getuid() else None)
        except RingError as error:
            refuse(f"a ring was refused: {error}")
            continue
        identity = reader.header.identity
        if find_process(identity.pid, identity.start_ticks) is not None or not sees_every_process():
            found.add(identity.job)
        reader.close()
    return found
