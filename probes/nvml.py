"""NVIDIA GPUs by NVML: the agent's side, which asks a helper process and never waits for the driver.

A sick GPU can hold an NVML call for 45 s and more. So the calls are made in another process (nvml_child), answers are
taken when they are there, usually those of this request, else those of the one before, and silence is an event.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence

from rankscope.errors import ProbeError
from rankscope.probes.helper_process import HelperProcess
from rankscope.probes.nvml_api import GPU_IS_LOST, GpuIdentity
from rankscope.probes.nvml_messages import Message
from rankscope.probes.nvml_rings import RINGS
from rankscope.probes.nvml_tracking import Gathered, TrackedGpu, gpu_event, gpu_lost_event, xid_event
from rankscope.reading import Event, Group, Outcome, Priority, ProbeResult, Severity

SECOND = 10**9
#: How long one read waits for answers to its own request, ms. NVML answers a healthy group in well under 1 ms a GPU,
#: and the helper asks one GPU after the other.
PATIENCE_MS = 10
#: First and longest pause before a helper that ended is started again, ns.
FIRST_RESTART_NS = SECOND
LONGEST_RESTART_NS = 60 * SECOND
#: While a GPU is lost, a fresh helper looks this often whether it is back, ns.
LOOK_AGAIN_NS = 300 * SECOND
#: Xids after which the driver's firmware calls block for tens of seconds each (GSP timeouts); DCGM stops on 119 too.
BREAKER_XIDS = frozenset({119, 120})
#: How long NVML is left alone after one of them, ns: longer than one firmware timeout of 45 s.
BREAKER_NS = 60 * SECOND

#: The group that is only listened to.
_EVENTS = "events"
_HELPER = "rankscope.probes.nvml_child"
#: Groups read as soon as there is a helper, and again when a GPU's counters began anew, however long their period.
_FIRST = ("health", "description", "links", "processes", "rare")
#: Groups read at once after an Xid or another event of a GPU.
_TELLING = ("health", "links")


class NvmlProbe:
    """Probe of every GPU of this host. `gpus` is what it has found so far, empty until the helper has answered."""

    name = "nvml"
    groups: Sequence[Group] = (
        Group(_EVENTS, SECOND, SECOND // 5, "Xids wait in the helper's pipe: one call to look", Priority.VITAL),
        Group(
            "fast", SECOND, SECOND // 5, "the driver refreshes clocks, power and reasons every 100 ms", Priority.HIGH
        ),
        Group("gpm", 2 * SECOND, SECOND // 5, "means between two reads, which must be 100 ms apart: none is missed"),
        Group(
            "counters", 2 * SECOND, SECOND, "integrals: slower reads lose only the position of a change", Priority.HIGH
        ),
        Group(
            "samples", 3 * SECOND, 3 * SECOND, "the driver keeps 10 s at 139 ms: this loses none of it", Priority.HIGH
        ),
        Group("slow", 2 * SECOND, SECOND, "temperature moves over seconds"),
        Group("processes", 10 * SECOND, 5 * SECOND, "the driver walks its clients for it", Priority.LOW),
        Group("health", 15 * SECOND, SECOND, "sticky counters and limits", Priority.HIGH),
        Group("links", 30 * SECOND, SECOND, "sticky counters of every link, hundreds of values"),
        Group("rare", 300 * SECOND, 15 * SECOND, "histograms and limits that change with repairs", Priority.LOW),
        Group("description", 3600 * SECOND, 3600 * SECOND, "fixed until the driver is loaded anew", Priority.LOW),
    )

    def __init__(
        self,
        *,
        library: str | None = None,
        deadline_ns: int = 5 * SECOND,
        start_deadline_ns: int = 30 * SECOND,
        replace_stuck_after_ns: int | None = None,
        unread: Collection[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is started before the first read. Metrics in `unread` are not read, and its
        groups not unasked, after an event.

        `library` is a path to use instead of the linker's libnvidia-ml.so.1. A call has `deadline_ns`, the start, which
        may have to wake every GPU, `start_deadline_ns`, before its silence is an event. A helper stuck for
        `replace_stuck_after_ns` is killed, with None never: a killed monitor has been followed by firmware faults.
        """
        self._library = library
        self._deadline_ns = deadline_ns
        self._start_deadline_ns = start_deadline_ns
        self._replace_stuck_after_ns = replace_stuck_after_ns
        self._unread = frozenset(unread)
        self._environment = environment
        self._helper: HelperProcess | None = None
        self._started_ns = 0
        self._greeted = False
        self._start_stalled = False
        self._ending = False
        self._killed = False
        self._restart_at_ns = 0
        self._restart_pause_ns = FIRST_RESTART_NS
        self._unsupported = False
        #: From here on no sample of the driver's buffers is to be missed.
        self._began_us = time.time_ns() // 1000
        #: Groups to be read at once, besides the one asked for.
        self._owed: list[str] = []
        self._gpus: dict[str, TrackedGpu] = {}
        #: Of these, by index: asked for many times a second.
        self._identities: tuple[GpuIdentity, ...] = ()
        self._uuids: tuple[str, ...] = ()
        self._by_index: dict[int, TrackedGpu] = {}
        self._unreachable: set[int] = set()
        self._breaker_until_ns = 0
        self._breaker_reason = ""
        self._look_again_ns = 0
        self._said: set[tuple[str, Outcome, str]] = set()
        self.driver: str | None = None

    @property
    def gpus(self) -> tuple[GpuIdentity, ...]:
        """Every GPU seen since the start, lost ones too, by index."""
        return self._identities

    @property
    def helper_pid(self) -> int | None:
        """Process id of the helper, for whoever accounts for its cost."""
        return None if self._helper is None else self._helper.pid

    def facts(self, device: str) -> Mapping[str, str | int | float | None]:
        """What is fixed of a GPU or MIG instance, as its last `gpu-described` event told; empty before that."""
        return next((gpu.facts[device] for gpu in self._gpus.values() if device in gpu.facts), {})

    def uuid_of_pci(self, pci: str) -> str | None:
        """UUID of the GPU at a PCI address "dddd:bb:dd", or None."""
        return next((uuid for uuid, gpu in self._gpus.items() if gpu.identity.pci == pci), None)

    def heed(self, event: Event) -> None:
        """Leave NVML alone for a while after a kernel log event that says its calls would block."""
        if event.kind == "xid" and event.attributes.get("number") in BREAKER_XIDS:
            self._breaker_until_ns = max(self._breaker_until_ns, event.time_ns + BREAKER_NS)
            pause = f"NVML is left alone for {BREAKER_NS // SECOND} s"
            self._breaker_reason = f"{pause} after Xid {event.attributes['number']} in the kernel log"

    @property
    def devices(self) -> tuple[str, ...]:
        """UUID of every GPU seen since the start, by index."""
        return self._uuids

    def read(self, group: str, now_ns: int) -> ProbeResult:
        """Ask every GPU for one group and return all that has arrived, of whichever request."""
        [result] = self.read_groups([group], now_ns, None)
        return result

    def read_devices(self, group: str, now_ns: int, devices: frozenset[str]) -> ProbeResult:
        """The same, asking these GPUs only."""
        [result] = self.read_groups([group], now_ns, devices)
        return result

    def read_groups(self, groups: Sequence[str], now_ns: int, devices: frozenset[str] | None) -> list[ProbeResult]:
        """Several groups at once, which wakes helper and agent once; a result for each."""
        if self._unsupported:
            return [ProbeResult()] * len(groups)
        gathered = Gathered(of={group: Gathered() for group in groups})
        if now_ns < self._breaker_until_ns:
            self._say(gathered, "", Outcome.NO_DATA, self._breaker_reason)
        helper = self._live_helper(gathered, now_ns)
        if helper is not None:
            self._take(helper, gathered, now_ns)
            if self._greeted and not self._ending and now_ns >= self._breaker_until_ns:
                owed, self._owed = self._owed, []
                self._ask(helper, owed, now_ns, None)
                self._ask(helper, groups, now_ns, devices)
                self._await(helper, gathered, groups, now_ns)
            self._watch(helper, gathered, now_ns)
        return gathered.results(groups)

    def close(self) -> None:
        """End the helper; where it is stuck in the driver and may not be killed, it ends by itself later."""
        if self._helper is not None:
            self._helper.close(may_kill=self._replace_stuck_after_ns is not None)
            self._helper = None

    # The helper's life

    def _live_helper(self, gathered: Gathered, now_ns: int) -> HelperProcess | None:
        """The one helper; a new one only when there is none and the pause is over."""
        helper = self._helper
        if helper is not None and (status := helper.exit_status()) is not None:
            self._take(helper, gathered, now_ns)
            helper.close(may_kill=False)
            self._helper = helper = None
            for gpu in self._gpus.values():
                gpu.awaited.clear()
            if not self._unsupported and not self._ending:
                self._helper_failed(gathered, f"the NVML helper ended with status {status}", now_ns)
        if helper is None and not self._unsupported and now_ns >= self._restart_at_ns:
            arguments = (self._library or "", *sorted(self._unread))
            try:
                helper = HelperProcess(_HELPER, arguments, self._environment)
            except ProbeError as error:
                self._helper_failed(gathered, str(error), now_ns)
                return None
            self._helper, self._started_ns = helper, now_ns
            self._greeted = self._ending = self._killed = False
        return helper

    def _helper_failed(self, gathered: Gathered, reason: str, now_ns: int) -> None:
        self._restart_at_ns = now_ns + self._restart_pause_ns
        self._restart_pause_ns = min(2 * self._restart_pause_ns, LONGEST_RESTART_NS)
        gathered.events.append(
            Event(
                "probe-failed",
                now_ns,
                reason,
                Severity.WARNING,
                attributes={"probe": self.name, "outcome": Outcome.FAILED.value},
            )
        )
        self._say(gathered, "", Outcome.FAILED, reason)

    # Asking and taking

    def _ask(self, helper: HelperProcess, groups: Sequence[str], now_ns: int, devices: frozenset[str] | None) -> None:
        requests: list[Message] = []
        for group in groups:
            free = [
                index
                for index, gpu in self._by_index.items()
                if not gpu.lost and group not in gpu.awaited and (devices is None or gpu.identity.uuid in devices)
            ]
            if not free or group == _EVENTS:
                continue
            request: Message = {"group": group, "gpus": free}
            if group == "samples":
                request["seen"] = {index: self._by_index[index].seen_us for index in free}
            requests.append(request)
        if requests and helper.send(*requests):
            for request in requests:
                for index in request["gpus"]:
                    self._by_index[index].awaited[request["group"]] = now_ns

    def _await(self, helper: HelperProcess, gathered: Gathered, groups: Sequence[str], now_ns: int) -> None:
        give_up = time.monotonic() + PATIENCE_MS / 1000
        while any(gpu.awaited.get(group) == now_ns for gpu in self._by_index.values() for group in groups):
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                return
            # What was read of all GPUs comes at once.
            self._take(helper, gathered, now_ns, wait_ms=math.ceil(1000 * left_s))

    def _take(self, helper: HelperProcess, gathered: Gathered, now_ns: int, wait_ms: int = 0) -> None:
        try:
            messages = helper.receive(wait_ms)
        except ProbeError as error:
            self._say(gathered, "", Outcome.FAILED, str(error))
            helper.request_end()
            return
        for message in messages:
            kind = message["kind"]
            if kind == "sample":
                self._sample(gathered.of.get(message["group"], gathered), message, now_ns)
            elif kind in ("xid", "gpu-event"):
                gathered.events.append(xid_event(message) if kind == "xid" else gpu_event(message))
                self._owe(_TELLING)
            elif kind == "hello":
                self._hello(gathered, message, now_ns)
            elif kind == "relations" and (gpu := self._by_index.get(message["gpu"])) is not None:
                gpu.describe(gathered, gpu.identity.uuid, message["facts"], self.driver, message["time_ns"])
            elif kind == "note":
                self._say(gathered, "", Outcome(message["outcome"]), message["reason"])
            elif kind == "failed":
                self._failed(gathered, helper, message, now_ns)

    def _failed(self, gathered: Gathered, helper: HelperProcess, message: Message, now_ns: int) -> None:
        """The library cannot be used: for good where there is none, else it is tried again later."""
        outcome = Outcome(message["outcome"])
        self._say(gathered, "", outcome, message["reason"])
        self._ending = True
        helper.request_end()
        if outcome is Outcome.UNSUPPORTED:
            self._unsupported = True
            helper.close(may_kill=True)
            self._helper = None
        self._restart_at_ns = now_ns + self._restart_pause_ns
        self._restart_pause_ns = min(2 * self._restart_pause_ns, LONGEST_RESTART_NS)

    def _hello(self, gathered: Gathered, message: Message, now_ns: int) -> None:
        self._greeted = True
        self.driver = message["driver"]
        if self._start_stalled:
            self._start_stalled = False
            gathered.events.append(self._recovered("", now_ns - self._started_ns, now_ns))
        self._by_index = {}
        for values in message["gpus"]:
            identity = GpuIdentity(**values)
            gpu = self._gpus.setdefault(identity.uuid, TrackedGpu(identity, [self._began_us] * len(RINGS)))
            gpu.identity = identity
            if gpu.lost:
                gpu.lost = False
                gathered.events.append(self._recovered(identity.uuid, 0, now_ns))
            self._by_index[identity.index] = gpu
        self._identities = tuple(sorted((gpu.identity for gpu in self._gpus.values()), key=lambda gpu: gpu.index))
        self._uuids = tuple(identity.uuid for identity in self._identities)
        present = {gpu.identity.uuid for gpu in self._by_index.values()}
        for uuid, gpu in self._gpus.items():
            if uuid not in present and not gpu.lost:
                self._lost(gathered, gpu, "it is no longer on the bus", "enumeration", now_ns)
        self._unreached(gathered, message["unreachable"], now_ns)
        if not self._gpus and not message["unreachable"]:
            self._say(gathered, "", Outcome.NO_DATA, "NVML finds no GPU")
        self._look_again_ns = now_ns + LOOK_AGAIN_NS
        self._owe(_FIRST)

    def _owe(self, groups: Sequence[str]) -> None:
        self._owed += (group for group in groups if group not in self._owed and group not in self._unread)

    def _unreached(self, gathered: Gathered, unreachable: list[tuple[int, int, str]], now_ns: int) -> None:
        known = {gpu.identity.index for gpu in self._gpus.values()}
        for index, code, text in unreachable:
            reason = f"GPU at index {index} gives no handle: {text}"
            self._say(gathered, "", Outcome.FAILED, reason)
            if code == GPU_IS_LOST and index not in known | self._unreachable:
                self._unreachable.add(index)
                gathered.events.append(gpu_lost_event("", reason, "enumeration", None, now_ns))

    def _sample(self, gathered: Gathered, message: Message, now_ns: int) -> None:
        gpu = self._by_index.get(message["gpu"])
        if gpu is None:
            return
        uuid = gpu.identity.uuid
        asked_ns = gpu.awaited.pop(message["group"], now_ns)
        if gpu.stalled:
            gpu.stalled = False
            gathered.events.append(self._recovered(uuid, now_ns - asked_ns, now_ns))
        if gpu.take(gathered, message, self.driver):
            self._owe(_FIRST)
        refused: dict[tuple[str, str], list[str]] = {}
        for metric, outcome, reason in message.get("outcomes", ()):
            refused.setdefault((outcome, reason), []).append(metric)
        for (outcome, reason), metrics in refused.items():
            self._say(gathered, uuid, Outcome(outcome), f"{', '.join(metrics)}: {reason}")
        down = message.get("down")
        if down is not None and not gpu.lost:
            text = "it is lost" if down == GPU_IS_LOST else "it needs a reset"
            self._lost(gathered, gpu, f"{text} (NVML code {down})", "nvml", message["time_ns"])
        elif message["values"]:
            self._restart_pause_ns = FIRST_RESTART_NS

    def _lost(self, gathered: Gathered, gpu: TrackedGpu, why: str, source: str, time_ns: int) -> None:
        gpu.lost, gpu.stalled = True, False
        gpu.awaited.clear()
        identity = gpu.identity
        text = f"GPU {identity.index} at {identity.pci} ({identity.uuid}): {why}"
        gathered.events.append(gpu_lost_event(identity.uuid, text, source, identity.pci, time_ns))

    # Watching for silence

    def _watch(self, helper: HelperProcess, gathered: Gathered, now_ns: int) -> None:
        """Tell of calls past their deadline, once each; kill or renew the helper where that is due."""
        longest = 0
        starting_ns = now_ns - self._started_ns
        if not self._greeted and not self._ending and starting_ns >= self._start_deadline_ns:
            longest = starting_ns
            if not self._start_stalled:
                self._start_stalled = True
                text = "NVML has not answered since its start"
                gathered.events.append(self._stall("", text, starting_ns, now_ns))
        for gpu in self._by_index.values():
            waited = now_ns - min(gpu.awaited.values(), default=now_ns)
            longest = max(longest, waited)
            if waited >= self._deadline_ns and not gpu.stalled:
                gpu.stalled = True
                text = f"an NVML call on GPU {gpu.identity.index} has not returned"
                gathered.events.append(self._stall(gpu.identity.uuid, text, waited, now_ns))
        limit = self._replace_stuck_after_ns
        if limit is not None and longest >= limit and not self._killed:
            self._killed = True
            helper.kill()
        lost = any(gpu.lost for gpu in self._gpus.values())
        if self._greeted and lost and longest < self._deadline_ns and now_ns >= self._look_again_ns:
            self._ending, self._greeted = True, False
            helper.request_end()

    def _stall(self, device: str, text: str, waited_ns: int, now_ns: int) -> Event:
        return Event(
            "probe-stalled",
            now_ns,
            f"{text} for {waited_ns / SECOND:.1f} s",
            Severity.WARNING,
            device,
            attributes={"probe": self.name, "waited_ns": waited_ns},
        )

    def _recovered(self, device: str, waited_ns: int, now_ns: int) -> Event:
        return Event(
            "probe-recovered",
            now_ns,
            "NVML answers again",
            device=device,
            attributes={"probe": self.name, "waited_ns": waited_ns},
        )

    def _say(self, gathered: Gathered, device: str, outcome: Outcome, reason: str) -> None:
        """An outcome, the first time only."""
        said = (device, outcome, reason)
        if said not in self._said:
            self._said.add(said)
            gathered.outcomes.append(said)
