"""The analysis of traces on events small enough to count by hand, and on real traces where they are at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankscope.rules.trace.analysis import Analysis, analyse
from rankscope.rules.trace.bound import Bound, bound_of
from rankscope.rules.trace.events import NONE, CallTable, DeviceTable, HostTable, Kind, OperatorTable, Trace
from rankscope.rules.trace.intervals import Intervals
from rankscope.rules.trace.names import Type, copy_sides, event_type, on_tensor_cores, short
from rankscope.rules.trace.operators import operators

REAL = Path(__file__).parents[2].parent / "shared/data/kineto"
US = 1_000
NCCL = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevComm*)"


def made(
    events: list[tuple[str, float, float, int, float | None]],
    steps: tuple[tuple[int, float, float], ...] = (),
    kind: Kind = Kind.KERNEL,
) -> Trace:
    """A trace of (name, start, end, stream, launch) in us, and of steps (number, start, end)."""
    names = sorted({each[0] for each in events} | {f"ProfilerStep#{number}" for number, _, _ in steps} | {"launch"})

    def column(values: list[float]) -> np.ndarray:
        return np.array(values, dtype=np.float64).round().astype(np.int64)

    count = len(events)
    none = np.full(count, NONE, np.int64)
    number = column([index + 1 for index in range(count)])
    launched = [(index, each[4]) for index, each in enumerate(events) if each[4] is not None]
    calls = column([at * US for _, at in launched])
    fill = np.full(len(launched), names.index("launch"), np.int64)
    zero = np.zeros(len(launched), np.int64)
    return Trace(
        names=tuple(names),
        device=DeviceTable(
            start_ns=column([each[1] * US for each in events]),
            end_ns=column([each[2] * US for each in events]),
            name=column([names.index(each[0]) for each in events]),
            device=np.zeros(count, np.int64),
            stream=column([each[3] for each in events]),
            kind=np.full(count, kind, np.int64),
            correlation=number,
            bytes=none,
            message=none,
        ),
        calls=CallTable(calls, calls + US, fill, zero, zero - 1, column([index + 1 for index, _ in launched])),
        operators=OperatorTable(
            column([start * US for _, start, _ in steps]),
            column([end * US for _, _, end in steps]),
            column([names.index(f"ProfilerStep#{each}") for each, _, _ in steps]),
            np.zeros(len(steps), np.int64),
            np.full(len(steps), NONE, np.int64),
            np.full(len(steps), NONE, np.int32),
        ),
        frames=HostTable(*(np.zeros(0, np.int64) for _ in range(5))),
    )


def test_idle_is_told_by_the_launch_and_the_gap() -> None:
    """Launched after the previous end: host wait. Else below 30 us: kernel wait. Else other; on each stream apart."""
    trace = made(
        [
            ("a", 0, 10, 7, 0),
            ("b", 50, 60, 7, 40),  # launched at 40, after 10: host, 40 us
            ("c", 80, 90, 7, 41),  # launched before 60, 20 us: kernel
            ("d", 190, 200, 7, 42),  # launched before 90, 100 us: other
            ("e", 205, 210, 7, 90.5),  # 5 us
            ("x", 5, 195, 20, 1),
            ("y", 200, 230, 20, None),  # no call: other or kernel, never host
        ]
    )
    first, second = analyse(trace).streams
    assert first.by_cause_ns == (40 * US, 25 * US, 100 * US)
    assert second.by_cause_ns == (0, 5 * US, 0)
    assert analyse(trace, threshold_ns=1).streams[0].by_cause_ns == (40 * US, 0, 125 * US)


def test_the_device_idles_only_where_no_stream_runs() -> None:
    """A gap of one stream that another fills is no idle time of the device."""
    trace = made([("a", 0, 10, 7, 0), ("b", 20, 30, 8, 1), ("c", 25, 90, 7, 2), ("d", 100, 110, 8, 95)])
    analysis = analyse(trace)
    (device,) = analysis.devices
    assert device.by_cause_ns == (10 * US, 10 * US, 0)
    assert analysis.breakdown.idle_ns == 20 * US
    assert [(each.kernel, each.total_ns) for each in analysis.stalls] == [("b", 10 * US), ("d", 10 * US)]


def test_overlap_is_the_hidden_share_of_communication() -> None:
    """40 us of communication, 15 of them under computation; copies are neither."""
    trace = made([("gemm", 0, 20, 7, 0), (NCCL, 10, 50, 20, 1), ("gemm", 45, 60, 7, 2), ("Memcpy HtoD", 20, 30, 9, 3)])
    whole = analyse(trace).breakdown
    assert (whole.overlapped_ns, whole.communication_ns, whole.overlap) == (15 * US, 40 * US, 0.375)
    assert (whole.compute_ns, whole.non_compute_ns, whole.span_ns, whole.idle_ns) == (35 * US, 25 * US, 60 * US, 0)


def test_the_last_step_is_left_out_unless_asked_for() -> None:
    """What was launched after the last step began is cut off by the profiler's end."""
    events = [("k", 10 * n + 5, 10 * n + 9, 7, 10 * n + 1) for n in range(3)]
    steps = ((4, 0, 10), (5, 10, 20), (6, 20, 30))
    assert len(analyse(made(events, steps)).scope.rows) == 2
    assert len(analyse(made(events, steps), all_steps=True).scope.rows) == 3
    assert len(analyse(made(events, steps[:1])).scope.rows) == 3


