"""Crashes and hangs: the root before its echoes, hardware only where the hardware says so."""

from __future__ import annotations

import json

import pytest
from flight_dumps import Fault, Step, dumps
from flight_dumps import Job as FlightJob
from synthetic_job import Job, uuid

from rankscope.finding import Advice, Finding, Overhead, Side, Verdict
from rankscope.rules import judge

ECHO = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:20012"
DEVICE = "DeviceError: unspecified launch failure"


def job(**more: int) -> Job:
    """A job that ended with status 1 after 80 steps."""
    return Job(steps=80, **({"job_status": 1} | more))  # type: ignore[arg-type]


def told(made: Job) -> Verdict:
    """The verdict."""
    return judge(made.window(), Overhead())


def first(made: Job) -> Finding:
    """The first finding."""
    found = told(made).findings
    assert found
    return found[0]


def echoes(made: Job, root: int) -> Job:
    """What the other ranks say when `root` is gone."""
    for rank in set(range(4)) - {root}:
        made.event("rank-exception", 61 + 0.01 * rank, f"rank {rank} ended with {ECHO}", rank=rank, type="RuntimeError")
        made.event("rank-exited", 62 + 0.01 * rank, f"rank {rank} ended", rank=rank, clean=1)
    return made


def failed(made: Job, rank: int, text: str) -> Job:
    """An exception of a rank, and the echoes of the others."""
    made.event(
        "rank-exception", 60.5, f"rank {rank} ended with {text}", rank=rank, type=text.partition(":")[0], step=60
    )
    made.event("rank-exited", 60.6, f"rank {rank} ended", rank=rank, clean=1)
    return echoes(made, rank)


def hung(bad: int, *, phase: str = "forward", state: str = "S", step: int = 60) -> Job:
    """All ranks stand; one of them elsewhere than in the collective of step 60."""
    made = Job(steps=61, job_status=143)
    for rank in range(4):
        place = {"phase": phase, "state": state, "step": step}
        if rank != bad:
            place = {"phase": "collective_wait", "state": "S", "step": 60}
        text = f"rank {rank} has been in {place['phase']} of step {place['step']} for 12.0 s"
        made.event("rank-hung", 100, text, rank=rank, waited_ns=12_000_000_000, **place)
    return made


