"""The simulated NVML library, built once a session, and nodes to point it at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_nvml import ChildFactory, NodeFactory, NvmlChild

from rankscope.simulator.build import build
from rankscope.simulator.state import NodeState


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the library, compiled with every warning an error."""
    return build(tmp_path_factory.mktemp("nvml"), flags=("-Wall", "-Wextra", "-Werror"))


@pytest.fixture
def make_node(tmp_path: Path) -> NodeFactory:
    """Creates a host; H100s unless asked otherwise."""

    def make(profile: str = "H100-SXM5-80GB", gpus: int = 2, **more: Any) -> NodeState:
        return NodeState.create(tmp_path / "node", profile=profile, gpus=gpus, **more)

    return make


@pytest.fixture
def nvml_child(nvml_library: Path) -> Iterator[ChildFactory]:
    """Starts NVML children over a host and ends them with the test."""
    children: list[NvmlChild] = []

    def start(state: NodeState, *, init: bool = True) -> NvmlChild:
        children.append(NvmlChild(state, nvml_library, init=init))
        return children[-1]

    yield start
    for child in children:
        child.close()