def test_queue_length_never_falls_below_nothing() -> None:
    """An event that begins before its launch, by clocks that disagree, is counted and not a negative queue."""
    trace = made([("a", 5, 6, 7, 10), ("b", 30, 40, 7, 11), ("c", 40, 50, 7, 12)])
    launched = analyse(trace).launches
    (queue,) = launched.queues
    assert (launched.before_call, launched.count, queue.most) == (1, 3, 2)
    assert queue.mean == pytest.approx((1 * 1 + 2 * 18 + 1 * 10) / 30)


def test_a_wait_is_not_work() -> None:
    """CUDA's synchronisation events lie on streams and keep no device busy."""
    trace = made([("Stream Wait Event", 0, 100, 7, 0)], kind=Kind.SYNC)
    analysis = analyse(trace)
    assert analysis.breakdown.span_ns == 0
    assert bound_of(analysis) == Bound.UNKNOWN
    # Holistic Trace Analysis counts it as computation: the comparison has to.
    assert analysis.hta_breakdown.compute_ns == 100 * US


@pytest.mark.parametrize(
    ("name", "kind", "cores"),
    [
        ("ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_64x4_tn", Type.COMPUTATION, True),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>(Params)", Type.COMPUTATION, True),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", Type.COMPUTATION, True),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_tensor16x8x16_cudnn", Type.COMPUTATION, True),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", Type.COMPUTATION, True),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128>>(Flash_fwd_params)", Type.COMPUTATION, True),
        ("Cijk_Ailk_Bljk_BBS_BH_Bias_MT128x128x64_MI16x16x1_SN", Type.COMPUTATION, True),
        ("volta_sgemm_128x64_nn", Type.COMPUTATION, False),
        ("void at::native::vectorized_elementwise_kernel<4, Functor>(int, Functor)", Type.COMPUTATION, False),
        ("void gemmSN_NN_kernel<float, 256>(float*)", Type.COMPUTATION, False),
        (NCCL, Type.COMMUNICATION, False),
        ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", Type.COMMUNICATION, False),
        ("ncclSymkDevKernel_AllReduce_RSxLD_AGxST(ncclSymkDevWorkArgs4K)", Type.COMMUNICATION, False),
        ("void multimem_all_reduce_kernel<c10::BFloat16, 16>()", Type.COMMUNICATION, False),
        ("void vllm::cross_device_reduce_2stage<half, 8>()", Type.COMMUNICATION, False),
        ("Memcpy HtoD (Pageable -> Device)", Type.MEMORY, False),
        ("CopyHostToDevice", Type.MEMORY, False),
        ("triton_poi_fused_convert_element_type_3", Type.COMPUTATION, False),
    ],
)
def test_kernels_are_known_by_their_names(name: str, kind: Type, cores: bool) -> None:
    """NVIDIA's and AMD's libraries, NCCL, RCCL and those beside them."""
    assert (event_type(name, Kind.KERNEL), on_tensor_cores(name)) == (kind, cores)