class TestWhoDiedFirst:
    """One death, and what follows from it."""

    def test_sigkill(self) -> None:
        """A rank ended by SIGKILL is the root; the connection errors of the others follow from it."""
        made = echoes(job(), 1).event(
            "rank-exited", 60, "rank 1 was ended by SIGKILL", rank=1, clean=0, signal=9, phase="forward"
        )
        found = first(made)
        assert (found.class_slug, found.side, found.where.rank) == ("rank-killed", Side.ENVIRONMENT, 1)
        assert len(told(made).findings) == 1

    def test_noticed_after_the_others(self) -> None:
        """The launcher ends survivors by SIGTERM: whoever died otherwise was first, in whatever order it was seen."""
        made = job()
        for rank in range(4):
            made.event("rank-exited", 61 + 0.01 * rank, "gone", rank=rank, clean=0, signal=9 if rank == 3 else 15)
        assert first(made).where.rank == 3

    def test_no_signal_known(self) -> None:
        """Without signals the one that was not waiting for the others died first."""
        made = job()
        for rank in range(4):
            phase = "backward" if rank == 2 else "collective_wait"
            made.event("rank-exited", 61 + 0.01 * rank, "gone", rank=rank, clean=0, phase=phase)
        found = first(made)
        assert (found.class_slug, found.where.rank) == ("rank-killed", 2)

    def test_out_of_memory(self) -> None:
        """A process that the kernel killed for memory is told so."""
        made = echoes(job(), 1).event("rank-exited", 60, "rank 1 ended", rank=1, clean=0, pid=101)
        made.event("oom-kill", 60, "Out of memory: Killed process 101 (python)", pid=101, process="python")
        assert "killed it for memory" in first(made).evidence[0].what

    def test_exception(self) -> None:
        """A rank's own exception is the root of the others' connection errors."""
        found = first(failed(job(), 3, "ValueError: expected 256 columns"))
        assert (found.class_slug, found.side, found.where.rank) == ("rank-exception", Side.CODE, 3)
        assert "ValueError" in found.summary
        assert "ranks 0-2 follow" in found.evidence[0].what

    def test_segmentation_fault_is_not_surely_a_kill(self) -> None:
        """A fault in native code leaves no exception either: probable at most."""
        made = echoes(job(), 1).event("rank-exited", 60, "rank 1: SIGSEGV", rank=1, clean=0, signal=11)
        assert told(made).verdict == "unknown"

    @pytest.mark.parametrize("status", [130, 143])
    def test_stopped_by_hand(self, status: int) -> None:
        """A job that a person or the scheduler stopped did not crash."""
        made = Job(job_status=status)
        for rank in range(4):
            made.event("rank-exited", 170, "gone", rank=rank, clean=0, signal=15)
        assert told(made).verdict == "healthy"

    def test_keyboard_interrupt(self) -> None:
        """Neither is an interrupt an exception of the rank's own."""
        made = Job(job_status=None)
        made.event("rank-exception", 170, "rank 0 ended with KeyboardInterrupt", rank=0, type="KeyboardInterrupt")
        assert told(made).verdict == "healthy"

    def test_stopped_by_hand_because_of_a_death(self) -> None:
        """Somebody stops a job whose ranks wait for one that died: the death is told, neither healthy nor a hang."""
        made = Job(job_status=143)
        made.event("rank-exception", 60, "rank 3 ended with ValueError: no", rank=3, type="ValueError", step=60)
        for rank in range(3):
            made.event("rank-hung", 100, "stands", rank=rank, step=61, phase="forward", state="S")
            made.event("rank-exited", 140, "gone", rank=rank, clean=0, signal=15)
        assert (first(made).class_slug, first(made).where.rank) == ("rank-exception", 3)

    def test_failed_for_no_reason_seen(self) -> None:
        """A job that failed without a trace is unknown, and says its status."""
        verdict = told(Job(job_status=3))
        assert verdict.verdict == "unknown"
        assert "status 3" in verdict.summary


