"""TOML files that a site or the package brings, read with one clear line where they cannot be."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from rankscope.errors import ConfigurationError


def parse_toml(path: Path) -> dict[str, Any]:
    """The document of a file. Raises ConfigurationError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"is not valid TOML ({error})", where=str(path)) from error
    except RecursionError:
        raise ConfigurationError("is nested too deeply", where=str(path)) from None
