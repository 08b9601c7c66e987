"""A rank without torch: writes a real ring as the hooks do, from a process of its own. Arguments: key=value words.

steps, step_ms, rank, world, gpu (UUID), slow_file: while that file is there, a step takes twice as long.
stall_file: the step that finds it takes it away and a second longer.
step_ms_env: an environment variable to take step_ms from, where it is set; "crash" ends the rank with 9.
then=(end | exception | exit | stuck | spin): what it does after its last step.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from rankscope.clock import ClockAnchor, SystemClock, boot_id
from rankscope.identity import rank_identity
from rankscope.records import MarkKind, MarkRecord, Phase, StepRecord
from rankscope.ring import RingWriter, ring_path


def main() -> None:
    """Run the steps, then end as asked."""
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    steps, step_ms = int(options.get("steps", "10")), float(options.get("step_ms", "5"))
    named = os.environ.get(options.get("step_ms_env", ""))
    if named == "crash":
        sys.stderr.write("a value it cannot run with\n")
        sys.exit(9)
    step_ms = float(named) if named else step_ms
    environ = os.environ | {"RANK": options.get("rank", "0"), "WORLD_SIZE": options.get("world", "1")}
    identity = replace(rank_identity(environ, boot_id=boot_id()), gpu_uuid=options.get("gpu"))
    path = ring_path(Path(os.environ["RANKSCOPE_DIR"]), identity)
    ring = RingWriter(path, identity, ClockAnchor.take(SystemClock()), slots=int(options.get("slots", "1024")))
    stacks = (path.parent / f"{path.name}.stacks").open("ab", buffering=0)
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    ring.append_record(MarkRecord(time.monotonic_ns(), 0, MarkKind.ATTACHED, "stacks=SIGUSR2"))
    if pid_file := options.get("pid_file"):
        Path(pid_file).write_text(str(os.getpid()))
    step = 0

    def say_exception(kind: type[BaseException], value: BaseException, trace: object) -> None:
        ring.append_record(MarkRecord(time.monotonic_ns(), step, MarkKind.EXCEPTION, f"{kind.__name__}: {value}"))

    def say_end() -> None:
        ring.append_record(MarkRecord(time.monotonic_ns(), step, MarkKind.ENDED, ""))
        ring.set_status(time.monotonic_ns(), step, Phase.ENDED)

    sys.excepthook = say_exception
    atexit.register(say_end)
    for step in range(steps):
        start = time.monotonic_ns()
        ring.set_status(start, step, Phase.FORWARD)
        slow = "slow_file" in options and Path(options["slow_file"]).exists()
        time.sleep(step_ms / 1000 * (1 + slow) + _stall(options))
        end = time.monotonic_ns()
        ring.append_record(StepRecord(step, start, end, 0, end - start, 0, 0, 0, 0, 0, 0, hook_ns=1000))
    match options.get("then", "end"):
        case "exception":
            raise RuntimeError("boom")
        case "exit":
            sys.exit(int(options.get("status", "3")))
        case "stuck":
            ring.set_status(time.monotonic_ns(), step + 1, Phase.BACKWARD)
            time.sleep(120)
        case "spin":
            while True:
                start = time.monotonic_ns()
                step += 1
                ring.set_status(start, step, Phase.FORWARD)
                time.sleep(step_ms / 1000)
                end = time.monotonic_ns()
                ring.append_record(StepRecord(step, start, end, 0, end - start, 0, 0, 0, 0, 0, 0))


def _stall(options: dict[str, str]) -> int:
    """Seconds that this step stalls for."""
    if "stall_file" not in options or not Path(options["stall_file"]).exists():
        return 0
    Path(options["stall_file"]).unlink()
    return 1


if __name__ == "__main__":
    main()