class TestGpu:
    """A GPU that broke is the root of what its rank says; without a word from the hardware nobody is accused."""

    @pytest.mark.parametrize("kinds", [("gpu-lost", "xid"), ("gpu-lost",), ("gpu-fallen-off",), ("xid",)])
    def test_off_bus(self, kinds: tuple[str, ...]) -> None:
        """With an Xid or without, by NVML or by the kernel alone, a lost GPU is told before the exceptions."""
        made = failed(job(), 2, DEVICE)
        for kind in kinds:
            number = {"number": 79} if kind == "xid" else {}
            made.event(kind, 79.5, f"{kind} of GPU 2", device=uuid(2), **number)
        found = first(made)
        assert (found.class_slug, found.side, found.where.rank) == ("gpu-off-bus", Side.HARDWARE, 2)
        assert found.where.gpu_uuid == uuid(2)
        assert found.advice is Advice.ACT

    def test_off_bus_as_a_hang(self) -> None:
        """A lost GPU may leave its rank stuck rather than dead."""
        made = hung(1).event("gpu-lost", 61, "NVML says the GPU is lost", device=uuid(1))
        assert (first(made).class_slug, first(made).where.rank) == ("gpu-off-bus", 1)

    def test_off_bus_twin_with_clean_counters(self) -> None:
        """The same death with a silent hardware accuses no hardware."""
        verdict = told(failed(job(), 2, DEVICE))
        assert verdict.verdict in ("unknown", "code")
        assert all(each.side is not Side.HARDWARE for each in verdict.findings)

    def test_off_bus_twin_without_death(self) -> None:
        """Words of a lost GPU while the job goes on to its end: healthy, at most to be watched."""
        made = (
            Job().event("gpu-lost", 100, "lost", device=uuid(2)).event("xid", 100, "Xid 79", device=uuid(2), number=79)
        )
        verdict = told(made)
        assert verdict.verdict == "healthy"
        assert all(each.confidence < 0.8 for each in verdict.findings)

    def test_ecc_by_the_counter(self) -> None:
        """The volatile counter moved: that GPU's memory, whatever the rank's exception is called."""
        found = first(failed(job(), 2, DEVICE).memory_error(2, 60))
        assert (found.class_slug, found.side, found.where.rank) == ("gpu-ecc-uncorrectable", Side.HARDWARE, 2)

    def test_ecc_by_xid_just_before_the_end(self) -> None:
        """A job that dies at once leaves no time for the counter to be read: the Xid says it."""
        made = failed(job(), 2, DEVICE)
        for number in (48, 45, 154):
            made.event("xid", 79.9, f"Xid {number}", device=uuid(2), number=number)
        found = first(made)
        assert found.class_slug == "gpu-ecc-uncorrectable"
        assert "Xid 45" not in found.evidence[0].what

    def test_ecc_counter_that_moved_before(self) -> None:
        """Counts from before the job, volatile or aggregate, are history: the job's death is not theirs."""
        assert first(failed(job(), 2, "ValueError: no")).class_slug == "rank-exception"

    @pytest.mark.parametrize("number", [13, 31, 43, 45, 63])
    def test_xids_that_are_not_the_root(self, number: int) -> None:
        """Xids of the code's own faults, and those that follow another, make no hardware verdict."""
        made = failed(job(), 2, "ValueError: no").event("xid", 60, f"Xid {number}", device=uuid(2), number=number)
        assert first(made).class_slug == "rank-exception"

    @pytest.mark.parametrize("number", [46, 110, 143, 158])
    def test_units_inside_that_failed(self, number: int) -> None:
        """NVIDIA asks for a reset of the GPU: its own, whether its rank died or hangs."""
        crash = failed(job(), 2, DEVICE).event("xid", 60, f"Xid {number}", device=uuid(2), number=number)
        hang = hung(2).event("xid", 61, f"Xid {number}", device=uuid(2), number=number)
        for made in (crash, hang):
            found = first(made)
            assert (found.class_slug, found.side, found.where.rank) == ("gpu-firmware-hang", Side.HARDWARE, 2)
            assert "reset the GPU" in found.action.replace("Reset", "reset")

    @pytest.mark.parametrize(
        ("number", "slug"),
        [(11, "gpu-engine-exception"), (25, "gpu-engine-exception"), (69, "gpu-engine-exception"),
         (108, "gpu-peer-access-refused")],
    )  # fmt: skip
    def test_commands_of_the_code(self, number: int, slug: str) -> None:
        """NVIDIA sends to the application first: the code's, less surely than by 13 and 137, and never hardware's."""
        found = {}
        for each in (number, 13 if slug == "gpu-engine-exception" else 137):
            made = failed(job(), 2, DEVICE).event("xid", 60, f"Xid {each}", device=uuid(2), number=each)
            found[each] = first(made)
            assert (found[each].class_slug, found[each].side) == (slug, Side.CODE)
        assert found[number].confidence == min(each.confidence for each in found.values()) < 0.9

    @pytest.mark.parametrize(
        ("number", "slug"), [(54, "gpu-power-brake"), (156, "gpu-row-remap-pending"), (157, "gpu-row-remap-failed")]
    )
    def test_xids_to_watch(self, number: int, slug: str) -> None:
        """Work goes on after these: something to watch, and neither a verdict nor the reason of a rank's exception."""
        for made in (Job(), failed(job(), 2, "ValueError: no")):
            calm = told(made)
            made.event("xid", 60, f"Xid {number}", device=uuid(2), number=number)
            verdict = told(made)
            assert verdict.verdict == calm.verdict
            watch = verdict.findings[-1]
            assert (watch.class_slug, watch.advice, watch.where.rank) == (slug, Advice.WATCH, 2)
            assert f"Xid {number}" in watch.summary

    @pytest.mark.parametrize(("number", "said"), [
        (70, "Xid 70: exception of copy engine 3 (it can come from NVIDIA's driver or CUDA; "),
        (78, "NVIDIA: Bring driver and firmware of host and guest to versions that go together."),
        (151, "NVIDIA: Restart the virtual machine that owns the GPU."),
        (163, "NVIDIA: No reset is needed. Remove the heat"),
        (167, "NVIDIA names no action."),
    ])  # fmt: skip
    def test_xids_that_leave_open_whose_fault_it_is(self, number: int, said: str) -> None:
        """They accuse nobody, and the finding tells what the catalogue says of them."""
        calm = first(failed(job(), 2, DEVICE))
        found = first(failed(job(), 2, DEVICE).event("xid", 60, f"Xid {number}", device=uuid(2), number=number))
        assert (found.class_slug, found.confidence) == (calm.class_slug, calm.confidence)
        assert said in found.summary
        assert said not in calm.summary

    def test_old_xid(self) -> None:
        """Xids from before the window, or read as history, are not events."""
        made = failed(job(), 2, DEVICE)
        made.event("xid", -7000, "Xid 79", device=uuid(2), number=79)
        made.event("xid", 2, "Xid 48", device=uuid(2), number=48, history=1)
        assert all(each.side is not Side.HARDWARE for each in told(made).findings)

    def test_xid_of_another_gpu(self) -> None:
        """A broken GPU that no rank ran on is not the cause of a death."""
        made = failed(job(), 2, "ValueError: no").event("xid", 60, "Xid 79", device=uuid(9), number=79)
        assert first(made).class_slug == "rank-exception"


