"""The container image, as far as it can be shown without an engine: its steps, and that its context makes the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

BUILD = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"


def stages(root: Path) -> list[list[tuple[str, str]]]:
    """The instructions of each stage of the Dockerfile, continued lines joined, comments gone."""
    text = re.sub(r"^#.*\n", "", (root / "helm/Dockerfile").read_text(), flags=re.MULTILINE)
    found: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if word:
            found[-1].append((word, rest))
    return found


def test_the_image_is_a_users_and_has_no_compiler(root: Path) -> None:
    """Both stages stand on one base of one exact version; the last is of an ordinary user, and installs nothing."""
    build, image = stages(root)
    base = re.fullmatch(r"(python:\d+\.\d+\.\d+-slim-[a-z]+) AS build", build[0][1])
    assert base is not None
    assert image[0] == ("FROM", base[1])
    (user,) = [rest for word, rest in image if word == "USER"]
    assert user.isascii()
    assert min(map(int, user.split(":"))) > 0
    assert not [rest for word, rest in image if word == "RUN" and re.search(r"\b(apt|apt-get|pip|gcc)\b", rest)]
    copies = [rest.split() for word, rest in image if word in {"COPY", "ADD"}]
    assert copies == [["--from=build", "/opt/rankscope", "/opt/rankscope"]]
    entry = dict(image)
    assert entry["ENTRYPOINT"] == '["/opt/rankscope/bin/rankscope"]'
    assert {"title", "description", "licenses"} == set(
        re.findall(r"org\.opencontainers\.image\.(\w+)=", entry["LABEL"])
    )


def test_what_the_image_installs_exists(root: Path) -> None:
    """Files that pip is given are there, and so are extras, where some are named."""
    (install,) = re.findall(r"pip install ([^&]*)", " ".join(rest for word, rest in stages(root)[0] if word == "RUN"))
    (constraints,) = re.findall(r"-c (\S+)", install)
    assert (root / constraints).is_file()
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for group in re.findall(r"\[([\w,]+)\]", install) for name in group.split(",")} <= extras.keys()


def test_the_context_makes_the_same_wheel(root: Path, wheel: Path, tmp_path: Path) -> None:
    """What .dockerignore lets through is all that the wheel is made of."""
    lines = (root / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    context = tmp_path / "context"
    context.mkdir()
    leave_out = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in (rule.removeprefix("!") for rule in rules if rule.startswith("!")):
        assert (root / name).exists(), name
        if (root / name).is_dir():
            shutil.copytree(root / name, context / name, symlinks=True, ignore=leave_out)
        else:
            shutil.copy(root / name, context / name)
    assert (context / "constraints.txt").exists()
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=context, check=True, capture_output=True)
    (made,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(made).namelist()) == set(zipfile.ZipFile(wheel).namelist())
