"""The first failing rank among 4,096: one root, and thousands of time-outs and resets in any order around it."""

from __future__ import annotations

import random

import pytest

from rankscope.rules.failure import Failure, FailureKind, kind_of_text
from rankscope.rules.first_failure import FirstFailure, first_failure

WORLD = 4096
SECOND = 1_000_000_000
BEGIN = 1_790_000_000 * SECOND

#: Words in which ranks end whose peer is gone or late, as PyTorch, NCCL, gloo and the store write them.
ECHOES = (
    (
        "[rank{r}]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, remote process "
        "exited or there was a network error, NCCL version 2.27.3\nncclRemoteError: A call failed possibly "
        "due to a network error.\n"
        "Last error:\nsocketProgress: Connection closed by remote peer node{o}<41234>"
    ),
    (
        "[Rank {r}] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5012, OpType=ALLREDUCE, "
        "NumelIn=1048576, NumelOut=1048576, Timeout(ms)=600000) ran for 600029 milliseconds before timing out."
    ),
    (
        "[PG ID 0 PG GUID 0(default_pg) Rank {r}] Exception (either an error or timeout) detected by watchdog at "
        "work: 5012, "
        "last enqueued NCCL work: 5014, last completed NCCL work: 5011."
    ),
    (
        "[rank{r}]: Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels, "
        "subsequent GPU operations might run on corrupted/incomplete data."
    ),
    "torch.distributed.DistNetworkError: failed to recv, got 0 bytes",
    "[c10d] recvValue failed on SocketImpl(fd=57, addr=[node{o}]:29500): Connection reset by peer",
    "RuntimeError: [/pytorch/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:38122",
    "RuntimeError: [/pytorch/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation",
    "torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//cuda//1",
    "The client socket has timed out after 600000ms while trying to connect to (node0, 29500).",
    "DistBackendError: NCCL communicator was aborted on rank {r}. Original reason for failure was: watchdog timeout",
    "BrokenPipeError: [Errno 32] Broken pipe",
    "torch.distributed.elastic.multiprocessing.api.SignalException: Process 4711 got signal: 15",
)
#: Words of a rank's own, and what they are.
ROOTS = (
    ("ValueError: too many values to unpack (expected 2)", FailureKind.EXCEPTION),
    ("KeyError: 'tokens'", FailureKind.EXCEPTION),
    ("AssertionError: loss is nan at step 812", FailureKind.EXCEPTION),
    ("RuntimeError: DataLoader worker (pid 91) is killed by signal: Killed.", FailureKind.EXCEPTION),
    ("OSError: [Errno 28] No space left on device: '/ckpt/step_800.pt'", FailureKind.EXCEPTION),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", FailureKind.DEVICE_MEMORY),
    ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", FailureKind.DEVICE),
    (
        "[Rank 7] Process group watchdog thread terminated with exception: CUDA error: uncorrectable ECC error",
        FailureKind.DEVICE,
    ),
    ("RuntimeError: CUDA error: device-side assert triggered", FailureKind.EXCEPTION),
    ("DistBackendError: NCCL error: invalid usage. ncclInvalidUsage: Duplicate GPU detected", FailureKind.EXCEPTION),
    ("ModuleNotFoundError: No module named 'flash_attn'", FailureKind.EXCEPTION),
)


