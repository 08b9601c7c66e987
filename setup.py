"""What setuptools has no setting for: start-up files at the root of site-packages, and an optional extension.

`rankscope_attach.pth` is read by every Python; `rankscope_attach.start` (PEP 829) takes its place from
Python 3.15 on. Everything else about the build stands in pyproject.toml.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build import build

START_UP_FILES = ("rankscope_attach.pth", "rankscope_attach.start")


class BuildStartUpFiles(Command):
    """Put the start-up files where a wheel, or an editable wheel, takes the root of site-packages from."""

    description = "copy the start-up files"
    user_options: ClassVar[list[tuple[str, str, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        # An editable wheel leaves build_lib out; what is not editable goes into the unpacked wheel,
        # to which setuptools points install_lib.
        if self.editable_mode:
            self.set_undefined_options("install", ("install_lib", "build_lib"))
        else:
            self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        self.mkpath(self._target())
        for name in START_UP_FILES:
            self.copy_file(name, str(Path(self._target(), name)))

    def get_source_files(self) -> list[str]:
        return list(START_UP_FILES)

    def get_outputs(self) -> list[str]:
        return [str(Path(self._target(), name)) for name in START_UP_FILES]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def _target(self) -> str:
        assert self.build_lib is not None
        return self.build_lib


class Build(build):
    """The standard build and the start-up files after it."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_start_up_files", None)]


# Where it cannot be compiled the wheel does without: torch_hooks/reference.py does the same, slower.
NATIVE = Extension(
    "rankscope.torch_hooks._native",
    sorted(map(str, Path("torch_hooks/native").glob("*.c"))),
    depends=["torch_hooks/native/native.h"],
    # Between two calls torch uses every cache: what counts is how little has to be fetched again.
    extra_compile_args=["-Os", "-fvisibility=hidden"],
    optional=True,
)

setup(ext_modules=[NATIVE], cmdclass={"build": Build, "build_start_up_files": BuildStartUpFiles})
