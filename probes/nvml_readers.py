"""The threads of the NVML helper that read GPUs: one as long as every GPU answers, another where one does not.

Reading one GPU after the other on one thread wakes that thread once for all of them, and asks the driver for one GPU at
a time. The thread that leads reads requests too, so that a request wakes nothing else. Where a call does not come back
within PATIENCE_S, `relieve`, called by the timer's signal, starts another thread to lead, and the one that is held up
keeps its GPU to itself until the driver lets go. docs/decisions/0010-one-thread-reads-gpus.md says why.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

from rankscope.probes.nvml_messages import Message, Unpacker, pack, sample_message
from rankscope.probes.nvml_reader import GpuReader

#: A GPU that takes longer for one group holds up the others no more. Some calls take tens of milliseconds as it is.
PATIENCE_S = 0.02
#: What was read goes out when it is this much, well within a pipe's 64 KiB: links of one GPU are about 20 kB.
_FLUSH_BYTES = 16_384

_Asked = tuple[str, list[int] | None]


class _Gpu:
    """One GPU: what is asked of it, and whether a thread reads it."""

    def __init__(self, reader: GpuReader) -> None:
        self.reader = reader
        self.index = reader.gpu.identity.index
        self.asked: list[_Asked] = []
        self.busy = False
        self.down = False


class GpuReaders:
    """Reads requests from a descriptor and sends answers. `send` takes packed messages; it may be called in any thread.

    `start` begins; the signal SIGALRM is to be answered with `relieve`, in a thread that calls no driver. `ended` is
    called where the requests are over.
    """

    def __init__(self, requests: int, send: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._requests = requests
        self._send = send
        self._ended = ended
        self._unpacker = Unpacker()
        self._lock = threading.Lock()
        self._gpus: dict[int, _Gpu] = {}
        self._closed = False
        #: Whoever reads requests; what it has read and not sent; since when it reads the GPU it reads.
        self._leader: threading.Thread | None = None
        self._packed: list[bytes] = []
        self._since_ns: int | None = None

    def start(self) -> None:
        """Have requests read."""
        with self._lock:
            self._lead()

    def open(self, readers: Mapping[int, GpuReader]) -> None:
        """These are the GPUs that can be asked, by index; what is asked of others is passed over."""
        self._gpus = {index: _Gpu(reader) for index, reader in readers.items()}

    def relieve(self) -> None:
        """Where the thread that leads is held up by a GPU, let another lead."""
        with self._lock:
            since_ns = self._since_ns
            if since_ns is not None and time.monotonic_ns() - since_ns >= PATIENCE_S * 1e9:
                self._since_ns = None
                self._lead()

    def close(self) -> None:
        """Read no more; waits for the calls that run."""
        with self._lock:
            self._closed = True
        while any(gpu.busy for gpu in self._gpus.values()):
            time.sleep(0.002)

    def _lead(self) -> None:
        self._leader = threading.Thread(target=self._work, name="gpus", daemon=True)
        self._leader.start()

    def _work(self) -> None:
        me = threading.current_thread()
        accounted_ns = time.thread_time_ns()
        # The one before may have left GPUs behind that were asked for too, and what it had read of others.
        while True:
            accounted_ns, leads = self._serve(me, accounted_ns)
            if not leads:
                return
            data = os.read(self._requests, 65536)
            if not data:
                self._ended()
                return
            for request in self._unpacker.feed(data):
                self._note(request)

    def _note(self, request: Message) -> None:
        seen = request.get("seen", {})
        with self._lock:
            for index in request["gpus"]:
                gpu = self._gpus.get(index)
                if gpu is not None and not gpu.down:
                    gpu.asked.append((request["group"], seen.get(index)))

    def _serve(self, me: threading.Thread, accounted_ns: int) -> tuple[int, bool]:
        """Answer all that is asked; (CPU time of this thread accounted for, whether it still leads)."""
        gpu: _Gpu | None = None
        timed = False
        while True:
            with self._lock:
                leads = self._leader is me
                gpu, asked = self._next(gpu, leads=leads)
                if leads:
                    self._since_ns = None if gpu is None else time.monotonic_ns()
            if gpu is None:
                break
            if leads and not timed:
                timed = True
                signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, PATIENCE_S)
            accounted_ns = self._read(me, gpu, asked, accounted_ns)
        if leads:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self._flush()
        return accounted_ns, leads

    def _next(self, gpu: _Gpu | None, *, leads: bool) -> tuple[_Gpu | None, _Asked]:
        """What this thread reads now: all of one GPU, then of the next; of its own alone where it no longer leads."""
        if gpu is not None and (self._closed or gpu.down or not gpu.asked):
            gpu.busy = False
            gpu = None
        if gpu is None and leads and not self._closed:
            gpu = next((gpu for gpu in self._gpus.values() if gpu.asked and not gpu.busy), None)
        if gpu is None:
            return None, ("", None)
        gpu.busy = True
        return gpu, gpu.asked.pop(0)

    def _read(self, me: threading.Thread, gpu: _Gpu, asked: _Asked, accounted_ns: int) -> int:
        group, seen = asked
        before = time.monotonic_ns()
        sample = gpu.reader.read(group, before) if seen is None else gpu.reader.read(group, before, seen)
        message = sample_message(gpu.index, group, (before + time.monotonic_ns()) // 2, sample)
        # With what it took to send the messages before, and to wake up for this one.
        cpu_ns = time.thread_time_ns()
        message["cpu_ns"] = cpu_ns - accounted_ns
        packed = pack(message)
        with self._lock:
            if sample.down is not None:
                gpu.down = True
                gpu.asked.clear()
            leads = self._leader is me
            if leads:
                self._packed.append(packed)
        if not leads:
            # Another goes on with the others: it need not wait for this.
            self._send(packed)
        elif sum(map(len, self._packed)) >= _FLUSH_BYTES or sample.down is not None:
            self._flush()
        return cpu_ns

    def _flush(self) -> None:
        """Send what was read: at once for all GPUs, which wakes the agent once."""
        with self._lock:
            packed, self._packed = self._packed, []
        if packed:
            self._send(b"".join(packed))
