"""Messages between the agent and its NVML helper: JSON objects, each behind its length in bytes.

To the helper: {"group", "gpus": [index]}. From it, told apart by "kind":
hello {driver, gpus: [identity], unreachable: [[index, code, text]]}, failed {outcome, reason},
sample {gpu, group, time_ns, values, outcomes, down, latency_us},
xid {uuid, pci, number, time_ns}, note {outcome, reason}.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from rankscope.errors import ProbeError

Message = dict[str, Any]
#: Longest message: a sample of one GPU is about 1 kB, a hello of 16 GPUs about 3 kB.
MAX_MESSAGE_BYTES = 1 << 20

_LENGTH = struct.Struct("<I")


def pack(message: Message) -> bytes:
    """A message as it travels."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Every message completed by `data`. Raises ProbeError for bytes that are no message."""
        self._pending += data
        messages: list[Message] = []
        while len(self._pending) >= _LENGTH.size:
            length = _LENGTH.unpack_from(self._pending)[0]
            if length > MAX_MESSAGE_BYTES:
                raise ProbeError(f"message of {length} bytes", where="NVML helper")
            end = _LENGTH.size + length
            if len(self._pending) < end:
                break
            try:
                message = json.loads(self._pending[_LENGTH.size : end])
            except ValueError as error:
                raise ProbeError(f"no message: {error}", where="NVML helper") from None
            if not isinstance(message, dict):
                raise ProbeError("no message: not an object", where="NVML helper")
            del self._pending[:end]
            messages.append(message)
        return messages
