"""What a run was made of, so that two runs can be set side by side: names and versions, and never a secret.

Of the environment only variables on the list below are taken, and none whose name speaks of a secret. Of the command
line option names are taken, and values only where they are numbers, paths, or short words behind an option; any other
value is replaced by 16 bits of a hash, which tell whether it changed and not what it was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Variables that steer what runs on the devices and between them: these, and those that begin so.
ENVIRONMENT = frozenset(
    {
        "CUBLAS_WORKSPACE_CONFIG",
        "LD_PRELOAD",
        "MKL_NUM_THREADS",
        "NVIDIA_PYTORCH_VERSION",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_NUM_THREADS",
        "OMP_PROC_BIND",
        "PYTORCH_ALLOC_CONF",
        "PYTHONHASHSEED",
        "RANKSCOPE_DATA",
        "RANKSCOPE_IMAGE",
        "SLURM_CONTAINER_IMAGE",
        "TOKENIZERS_PARALLELISM",
    }
)
ENVIRONMENT_PREFIXES = ("CUDA_", "CUDNN_", "FI_", "GLOO_", "NCCL_", "PYTORCH_", "TORCH_", "UCX_")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|PW$|PIN$|CRED|AUTH|COOKIE|SIGN|LOGIN|USER|ACCOUNT", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"//[^/@\s]+@")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
#: What options are set to: words, names of number formats, sizes of models.
_WORD = re.compile(r"[A-Za-z_-]{1,12}|(bf|fp|int|tf|float|bfloat)\d{1,2}|\d{1,4}(\.\d+)?[bBkKmMgG]")
#: A short option may have its value behind it without a space, so only the shortest are taken.
_OPTION = re.compile(r"--[A-Za-z][\w.-]{0,60}|-[A-Za-z]{1,3}")
_PATH = re.compile(r"\.{0,2}/[\w./-]{1,200}|[\w-]{1,40}(/[\w-]{1,40})*\.(py|yaml|yml|json|toml|txt|parquet)")
_VALUE_LENGTH = 200
#: Directories above a script in which its repository is looked for.
_ABOVE = 8
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


def secret_name(name: str) -> bool:
    """Whether a name speaks of a secret."""
    return _SECRET.search(name) is not None


def allowed_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that may be recorded, values cut and without passwords in addresses."""
    return {
        name: _PASSWORD_IN_URL.sub("//***@", value)[:_VALUE_LENGTH]
        for name, value in sorted(environ.items())
        if (name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)) and not secret_name(name)
    }


def safe_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without what could be a secret: see above."""
    safe = []
    option = ""
    for argument in arguments:
        if argument.startswith("-") and not _NUMBER.fullmatch(argument):
            option, equals, value = argument.partition("=")
            safe.append(f"{_option(option)}={_value(value, option)}" if equals else _option(option))
            option = "" if equals else option
        else:
            safe.append(_value(argument, option))
            option = ""
    return safe


def _option(name: str) -> str:
    return name if _OPTION.fullmatch(name) else "-" + _hashed(name)


def _value(value: str, option: str) -> str:
    """A value as it may be recorded; `option` is what it belongs to, "" where it stands alone."""
    if secret_name(option):
        return "***"
    plain = _NUMBER.fullmatch(value) or _PATH.fullmatch(value) or (option and _WORD.fullmatch(value))
    return value[:_VALUE_LENGTH] if plain else _hashed(value)


def _hashed(text: str) -> str:
    return f"#{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:4]}"


def commit_of(script: Path) -> str | None:
    """The commit that the repository around a script has checked out, by its files alone; None where there is none."""
    for directory in list(script.absolute().parents)[:_ABOVE]:
        marker = directory / ".git"
        try:
            if marker.is_file():
                # A worktree or a submodule: one line says where its files lie.
                marker = (directory / marker.read_text().partition("gitdir:")[2].strip()).resolve()
            elif not marker.is_dir():
                continue
            return _checked_out(marker)
        except OSError:
            return None
    return None


def _checked_out(marker: Path) -> str | None:
    head = (marker / "HEAD").read_text().strip()
    name = head.removeprefix("ref: ")
    if name == head:
        return head if _COMMIT.fullmatch(head) else None
    common = marker / "commondir"
    places = [marker, (marker / common.read_text().strip()).resolve()] if common.is_file() else [marker]
    for place in places:
        if (place / name).is_file():
            found = (place / name).read_text().strip()
            return found if _COMMIT.fullmatch(found) else None
        packed = place / "packed-refs"
        if packed.is_file():
            for line in packed.read_text().splitlines():
                commit, _, ref = line.partition(" ")
                if ref == name and _COMMIT.fullmatch(commit):
                    return commit
    return None
