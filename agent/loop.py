"""The agent's loop: one thread that waits for the next thing to do, and does it."""

from __future__ import annotations

import functools
import os
import select
from collections.abc import Callable, Sequence

from rankscope.agent.bell import Bell
from rankscope.agent.config import Settings
from rankscope.agent.governor import Governor
from rankscope.agent.job import WatchedJob
from rankscope.agent.ranks import Rank
from rankscope.agent.scheduler import Scheduler, Tick
from rankscope.agent.sources import Sources
from rankscope.agent.triggers import Trigger, Triggers
from rankscope.clock import Clock
from rankscope.identity import host_name
from rankscope.reading import Event, WakingProbe

_SECOND_NS = 1_000_000_000
_GOVERN_NS = 5 * _SECOND_NS
_THIN_NS = 30 * _SECOND_NS
#: Time between two looks for a finding that is waited for.
_HURRIED_NS = 20_000_000
#: One reason for a burst of one device is heard this often at most, so that a job that stays slow is not watched dearly
#: for ever.
_TRIGGER_PAUSE_NS = 300 * _SECOND_NS
#: What led to a trigger is kept in full too.
_BEFORE_TRIGGER_NS = 60 * _SECOND_NS


def wait_for(epoll: select.epoll, wait_ns: int) -> list[tuple[int, int]]:
    """Wait for descriptors, or until the time is over; (descriptor, what happened) of those that are ready."""
    return epoll.poll(wait_ns / _SECOND_NS)


