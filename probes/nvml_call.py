"""Calling NVML: through nvidia-ml-py where every version of it has the function, else straight into the library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pynvml

from rankscope.probes.nvml_api import DOWN, FUNCTION_NOT_FOUND, NvmlFailure


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function of nvidia-ml-py; its errors become NvmlFailure."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise NvmlFailure(int(error.value), str(error)) from None


def raw(library: Any, name: str, *arguments: Any) -> None:
    """A function of the library itself, which returns an nvmlReturn_t. Raises NvmlFailure, also where it lacks it."""
    code = raw_code(library, name, *arguments)
    if code:
        raise NvmlFailure(code, text_of(code))


def raw_code(library: Any, name: str, *arguments: Any) -> int:
    """The nvmlReturn_t of a function of the library."""
    function = getattr(library, name, None)
    return FUNCTION_NOT_FOUND if function is None else int(function(*arguments))


class Question:
    """A function of the library with its arguments and a place for the answer, made ready once to be asked for ever.

    Making them anew costs several times what the call does. Not for two threads at once.
    """

    def __init__(self, library: Any, name: str, answer: Any, *arguments: Any) -> None:
        """The function gets a handle, then `arguments`, then where to put the answer."""
        self._function = getattr(library, name, None)
        self._arguments = (*arguments, ctypes.byref(answer))
        self._answer = answer

    def ask(self, handle: Any) -> Any:
        """The answer, good until the next. Raises NvmlFailure, also where the library lacks the function."""
        function = self._function
        code = FUNCTION_NOT_FOUND if function is None else function(handle, *self._arguments)
        if code:
            raise NvmlFailure(code, text_of(code))
        return self._answer


def optional(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or None where this device or driver does not tell. Raises where the GPU is down."""
    try:
        return function(*arguments)
    except NvmlFailure as failure:
        if failure.code in DOWN:
            raise
        return None


def text_of(code: int) -> str:
    """NVML's own words for a code."""
    return str(pynvml.NVMLError(code))
