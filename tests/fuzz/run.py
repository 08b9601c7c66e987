"""Fuzz for as long as asked; what breaks a target is added to the corpus.

    .venv/bin/python tests/fuzz/run.py --seconds 600 [TARGET...]

Each target runs in a process of its own, side by side. Ends with 1 where anything broke. `--inputs N` tries so many
instead, the same ones each time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz.engine import CORPUS, confine, for_seconds, fuzz, name_of


def one(name: str, arguments: argparse.Namespace) -> int:
    """Fuzz one target in this process."""
    from fuzz.targets import TARGETS

    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as place:
        confine()
        target = TARGETS[name]
        going = iter(range(arguments.inputs)) if arguments.inputs else for_seconds(arguments.seconds)
        told = fuzz(target, Path(place), going, arguments.seed)
    for where, (data, how) in told.broken.items():
        print(f"{name}: {where}\n{how}", flush=True)
        if arguments.keep:
            (CORPUS / name / name_of(data)).write_bytes(data)
    print(
        f"{name}: {told.tried:,} inputs, {len(told.outcomes)} outcomes, {len(told.broken)} ways to break it", flush=True
    )
    return bool(told.broken)


def main() -> int:
    """Every target, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inputs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="add what breaks a target to the corpus")
    arguments = parser.parse_args()
    known = sorted(path.name for path in CORPUS.iterdir())
    if unknown := [name for name in arguments.targets if name not in known]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
    targets = arguments.targets or known
    if len(targets) == 1:
        return one(targets[0], arguments)
    options = [f"--{key}={getattr(arguments, key)}" for key in ("seconds", "inputs", "seed")]
    options += ["--keep"] * arguments.keep
    # One thread each of numpy's: the targets are the parallel part.
    environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, __file__, name, *options], env=environ) for name in targets]
    return max(abs(process.wait()) for process in running)


if __name__ == "__main__":
    sys.exit(main())