def test_own_time_leaves_out_what_lies_inside() -> None:
    """Nested and crossing operators of two threads: own times add up to the time covered."""
    start, end = [0, 10, 20, 60, 0, 100], [100, 50, 30, 120, 40, 130]
    thread = [0, 0, 0, 0, 1, 0]

    def column(values: list[int], kind: type = np.int64) -> np.ndarray:
        return np.array(values, kind)

    names = ["outer", "middle", "inner", "crossing", "other thread", "ProfilerStep#3"]
    table = OperatorTable(
        column(start),
        column(end),
        column(list(range(6)), np.int32),
        column(thread, np.int32),
        column([NONE] * 6, np.int32),
        column([NONE] * 6, np.int32),
    )
    trace = replace(made([]), names=tuple(names), operators=table)
    own = {each.name: each.own_ns for each in operators(trace)}
    assert own == {"outer": 100 - 40 - 40, "middle": 30, "inner": 10, "crossing": 60, "other thread": 40}


def test_names_are_shortened_for_people() -> None:
    """Return types, templates and arguments go; what is left is the function."""
    assert short("void at::native::(anonymous namespace)::index<int, f(g)>(int, A<B>)") == "at::native::index"
    assert short("_ZN7cutlass6KernelINS_4gemm3FooEEEvv") == "cutlass::Kernel"
    assert short("ampere_sgemm_32x32_sliced1x4_tn") == "ampere_sgemm_32x32_sliced1x4_tn"
    assert copy_sides("Memcpy DtoH (Device -> Pinned)") == ("Device", "Pinned")
    assert copy_sides("CopyHostToDevice") == (None, None)


def test_intervals_agree_with_counting() -> None:
    """Union, intersection and gaps against every single nanosecond of random intervals."""
    random = np.random.default_rng(5)
    for _ in range(50):
        sets, masks = [], []
        for _ in range(2):
            start = random.integers(0, 200, random.integers(0, 12))
            end = start + random.integers(0, 30, len(start))
            mask = np.zeros(260, bool)
            for low, high in zip(start, end, strict=True):
                mask[low:high] = True
            sets.append(Intervals(start, end))
            masks.append(mask)
        assert [each.total for each in sets] == [int(mask.sum()) for mask in masks]
        assert sets[0].overlap(sets[1]) == int((masks[0] & masks[1]).sum())
        low, high = sets[0].gaps()
        assert int((high - low).sum()) == sets[0].span - sets[0].total


#: (stream: host wait, kernel wait, other) in us and the overlap in per cent that HolisticTraceAnalysis 0.5.0 prints.
HTA = {
    "alexnet": ({7: (12855007, 104, 0), 20: (12011718, 3, 0)}, None, 12929684),
    "nccl_data": ({7: (357247, 2155, 0), 40: (381499, 0, 0)}, 14.31, 338781),
    "negative_queue_length": (
        {
            7: (0, 17159, 691231),
            25: (628598, 85, 0),
            27: (792592, 1000, 7135),
            84: (62901, 12, 665192),
            285: (0, 0, 675305),
            363: (0, 75, 673182),
        },
        1.37,
        705853,
    ),
    "ns_resolution": ({7: (1709, 8404, 0)}, None, 10113),
    "sampled_rank-0": (
        {7: (213825, 1985, 261740), 23: (596037, 70, 34), 25: (0, 9, 47865), 84: (148934, 6, 0), 203: (0, 0, 0)},
        11.81,
        321378,
    ),
    "sampled_rank-1": (
        {7: (156827, 1816, 281064), 23: (596313, 100, 0), 25: (0, 9, 53028), 84: (251860, 0, 23247), 203: (0, 0, 0)},
        20.05,
        328671,
    ),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real traces are not on this machine")
@pytest.mark.parametrize("name", HTA)
def test_real_traces_give_what_holistic_trace_analysis_gives(name: str) -> None:
    """The idle breakdown of every stream, the idle time and the overlap, to the last microsecond it prints."""
    from rankscope.agent.kineto import read_trace

    streams, overlap, idle = HTA[name]
    analysis: Analysis = analyse(read_trace(REAL / f"{name}.json.gz").trace)
    found = {each.stream: tuple(ns / US for ns in each.by_cause_ns) for each in analysis.hta_streams}
    assert found == streams
    assert analysis.hta_breakdown.idle_ns == idle * US
    share = analysis.hta_breakdown.overlap
    assert (share is None) == (overlap is None)
    assert overlap is None or 100 * (share or 0) == pytest.approx(overlap, abs=0.005)
