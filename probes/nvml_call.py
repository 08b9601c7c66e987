"""Calling NVML: through nvidia-ml-py where every version of it has the function, else straight into the library."""

from __future__ import annotations

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


def first_known(names: tuple[str, str], *arguments: Any) -> Any:
    """Call the first of two names that both nvidia-ml-py and the library know."""
    if hasattr(pynvml, names[0]):
        try:
            return call(getattr(pynvml, names[0]), *arguments)
        except NvmlFailure as failure:
            if failure.code != FUNCTION_NOT_FOUND:
                raise
    return call(getattr(pynvml, names[1]), *arguments)


def raw(library: Any, name: str, *arguments: Any) -> None:
    """A function of the library itself, which returns an nvmlReturn_t. Raises NvmlFailure, also where it lacks it."""
    code = raw_code(library, name, *arguments)
    if code:
        raise NvmlFailure(code, text_of(code))


def raw_code(library: Any, name: str, *arguments: Any) -> int:
    """The nvmlReturn_t of a function of the library."""
    function = getattr(library, name, None)
    return FUNCTION_NOT_FOUND if function is None else int(function(*arguments))


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
