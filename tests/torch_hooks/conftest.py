"""A scope on this process for one test, and what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rankscope.records import RingRecord
from rankscope.ring import RingReader
from rankscope.torch_hooks import Scope, attachment


@pytest.fixture
def scope(tmp_path: Path) -> Iterator[Scope]:
    """A scope with a ring directory of its own, detached after the test."""
    attached = Scope(
        {"RANKSCOPE_DIR": str(tmp_path / "rings"), "RANKSCOPE_STACK_SIGNAL": ""}, write_error=_fail_on_error
    )
    attached.install()
    yield attached
    attached.detach()


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scope]:
    """The process's own scope, as `attach()` gives it to an adapter, with rings in a place of the test's own."""
    monkeypatch.setattr(attachment, "_attached", None)
    yield attachment.attach({"RANKSCOPE_DIR": str(tmp_path / "rings"), "RANKSCOPE_STACK_SIGNAL": ""})
    attachment.detach()


def _fail_on_error(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture
def records(tmp_path: Path) -> Callable[[], list[RingRecord]]:
    """Reads everything written so far."""

    def read() -> list[RingRecord]:
        rings = list((tmp_path / "rings").glob("*.ring"))
        assert len(rings) == 1, rings
        return RingReader(rings[0]).read().records

    return read