class TestHang:
    """One rank is missing where the others wait."""

    @pytest.mark.parametrize(
        ("made", "rank"),
        [
            (hung(1), 1),
            (hung(2, phase="collective_wait", state="T"), 2),
            (hung(3, phase="collective_wait", step=59), 3),
            (hung(0, phase="data_wait", state="D"), 0),
        ],
        ids=["elsewhere", "stopped", "older-step", "blocked"],
    )
    def test_who_is_missing(self, made: Job, rank: int) -> None:
        """The rank that is not in the collective, is stopped, or is at an older step."""
        found = first(made)
        assert (found.class_slug, found.side, found.where.rank) == ("rank-hang", Side.CODE, rank)

    def test_stack(self) -> None:
        """Where the missing rank stands comes from its own stack, latest call first."""
        text = (
            'Thread 0x00007f01 (most recent call first):\n  File "/usr/lib/threading.py", line 3 in wait\n\n'
            'Current thread 0x00007f02 (most recent call first):\n  File "/home/u/train.py", line 120 in stuck\n'
            '  File "/home/u/train.py", line 150 in main\n'
        )
        assert "stands in stuck (train.py:120)" in first(hung(1).event("rank-stacks", 101, text, rank=1)).summary

    def test_rank_that_left_early(self) -> None:
        """A rank that finished in good order while the others wait for it is the one that is missing."""
        made = Job(steps=61, job_status=143).event("rank-exited", 90, "rank 3 ended", rank=3, clean=1)
        for rank in range(3):
            made.event("rank-hung", 100, "waits", rank=rank, step=60, phase="collective_wait", state="S")
        found = first(made)
        assert (found.class_slug, found.where.rank) == ("rank-hang", 3)

    def test_nobody_stands_out(self) -> None:
        """All in the same collective at the same step: unknown, and no rank is named."""
        verdict = told(hung(9))
        assert verdict.verdict == "unknown"
        assert verdict.findings[0].where.rank is None

    def test_hang_after_a_death_is_its_echo(self) -> None:
        """Ranks that wait for one that was killed are not hung by themselves."""
        made = hung(9)
        made.job_status = 1
        made.event("rank-exited", 60, "rank 0 was ended by SIGKILL", rank=0, clean=0, signal=9, phase="forward")
        assert (first(made).class_slug, first(made).where.rank) == ("rank-killed", 0)

    def test_deaths_after_a_hang_are_its_end(self) -> None:
        """Ranks that were killed because the job hung did not end it."""
        made = hung(1)
        for rank in range(4):
            made.event("rank-exited", 140, "gone", rank=rank, clean=0, signal=9)
        made.job_status = 1
        assert first(made).class_slug == "rank-hang"