class Agent:
    """Watches jobs until `stop` is called, a descriptor it waits on ends, or `done` says so."""

    def __init__(
        self,
        jobs: Sequence[WatchedJob],
        settings: Settings,
        sources: Sources,
        *,
        clock: Clock,
        wait: Callable[[select.epoll, int], list[tuple[int, int]]] = wait_for,
    ) -> None:
        """`wait` is how time passes: with a simulated clock, another than the kernel's."""
        self.jobs = list(jobs)
        self._clock = clock
        self._sources = sources
        self._pass_time = wait
        self._poll_ns = int(settings.rings.poll_seconds * _SECOND_NS)
        #: Rung where a probe has heard of something, so that it is not found at the next round only.
        self._bell = Bell()
        self._scheduler = Scheduler(
            sources.probes,
            clock=clock,
            deadline_ns=int(settings.probes.deadline_seconds * _SECOND_NS),
            burst_ns=int(settings.probes.burst_seconds * _SECOND_NS),
            host=host_name(),
            isolated=sources.isolated,
            budget_ratio=settings.budget.cpu_ratio,
            burst_budget_ratio=settings.budget.ratio(bursting=True),
            news=self._bell.ring,
            groups_of=sources.groups_of,
        )
        self._governor = Governor(settings.budget, clock=clock)
        self._govern_due_ns = self._thin_due_ns = clock.monotonic_ns() + _GOVERN_NS
        self._rules_cpu_ns = 0
        self._triggers = Triggers()
        #: (reason, device) -> when it was last heard.
        self._heard: dict[tuple[str, str], int] = {}
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[WatchedJob, Rank]] = {}
        self._wakers: dict[int, Callable[[], None]] = {}
        self.wake_on(self._bell.descriptor, self._bell.heard)
        for probe in sources.probes:
            if isinstance(probe, WakingProbe) and (descriptor := probe.descriptor) is not None:
                self._wakers[descriptor] = functools.partial(self._scheduler.hasten, probe)
                # By its edge: until a thread has read it, it would be readable again and again.
                self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._stopping = ""

    def leave_out(self, groups: frozenset[str]) -> None:
        """Do not read these groups (probe/group), and no others, until told otherwise."""
        self._scheduler.left_out = groups

    def stop(self, reason: str) -> None:
        """End after this round."""
        self._stopping = self._stopping or reason

    def wake_on(self, descriptor: int, act: Callable[[], None]) -> None:
        """Call `act` when the descriptor is readable or its other end is closed."""
        self._wakers[descriptor] = act
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLHUP)

    def run(self, each_round: Callable[[], None] = lambda: None) -> None:
        """Work until stopped, then finish every job."""
        # In step with the probes, so that both cost one wake-up.
        now = self._clock.monotonic_ns()
        next_poll = now + (self._scheduler.next_due_ns() - now) % self._poll_ns
        while not self._stopping:
            now = self._clock.monotonic_ns()
            wait = min(next_poll, self._scheduler.next_due_ns()) - now
            if any(job.hurrying for job in self.jobs):
                wait = min(wait, _HURRIED_NS)
            self._wait(max(0, wait))
            now = self._clock.monotonic_ns()
            self._take(self._scheduler.take())
            for job in self.jobs:
                if job.hurrying:
                    job.look()
            if now >= next_poll:
                next_poll = max(next_poll + self._poll_ns, now)
                for job in self.jobs:
                    job.poll()
                self._watch_processes()
                self._housekeeping(now)
                each_round()
            # Last: what reads them would only wait for this thread, and this one for it.
            self._scheduler.start_due()
        self.finish()

    def _wait(self, wait_ns: int) -> None:
        ended: dict[int, list[Rank]] = {}
        # Ready descriptors come in the order in which they became ready: the order of death.
        for descriptor, _ in self._pass_time(self._epoll, wait_ns):
            if descriptor in self._watched:
                job, rank = self._watched.pop(descriptor)
                self._epoll.unregister(descriptor)
                if not rank.gone:
                    ended.setdefault(id(job), []).append(rank)
            elif descriptor in self._wakers:
                self._wakers[descriptor]()
        for job in self.jobs:
            if ranks := ended.get(id(job)):
                job.ended(ranks)

    def _watch_processes(self) -> None:
        for job in self.jobs:
            for rank in job.watcher.ranks:
                descriptor = rank.handle.descriptor
                if descriptor >= 0 and descriptor not in self._watched:
                    self._watched[descriptor] = (job, rank)
                    self._epoll.register(descriptor, select.EPOLLIN)

    def _take(self, tick: Tick) -> None:
        if not (tick.readings or tick.events or tick.outcomes):
            return
        now = self._clock.monotonic_ns()
        for job in self.jobs:
            job.add(tick, now)
        for trigger in self._triggers.of(tick.readings, tick.events, self._sources.gpus()):
            self._trigger(trigger, now)

    def _trigger(self, trigger: Trigger, now: int) -> None:
        fresh = [
            device
            for device in trigger.devices
            if now - self._heard.get((trigger.reason, device), -_TRIGGER_PAUSE_NS) >= _TRIGGER_PAUSE_NS
        ]
        if not fresh:
            return
        self._heard |= {(trigger.reason, device): now for device in fresh}
        begin_ns, end_ns = self._scheduler.burst(fresh)
        begin_ns -= _BEFORE_TRIGGER_NS
        named = ", ".join(sorted(device or "the host" for device in fresh))
        event = Event(
            "burst",
            now,
            f"{named}: read at burst rates for {(end_ns - now) / 1e9:.0f} s ({trigger.reason})",
            device=fresh[0] if len(fresh) == 1 else "",
            attributes={"reason": trigger.reason, "begin_ns": begin_ns, "end_ns": end_ns, "devices": named},
        )
        for job in self.jobs:
            job.add_events([event])

    def _housekeeping(self, now: int) -> None:
        for job in self.jobs:
            for rank in job.slow_ranks():
                # The host too: what slows a rank down is as often beside the GPU as in it.
                self._trigger(Trigger("slow-step", frozenset({rank.gpu_uuid or "", f"rank:{rank.rank}", ""})), now)
            job.set_gpus(self._sources.gpus())
        if now >= self._govern_due_ns:
            self._govern_due_ns = now + _GOVERN_NS
            self._govern()
        if now >= self._thin_due_ns:
            self._thin_due_ns = now + _THIN_NS
            for job in self.jobs:
                job.thin()

    def _govern(self, *, final: bool = False) -> None:
        self._rules_cpu_ns += sum(job.rules_cpu_ns() for job in self.jobs)
        readings, events = self._governor.tick(
            self._scheduler.watched,
            bursting=self._scheduler.bursting,
            elastic_cpu_ns=self._rules_cpu_ns,
            final=final,
        )
        for job in self.jobs:
            job.add_readings(readings)
            job.add_events(events)
            job.set_cost(self._governor.cpu_ratio, self._governor.pss_bytes)
            job.set_rules_share(self._governor.spare_ratio / len(self.jobs))

    def settle(self, seconds: float) -> bool:
        """Wait until every read that was asked for has come back; False where one has not by then."""
        return self._scheduler.settle(seconds)

    def finish(self) -> None:
        """Take the last readings and close everything."""
        # Before the helpers end, which cost memory too.
        self._govern(final=True)
        self._take(self._scheduler.close())
        for job in self.jobs:
            job.close(self._stopping or "done")
        self._epoll.close()
        self._bell.close()


def waker() -> tuple[int, int]:
    """A non-blocking pipe (read end, write end), to leave a wait from a signal handler."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
