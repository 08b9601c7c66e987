"""Signals of a watched run reach its supervisor, whatever threads its libraries have started."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: A thread of before, as numpy starts one when it is imported, has every signal unblocked: the kernel gives it those
#: that come while the main thread does not wait for any.
BUSY = """
import os, signal, subprocess, sys, threading, time
from rankscope.agent.supervisor import SignalsHeld, Supervisor
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
number = int(sys.argv[1])
if sys.argv[2:] == ["ignored"]:
    signal.signal(number, signal.SIG_IGN)
with SignalsHeld():
    # The job lives for as long as standard input is open, and ignores what is passed on.
    script = "trap '' INT TERM HUP; echo ready; read -r line; exit 5"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    job = subprocess.Popen(["sh", "-c", script], start_new_session=True, **pipes)
    job.stdout.readline()
    sent = []

    def tick():
        # The main thread is here, and not waiting: what comes now goes to the other one.
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            job.stdin.close()
            # The job has ended before the next look.
            os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)

    supervisor = Supervisor(job.pid, True, None, lambda: None, tick)
    status = os.waitstatus_to_exitcode(supervisor.wait_job())
    late = signal.sigtimedwait({number}, 0)
print(status, [each.number for each in supervisor.passed_on] == [number], late)
"""


@pytest.mark.parametrize("number", [2, 15, 1])
def test_another_thread_takes_no_signal_from_the_supervisor(number: int) -> None:
    """A signal that came while the main thread was busy is the job's: it ends nobody, and stays for nobody after it."""
    done = subprocess.run([sys.executable, "-c", BUSY, str(number)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "5 True None\n"), done.stderr


def test_what_is_ignored_stays_ignored() -> None:
    """A run under nohup hears no SIGHUP, and neither does its job."""
    done = subprocess.run([sys.executable, "-c", BUSY, "1", "ignored"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "5 False None\n"), done.stderr
