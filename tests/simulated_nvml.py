"""A child process that runs nvidia-ml-py over the simulated library, as a monitoring agent would."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankscope.simulator.state import NodeState

_CHILD = """
import json, sys, pynvml
from pynvml import *
from ctypes import *

def fields(device, ids):
    kinds = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}
    return [
        [v.nvmlReturn, v.valueType, getattr(v.value, kinds[v.valueType]), v.timestamp, v.latencyUsec]
        for v in nvmlDeviceGetFieldValues(device, ids)
    ]

space = dict(globals())
for line in sys.stdin:
    source = json.loads(line)
    try:
        try:
            code = compile(source, "call", "eval")
            result = {"value": eval(code, space)}
        except SyntaxError:
            exec(source, space)
            result = {"value": None}
    except NVMLError as error:
        result = {"nvml": error.value}
    print(json.dumps(result, default=repr), flush=True)
"""


class NvmlError(Exception):
    """The child's call ended with this nvmlReturn_t."""

    def __init__(self, code: int) -> None:
        super().__init__(f"nvmlReturn_t {code}")
        self.code = code


class NvmlChild:
    """Evaluates Python over `pynvml` in a process of its own; `device(i)` is a handle the child keeps as `d<i>`."""

    def __init__(self, state: NodeState, library: Path, *, init: bool = True) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            env={**os.environ, **state.environment(library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if init:
            self("nvmlInit()")
            for index in range(len(state.gpus)):
                if not state.gpus[index].lost:
                    self(f"d{index} = nvmlDeviceGetHandleByUUID({state.gpus[index].uuid!r})")

    def send(self, source: str) -> None:
        """Start a call without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(source) + "\n")
        self._process.stdin.flush()

    def answered(self, timeout_s: float) -> bool:
        """Whether an answer arrives within the time."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], timeout_s)[0])

    def receive(self) -> Any:
        """The answer of the oldest call; raises `NvmlError` where NVML refused."""
        assert self._process.stdout is not None
        if not self.answered(30):
            raise TimeoutError("the NVML child does not answer")
        line = self._process.stdout.readline()
        assert line, "the NVML child died"
        result = json.loads(line)
        if "nvml" in result:
            raise NvmlError(result["nvml"])
        return result["value"]

    def __call__(self, source: str) -> Any:
        self.send(source)
        return self.receive()

    def error(self, source: str) -> int:
        """The nvmlReturn_t of a call: 0 if it went well."""
        try:
            self(source)
        except NvmlError as error:
            return error.code
        return 0

    def field(self, device: int, field_id: int, scope: int = 0) -> tuple[int, int, Any]:
        """(nvmlReturn, valueType, value) of one field."""
        [[code, kind, value, _, _]] = self(f"fields(d{device}, [({field_id}, {scope})])")
        return code, kind, value

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.communicate()


NodeFactory = Callable[..., NodeState]
ChildFactory = Callable[..., NvmlChild]
