"""A simulated node behind NVML, and the probe that reads it through a real helper process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from watched_nvml import Watched, WatchNode

from rankscope.probes.nvml import NvmlProbe
from rankscope.simulator.build import build
from rankscope.simulator.state import NodeState


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the simulated NVML library."""
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def node(tmp_path: Path) -> NodeState:
    """A host of three healthy H100s."""
    return NodeState.create(tmp_path / "node", profile="H100-SXM5-80GB", gpus=3)


@pytest.fixture
def watch(library: Path) -> Iterator[WatchNode]:
    """Starts a probe over a node, by default at once ready; closes it with the test."""
    started: list[NvmlProbe] = []

    def start(state: NodeState, *, ready: bool = True, **options: Any) -> Watched:
        environment: Mapping[str, str] = {**os.environ, **state.environment(library)}
        probe = NvmlProbe(environment=environment, **options)
        started.append(probe)
        watched = Watched(probe)
        if ready:
            watched.read_until(lambda: bool(watched.probe.gpus))
        return watched

    yield start
    for probe in started:
        probe.close()
