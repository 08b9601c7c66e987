"""The files of a host, made up: a root under which probes look for /proc and /sys."""

from __future__ import annotations

from pathlib import Path


class FakeHost:
    """A directory with `proc` and `sys`, for the `proc=` and `sys=` keywords of probes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.sys = root / "sys"
        for directory in (self.proc, self.sys):
            directory.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> Path:
        """Put `text` where a probe reads it, as `proc/pressure/cpu`; a probe that holds the file open sees it too."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Over the old one and not in its place: the kernel's files keep their inode.
        with path.open("w") as file:
            file.write(text)
        return path

    def remove(self, name: str) -> None:
        """Take a file away."""
        (self.root / name).unlink()