def echoes(chosen: random.Random, root: int, moment: int) -> list[Failure]:
    """How the others end: words, exits, or both; some before the root's record, on clocks that differ between hosts."""
    skew = [chosen.randrange(-SECOND // 2, SECOND // 2) for _ in range(WORLD // 8)]
    found = []
    for rank in range(WORLD):
        if rank == root:
            continue
        late = chosen.choice((0, 0, 600)) * SECOND + chosen.randrange(-2 * SECOND, 30 * SECOND)
        at = moment + late + skew[rank // 8]
        host = f"node{rank // 8}"
        text = chosen.choice(ECHOES).format(r=rank, o=chosen.randrange(WORLD // 8))
        if chosen.random() < 0.9:
            found.append(Failure(rank, at, text, host=host))
        if chosen.random() < 0.8 or not found or found[-1].rank != rank:
            signal = chosen.choice((6, 6, 15, None))
            if signal is None and (not found or found[-1].rank != rank):
                signal = 15
            found.append(Failure(rank, at + SECOND, "", signal, 1 if signal is None else None, host))
    return found


def told(own: list[Failure], seed: int, root: int) -> FirstFailure:
    """The verdict on one root's failures in a crowd of echoes, shuffled."""
    chosen = random.Random(seed)
    failures = echoes(chosen, root, BEGIN) + own
    chosen.shuffle(failures)
    found = first_failure(failures, WORLD)
    assert found is not None
    return found


class TestCrowd:
    """4,096 ranks; the root's own word decides, whenever its record arrives."""

    @pytest.mark.parametrize(("text", "kind"), ROOTS, ids=lambda each: str(each)[:24])
    def test_words(self, text: str, kind: FailureKind) -> None:
        """An exception of the root's own, written half a minute after the first echoes."""
        root = random.Random(text).randrange(WORLD)
        own = [
            Failure(root, BEGIN + 20 * SECOND, text, host=f"node{root // 8}"),
            Failure(root, BEGIN + 21 * SECOND, "", None, 1, f"node{root // 8}"),
        ]
        found = told(own, 3, root)
        assert (found.rank, found.kind) == (root, kind)
        assert found.strength >= 0.9
        assert sum(found.echoes.values()) == WORLD - 1
        assert found.action

    @pytest.mark.parametrize(
        ("signal", "memory", "kind"),
        [(9, False, FailureKind.KILLED), (9, True, FailureKind.KILLED), (11, False, FailureKind.NATIVE)],
    )
    def test_signals(self, signal: int, memory: bool, kind: FailureKind) -> None:
        """A rank without a word, killed or crashed in native code."""
        found = told([Failure(77, BEGIN, "", signal, host="node9", out_of_memory=memory)], 5, 77)
        assert (found.rank, found.kind) == (77, kind)

    def test_status_alone(self) -> None:
        """A rank that only ended with a status, among thousands that say why."""
        chosen = random.Random(8)
        failures = [each for each in echoes(chosen, 1000, BEGIN) if each.text]
        found = first_failure([*failures, Failure(1000, BEGIN + SECOND, "", None, 3, "node125")], WORLD)
        assert found is not None
        assert (found.rank, found.kind) == (1000, FailureKind.STATUS)

    def test_silent_rank(self) -> None:
        """Nothing at all was heard of the root: its whole host is gone."""
        chosen = random.Random(9)
        by_rank = {each.rank: each for each in echoes(chosen, 2000, BEGIN) if each.text}
        full = [
            by_rank.get(rank, Failure(rank, BEGIN, ECHOES[1].format(r=rank, o=1)))
            for rank in range(WORLD)
            if rank != 2000
        ]
        found = first_failure(full, WORLD)
        assert found is not None
        assert (found.rank, found.kind) == (2000, FailureKind.VANISHED)

    def test_survivors_killed_by_the_launcher(self) -> None:
        """A launcher that ends its survivors by SIGKILL does not make them roots."""
        failures = [Failure(rank, BEGIN + 40 * SECOND + rank, "", 9, host=f"node{rank // 8}") for rank in range(WORLD)]
        failures[300] = Failure(300, BEGIN + 39 * SECOND, "KeyError: 'x'", host="node37")
        random.Random(2).shuffle(failures)
        found = first_failure(failures, WORLD)
        assert found is not None
        assert found.rank == 300

    def test_only_time_outs(self) -> None:
        """Everybody timed out: the one whose last completed collective is lowest is where to look, less surely."""
        text = (
            "[PG ID 0 Rank {r}] Exception (either an error or timeout) detected by watchdog at work: 9, "
            "last enqueued NCCL work: 12, last completed NCCL work: {c}."
        )
        failures = [Failure(r, BEGIN + r, text.format(r=r, c=7 if r == 1234 else 8)) for r in range(WORLD)]
        found = first_failure(failures, WORLD)
        assert found is not None
        assert (found.rank, found.kind) == (1234, FailureKind.TIMEOUT)
        assert found.strength < 0.9

    def test_named_by_others(self) -> None:
        """A barrier that names who did not come."""
        text = "RuntimeError: Ranks 9 failed to pass monitoredBarrier in 30000 ms"
        found = first_failure([Failure(rank, BEGIN + rank, text) for rank in range(WORLD) if rank != 9], 0)
        assert found is not None
        assert found.rank == 9

    def test_nothing_tells_them_apart(self) -> None:
        """All alike: no rank is named."""
        found = first_failure([Failure(rank, BEGIN, ECHOES[3].format(r=rank, o=0)) for rank in range(WORLD)], WORLD)
        assert found is not None
        assert found.rank is None
        stopped = first_failure([Failure(rank, BEGIN, "", 15) for rank in range(WORLD)], WORLD)
        assert stopped is not None
        assert (stopped.rank, stopped.kind) == (None, FailureKind.STOPPED)

    def test_two_of_their_own(self) -> None:
        """Two ranks fail by themselves minutes apart: the first is the root, the second is said."""
        own = [
            Failure(8, BEGIN + 300 * SECOND, "ValueError: late", host="node1"),
            Failure(4000, BEGIN, "KeyError: 'early'", host="node500"),
        ]
        chosen = random.Random(4)
        failures = [each for each in echoes(chosen, 8, BEGIN) if each.rank != 4000] + own
        chosen.shuffle(failures)
        found = first_failure(failures, WORLD)
        assert found is not None
        assert (found.rank, found.also) == (4000, (8,))


@pytest.mark.parametrize("text", ECHOES, ids=range(len(ECHOES)))
def test_echoes_are_echoes(text: str) -> None:
    """Each of the known words is an echo by itself."""
    assert kind_of_text(text.format(r=1, o=2)) in (FailureKind.TIMEOUT, FailureKind.PEER_LOST, FailureKind.STOPPED)


def test_no_failures() -> None:
    """Ranks that ended well, or none at all, give no root."""
    assert first_failure([]) is None
    assert first_failure([Failure(0, 1, "", None, 0), Failure(1, 1, "", None, 0)]) is None
