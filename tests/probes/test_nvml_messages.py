"""Messages between the agent and its helper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankscope.errors import ProbeError
from rankscope.probes.nvml_messages import MAX_MESSAGE_BYTES, Message, Unpacker, pack

_MESSAGES = st.lists(
    st.dictionaries(st.text(), st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.booleans()),
    max_size=5,
)


@given(_MESSAGES, st.integers(1, 7))
def test_messages_come_whole_however_the_stream_is_cut(messages: list[Message], piece: int) -> None:
    """A pipe may cut anywhere; what comes out is what went in."""
    stream = b"".join(pack(message) for message in messages)
    unpacker = Unpacker()
    received = [m for at in range(0, len(stream), piece) for m in unpacker.feed(stream[at : at + piece])]
    assert received == messages


@given(st.binary())
def test_noise_is_a_typed_error_or_unfinished(noise: bytes) -> None:
    """Bytes that are no message raise ProbeError and nothing else."""
    try:
        Unpacker().feed(noise)
    except ProbeError:
        return


@given(st.binary(max_size=64) | st.sampled_from([b"\xa1\xff", b"\x81\x90\x01", b"\x91" * 100_000]))
def test_a_frame_of_noise_is_a_typed_error_or_an_object(noise: bytes) -> None:
    """So it is where the length is right and what follows is no message: bad text, odd keys, a bottomless list."""
    try:
        messages = Unpacker().feed(len(noise).to_bytes(4, "little") + noise)
    except ProbeError:
        return
    assert all(isinstance(message, dict) for message in messages)


def test_a_message_longer_than_any_of_ours_is_refused() -> None:
    """A wild length is not waited for."""
    with pytest.raises(ProbeError, match="bytes"):
        Unpacker().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"))
