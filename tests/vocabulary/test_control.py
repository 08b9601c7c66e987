"""Orders from the agent to a rank."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscope.control import Command, ControlReader, control_path, send
from rankscope.errors import RingError


def test_a_command_arrives_once(tmp_path: Path) -> None:
    """A command is seen at the next poll, once; the same command sent again is seen again."""
    ring = tmp_path / "a.ring"
    reader = ControlReader(ring)
    assert reader.poll() is Command.NONE
    for _ in range(2):
        send(ring, Command.DETACH)
        assert reader.poll() is Command.DETACH
        assert reader.poll() is Command.NONE


@given(st.binary(min_size=16, max_size=16))
@settings(deadline=None)
def test_noise_is_no_command(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    """Whatever bytes stand in the file, nothing is obeyed that was not sent."""
    ring = tmp_path_factory.mktemp("c") / "a.ring"
    reader = ControlReader(ring)
    with control_path(ring).open("r+b") as file:
        file.write(noise)
    assert reader.poll() is Command.NONE


def test_only_a_control_file_is_written(tmp_path: Path) -> None:
    """A link, a pipe, another file or none at all is refused in one line and left as it is."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * 100)
    for name, make in (
        ("a", lambda path: path.symlink_to(victim)),
        ("b", lambda path: os.mkfifo(path)),
        ("c", lambda path: path.write_bytes(b"x" * 100)),
        ("d", lambda path: None),
    ):
        make(control_path(tmp_path / name))
        with pytest.raises(RingError):
            send(tmp_path / name, Command.DETACH)
    assert victim.read_bytes() == b"x" * 100
