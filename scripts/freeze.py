"""Write constraints.txt: every version installed in this environment, and nothing of where it came from."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

HEADER = "# The versions that the tests run against. Written by `make constraints`.\n"
LEFT_OUT = {"pip", "rankscope"}


def main() -> None:
    """Pin public versions: `+cpu` names the index that served a build, which is for the user to choose."""
    pins = {dist.name: dist.version.partition("+")[0] for dist in distributions() if dist.name not in LEFT_OUT}
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items(), key=lambda pin: pin[0].lower())]
    Path("constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
