"""The helper process that alone calls NVML: `python -m rankscope.probes.nvml_child [LIBRARY [UNREAD...]]`.

An empty LIBRARY is the one that the linker finds; UNREAD are metrics that are not read, and `events`.

The main thread waits for signals and never calls NVML. Another reads requests and GPUs (nvml_readers); where a call
does not return, the next thread does. So the helper ends with its parent whatever the driver does, and one GPU holds
up no other, unless the driver does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import asdict

from rankscope.allocator import share_one_arena
from rankscope.probes.nvml_api import DOWN, LIBRARY_NOT_FOUND, NO_PERMISSION, NvmlFailure
from rankscope.probes.nvml_fields import version_of
from rankscope.probes.nvml_library import NvmlLibrary
from rankscope.probes.nvml_messages import Message, event_message, pack
from rankscope.probes.nvml_reader import GpuReader
from rankscope.probes.nvml_readers import GpuReaders
from rankscope.reading import Outcome

#: A wait for events ends this often, so that the helper can end, ms.
EVENT_WAIT_MS = 1000
#: How long an orderly end may take before the helper just goes, s.
FAREWELL_S = 2.0

#: The group that is only listened to: among what is not read, where nobody wants to hear of events.
EVENTS = "events"
#: Exit status after an error of our own.
INTERNAL_ERROR = 3


class Helper:
    """Opens the library in a thread of its own, then answers requests until its input ends."""

    def __init__(self, library_path: str | None, requests: int, answers: int, unread: Collection[str] = ()) -> None:
        """`requests` and `answers` are the descriptors to read from and to write to."""
        self._library_path = library_path
        self._answers = answers
        self._unread = frozenset(unread)
        self._write_lock = threading.Lock()
        self._library: NvmlLibrary | None = None
        self._readers = GpuReaders(requests, self._write, lambda: os.kill(os.getpid(), signal.SIGTERM))
        self._ending = threading.Event()
        self._driver_thread = threading.Thread(target=self._drive, name="nvml", daemon=True)

    def serve(self) -> None:
        """Answer requests until the parent closes its end, is gone, or sends SIGTERM. Calls no driver."""
        minded = {signal.SIGALRM, signal.SIGTERM}
        # Inherited by every thread: these signals wait for this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, minded)
        self._driver_thread.start()
        self._readers.start()
        while signal.sigwait(minded) == signal.SIGALRM:
            self._readers.relieve()

    def finish(self) -> None:
        """Shut NVML down in order if the driver lets us within FAREWELL_S."""
        self._ending.set()
        farewell = threading.Thread(target=self._shut_down, daemon=True)
        farewell.start()
        farewell.join(FAREWELL_S)

    def _shut_down(self) -> None:
        self._readers.close()
        self._driver_thread.join()
        if self._library is not None:
            try:
                self._library.close()
            except NvmlFailure:
                return

    def give_up(self, error: BaseException | None) -> None:
        """End at once after saying why: a thread that failed must not look like a GPU that hangs."""
        self._send(_note(Outcome.FAILED, f"the NVML helper failed: {type(error).__name__}: {error}"))
        os._exit(INTERNAL_ERROR)

    def _send(self, *messages: Message) -> None:
        self._write(b"".join(map(pack, messages)))

    def _write(self, packed: bytes) -> None:
        data = memoryview(packed)
        with self._write_lock:
            try:
                while data:
                    data = data[os.write(self._answers, data) :]
            except BrokenPipeError:
                os._exit(0)

    def _drive(self) -> None:
        """Open the library, say what is there, start the workers, then wait for events."""
        try:
            library = NvmlLibrary(self._library_path)
        except NvmlFailure as failure:
            self._send(_failed(failure, self._library_path))
            return
        self._library = library
        driver = version_of(library.driver)
        # Before the first hello, so that whoever has heard it misses no event from then on.
        watching = EVENTS not in self._unread and self._watch(library)
        self._readers.open({gpu.identity.index: GpuReader(gpu, driver, self._unread) for gpu in library.gpus})
        self._send(
            {
                "kind": "hello",
                "driver": library.driver,
                "gpus": [asdict(gpu.identity) for gpu in library.gpus],
                "unreachable": [[index, failure.code, str(failure)] for index, failure in library.unreachable],
            }
        )
        if len(library.gpus) > 1:
            threading.Thread(target=self._relate, args=(library,), name="relations", daemon=True).start()
        if watching:
            self._wait_for_events(library)

    def _watch(self, library: NvmlLibrary) -> bool:
        try:
            watched = library.watch_events()
        except NvmlFailure as failure:
            self._send(_note(Outcome.FAILED, f"no events from NVML: {failure}"))
            return False
        if library.gpus and not watched:
            self._send(_note(Outcome.UNSUPPORTED, "no GPU offers events through NVML"))
        return watched > 0

    def _relate(self, library: NvmlLibrary) -> None:
        """Say once how the GPUs stand to each other; a GPU that hangs holds up this thread alone."""
        for gpu in library.gpus:
            try:
                facts = library.relations(gpu)
            except NvmlFailure:
                continue
            self._send({"kind": "relations", "gpu": gpu.identity.index, "time_ns": time.monotonic_ns(), "facts": facts})

    def _wait_for_events(self, library: NvmlLibrary) -> None:
        while not self._ending.is_set():
            try:
                found = library.wait_event(EVENT_WAIT_MS)
            except NvmlFailure as failure:
                # A lost GPU fails the wait at once, again and again; its own worker tells of the loss.
                if failure.code not in DOWN:
                    self._send(_note(Outcome.FAILED, f"waiting for events failed: {failure}"))
                self._ending.wait(EVENT_WAIT_MS / 1000)
                continue
            if found is not None:
                self._send(event_message(found, time.monotonic_ns()))


def _note(outcome: Outcome, reason: str) -> Message:
    return {"kind": "note", "outcome": outcome, "reason": reason}


def _failed(failure: NvmlFailure, path: str | None) -> Message:
    if failure.code == LIBRARY_NOT_FOUND:
        looked_for = path or "libnvidia-ml.so.1"
        reason = f"NVML library not found ({looked_for}); install the NVIDIA driver, or go on without GPU counters"
        return {"kind": "failed", "outcome": Outcome.UNSUPPORTED, "reason": reason}
    outcome = Outcome.NO_PERMISSION if failure.code == NO_PERMISSION else Outcome.FAILED
    return {"kind": "failed", "outcome": outcome, "reason": f"NVML could not be initialised: {failure}"}


def main() -> None:
    """Serve on standard input and output."""
    share_one_arena()
    answers = os.dup(1)
    # Whatever a library prints must not fall between the messages.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the agent's to handle
    library, *unread = sys.argv[1:] or [""]
    helper = Helper(library or None, 0, answers, unread)
    threading.excepthook = lambda failed: helper.give_up(failed.exc_value)
    try:
        helper.serve()
    except Exception as error:
        helper.give_up(error)
    helper.finish()
    # Not through the interpreter's own end: it would wait for a thread that is stuck in the driver.
    os._exit(0)


if __name__ == "__main__":
    main()