class TestLastWords:
    """What a dead rank's process left says more than its exit status."""

    def test_error_file(self) -> None:
        """A rank without a word of its own whose launcher's error file has one: that is its exception."""
        made = Job(job_status=1).event(
            "rank-exited", 60, "rank 1 ended with status 1", rank=1, clean=0, status=1, pid=9
        )
        made.event("rank-error", 60, "KeyError: 'tokens'\nTraceback", rank=1, pid=9)
        found = first(made)
        assert (found.class_slug, found.where.rank) == ("rank-exception", 1)
        assert "KeyError" in found.summary

    def test_standard_error(self) -> None:
        """The end of its standard error counts where no other rank writes to that file."""
        text = "step 12\nterminate called after throwing an instance of 'std::bad_alloc'\nFatal Python error: Aborted\n"
        for shared in (0, 1):
            made = Job(job_status=1).event("rank-exited", 60, "aborted", rank=1, clean=0, signal=6, pid=9)
            made.event("rank-stderr", 60, text, rank=1, pid=9, shared=shared)
            evidence = {piece.family: piece.what for piece in first(made).evidence}
            assert ("bad_alloc" in evidence["exception"]) == (not shared)

    def test_restarted_job(self) -> None:
        """Ranks that end with a status after a goodbye have failed."""
        made = Job(job_status=3).event("rank-exited", 60, "rank 1 ended with status 3", rank=1, clean=1, status=3)
        assert first(made).where.rank == 1


class TestFlightRecorders:
    """What ranks that hang answered for their flight recorders."""

    @staticmethod
    def answered(made: Job, fault: Fault, programs: dict[int, list[Step]] | None = None) -> Job:
        """The job with the recorders of a group of four, one of which the fault stops."""
        steps = [Step("0", "all_reduce", 64)] * 30
        job = FlightJob({"0": (0, 1, 2, 3)}, dict.fromkeys(range(4), steps) | (programs or {}), {"0": "default_pg"})
        for rank, document in dumps(job, fault).items():
            made.event("rank-flight", 101, json.dumps(document), rank=rank)
        return made

    def test_they_name_whom_the_status_does_not(self) -> None:
        """All ranks wait at the same place by their own status; the recorder that is behind is the one."""
        verdict = told(self.answered(hung(9), Fault("host", (2,), 20)))
        found = verdict.findings[0]
        assert (found.class_slug, found.where.rank) == ("rank-hang", 2)
        assert "Rank 2 holds up the job" in found.evidence[0].what

    def test_other_collective(self) -> None:
        """A rank that calls another collective than the others: the code's, with both sides."""
        odd = [Step("0", "all_reduce", 64)] * 12 + [Step("0", "broadcast", 64)] * 9
        found = first(self.answered(hung(1), Fault(), {1: odd}))
        assert (found.class_slug, found.side, found.where.rank) == ("collective-mismatch", Side.CODE, 1)
        assert "all_reduce against broadcast" in found.summary

    def test_nonsense(self) -> None:
        """Answers that make no sense change nothing."""
        made = hung(1)
        for rank, text in enumerate(("", "{", "[]", "no flight recorder of rank 3")):
            made.event("rank-flight", 101, text or "x", rank=rank)
        assert (first(made).class_slug, first(made).where.rank) == ("rank-hang", 1)


def test_ended_by_a_scheduler() -> None:
    """A healthy job that a scheduler ended says who ended it."""
    made = Job(job_status=143).event("job-signalled", 170, "SIGTERM from slurmstepd 9 was passed on to the job")
    verdict = told(made)
    assert verdict.verdict == "healthy"
    assert "did not end by itself: SIGTERM from slurmstepd 9" in verdict.summary
