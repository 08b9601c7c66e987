"""Names of hosts."""

from __future__ import annotations

import socket

import pytest

from rankscope.identity import host_name, rank_identity


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("gpu-7", "gpu-7"),
        ("gpu-7.example.org", "gpu-7"),
        ("../etc/x", "unnamed"),
        ("a b/c", "a-b-c"),
        ("x" * 99, "x" * 63),
    ],
)
def test_a_container_is_told_its_node(named: str, told: str) -> None:
    """A rank in a pod names the node that it was told, made fit for a file name."""
    environ = {"RANKSCOPE_HOST": named}
    assert host_name(environ) == told
    assert rank_identity(environ, boot_id="b").host == told


@pytest.mark.parametrize("environ", [{}, {"RANKSCOPE_HOST": ""}])
def test_otherwise_the_host_has_its_own_name(environ: dict[str, str]) -> None:
    """Without a word, or with an empty one, it is what the kernel says."""
    assert host_name(environ) == host_name({"RANKSCOPE_HOST": socket.gethostname()})
