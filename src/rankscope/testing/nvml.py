"""One GPU at NVML's edge: answers what a test gave it, refuses everything else as the driver does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

from rankscope.probes.nvml_api import NOT_SUPPORTED, GpuIdentity, NvmlFailure
from rankscope.probes.nvml_fields import FieldBatch, FieldRecord

_UNSIGNED_64 = 3  # nvmlValueType_t: unsigned long long
_IDENTITY = GpuIdentity(uuid="GPU-00000000-0000-0000-0000-000000000000", index=0, pci="0000:1b:00", name="Fake GPU")


class FakeGpu:
    """A `rankscope.probes.nvml_api.Gpu`.

    `answers` maps the name of a call to what it returns, or to the nvmlReturn_t that it fails with as
    `NvmlFailure`; `fields` maps a field id, or (field id, scope), to its value. What is in neither is not supported.
    """

    def __init__(
        self,
        answers: Mapping[str, Any] | None = None,
        fields: Mapping[int | tuple[int, int], int] | None = None,
        identity: GpuIdentity = _IDENTITY,
    ) -> None:
        self.identity = identity
        self.answers: dict[str, Any] = dict(answers or {})
        self.fields: dict[int | tuple[int, int], int] = dict(fields or {})

    def __getattr__(self, call: str) -> Callable[..., Any]:
        if call.startswith("_"):
            raise AttributeError(call)
        answers = self.answers

        def answer(*_arguments: Any) -> Any:
            if call not in answers:
                raise NvmlFailure(NOT_SUPPORTED, f"{call}: Not Supported")
            if isinstance(answers[call], NvmlFailure):
                raise answers[call]
            return answers[call]

        return answer

    def read_fields(self, batch: FieldBatch) -> None:
        """Fill a batch as nvmlDeviceGetFieldValues does: each field with a return code of its own."""
        batch.reset()
        records = ctypes.cast(batch.array, ctypes.POINTER(FieldRecord))
        for place, (field_id, scope) in enumerate(batch.wanted):
            value = self.fields.get((field_id, scope), self.fields.get(field_id))
            record = records[place]
            if value is None:
                record.returned = NOT_SUPPORTED
            else:
                record.returned, record.value_type, record.value, record.timestamp_us = 0, _UNSIGNED_64, value, 1
