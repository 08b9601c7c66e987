"""Messages between the agent and its NVML helper: maps in MessagePack, each behind its length in bytes.

To the helper: {"group", "gpus": [index], "seen": {index: [us]}}, the last for the sample buffers alone. From it, told
apart by "kind": hello {driver, gpus: [identity], unreachable: [[index, code, text]]}, failed {outcome, reason}, sample
(sample_message), xid and gpu-event (event_message), relations
{gpu, time_ns, facts}, note {outcome, reason}.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from rankscope.errors import ProbeError
from rankscope.probes.nvml_api import GpuEvent
from rankscope.probes.nvml_sample import GpuSample

Message = dict[str, Any]
#: Longest message: the links of one GPU are about 20 kB, most samples about 1 kB, a hello of 16 GPUs about 3 kB.
MAX_MESSAGE_BYTES = 1 << 20

_LENGTH = struct.Struct("<I")


def sample_message(gpu: int, group: str, time_ns: int, sample: GpuSample) -> Message:
    """One read of one group of the GPU at an index; what is empty is left out."""
    message: Message = {"kind": "sample", "gpu": gpu, "group": group, "time_ns": time_ns, "values": sample.values}
    if sample.parts:
        parts: dict[str, dict[str, float]] = {}
        for device, metric, value in sample.parts:
            parts.setdefault(device, {})[metric] = value
        message["parts"] = parts
    if sample.series:
        of_metric = {metric: list(zip(*points, strict=True)) for metric, points in sample.series.items() if points}
        message["series"] = of_metric
    if sample.seen:
        message["seen"], message["overruns"] = sample.seen, sample.overruns
    if sample.facts:
        message["facts"] = sample.facts
    if sample.outcomes:
        message["outcomes"] = sample.outcomes
    if sample.down:
        message["down"] = sample.down
    if sample.latency_us:
        message["latency_us"] = sample.latency_us
    return message


def event_message(event: GpuEvent, time_ns: int) -> Message:
    """One event, dated by whoever waited for it."""
    gpu = event.gpu
    return {
        "kind": "gpu-event" if event.xid is None else "xid",
        "uuid": gpu.uuid if gpu else "",
        "pci": gpu.pci if gpu else None,
        "number": event.xid,
        "name": event.name,
        "time_ns": time_ns,
        "attributes": event.attributes,
    }


def pack(message: Message) -> bytes:
    """A message as it travels."""
    body = msgspec.msgpack.encode(message)
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
                message = msgspec.msgpack.decode(self._pending[_LENGTH.size : end])
            except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
                raise ProbeError(f"no message: {error}", where="NVML helper") from None
            if not isinstance(message, dict):
                raise ProbeError("no message: not an object", where="NVML helper")
            del self._pending[:end]
            messages.append(message)
        return messages
