"""What-if over spans: what one service call costs its traces."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rankscope.rules.whatif_spans import Span, whatif_spans

MS = 1_000_000


def call(trace: int, number: int, parent: int | None, service: str, start: float, end: float, **more: object) -> Span:
    """A span, times in ms."""
    above = None if parent is None else f"{parent:x}"
    return Span(f"t{trace}", f"{number:x}", above, service, "GET", int(start * MS), int(end * MS), **more)  # type: ignore[arg-type]


def checkout(trace: int, stock_ms: float, *, mail_ms: float = 5.0) -> list[Span]:
    """A request that asks stock and price at once, then pays; mail goes out behind its back."""
    begin = 1_000.0 * trace
    both = max(stock_ms, 20.0)
    return [
        call(trace, 1, None, "web", begin, begin + 4 + both + 30),
        call(trace, 2, 1, "stock", begin + 1, begin + 1 + stock_ms),
        call(trace, 3, 1, "price", begin + 1, begin + 21),
        call(trace, 4, 1, "pay", begin + 2 + both, begin + 32 + both),
        call(trace, 5, 4, "mail", begin + 30 + both, begin + 80 + both + mail_ms),
    ]


def test_a_slow_call_is_priced_by_what_the_trace_gives_back() -> None:
    """Three of ten calls take 100 ms and the others 10: at their median the trace returns 80 ms of each, not 90,
    because the price then holds it up; what nobody waits for returns nothing."""
    spans = [
        span for trace in range(10) for span in checkout(trace, 100.0 if trace < 3 else 10.0, mail_ms=90.0 * trace)
    ]
    found = whatif_spans(spans)
    first = found.operations[0]
    assert (first.service, first.operation) == ("stock", "GET")
    assert first.returns_ms == pytest.approx(3 * 80 / 10)
    assert (first.on_critical_path, found.traces) == (3, 10)
    assert found.slowdown == pytest.approx((54 + 3 * 80 / 10) / 54)
    assert all(price.service != "mail" for price in found.operations)


def test_a_call_that_another_hides_returns_nothing() -> None:
    """A slow call beside one that always takes longer is not on the path."""
    spans = [span for trace in range(8) for span in checkout(trace, 18.0 if trace % 2 else 3.0)]
    assert {price.service: price.returns_ms for price in whatif_spans(spans).operations}.get("stock") is None


def test_links_join_traces_and_the_queue_is_nobodys_work() -> None:
    """A consumer's trace that links to its producer's is one with it; the wait between is named as such."""
    spans = []
    for trace in range(6):
        begin, waited = 1_000.0 * trace, 50.0 if trace else 400.0
        spans.append(call(2 * trace, 1, None, "producer", begin, begin + 10))
        link = ((f"t{2 * trace}", "1"),)
        start = begin + 10 + waited
        spans.append(call(2 * trace + 1, 9, None, "consumer", start, start + 25, links=link))
    found = whatif_spans(spans)
    assert found.traces == 6
    assert found.mean_ms == pytest.approx(10 + 25 + (5 * 50 + 400) / 6)
    queue = next(price for price in found.operations if "waiting" in price.operation)
    assert queue.critical_ms == pytest.approx((5 * 50 + 400) / 6)
    assert queue.returns_ms is None


def test_the_copy_of_a_service_that_is_slow_is_named() -> None:
    """One of three pods answers late: it carries the time above the median; where all are late at times, none does."""
    for slow, named in ((lambda trace: trace % 3 == 1, "pod-1"), (lambda trace: trace % 4 == 1, None)):
        spans = []
        for trace in range(24):
            on_pod = [
                replace(span, instance=f"pod-{trace % 3}") for span in checkout(trace, 100.0 if slow(trace) else 10.0)
            ]
            spans += on_pod
        first = whatif_spans(spans).operations[0]
        assert (first.service, first.instance) == ("stock", named)


def test_at_its_own_median_nothing_is_returned() -> None:
    """Calls that always take the same time are nobody's fault, however long they are."""
    found = whatif_spans([span for trace in range(5) for span in checkout(trace, 60.0)])
    assert found.slowdown == pytest.approx(1.0)
    assert all(abs(price.returns_ms or 0.0) < 1e-6 for price in found.operations)


def test_damaged_traces_are_told_and_do_no_harm() -> None:
    """Parents that are absent, spans that are their own ancestors, clocks that differ: said, and the rest is priced."""
    spans = [span for trace in range(4) for span in checkout(trace, 100.0 if trace == 3 else 10.0)]
    spans += [call(90, 1, 2, "loop", 0, 5), call(90, 2, 1, "loop", 0, 5)]
    spans += [call(91, 7, 6, "orphan", 0, 5), call(92, 1, None, "web", 10, 20), call(92, 2, 1, "early", 8, 12)]
    found = whatif_spans(spans)
    assert found.operations[0].service == "stock"
    assert len(found.notes) == 3


def test_random_trees_are_replayed_as_they_were() -> None:
    """With nothing changed each trace ends when its first span did, whatever its calls overlap."""
    draw = random.Random(11)
    for trace in range(40):
        spans = [call(trace, 0, None, "s0", 0, 1_000)]
        for number in range(1, 30):
            parent = draw.choice(spans)
            low, high = parent.start_ns / MS, parent.end_ns / MS
            start = draw.uniform(low, high)
            spans.append(
                call(trace, number, int(parent.span_id, 16), f"s{number % 5}", start, draw.uniform(start, high))
            )
        assert whatif_spans(spans).mean_ms == pytest.approx(1_000)


def shop(trace: int, own: dict[str, float]) -> tuple[list[Span], float]:
    """One request, timed by hand: auth, then stock beside price (which asks tax), then pay (which asks ledger).

    `own` is each service's own work, ms, all of it before its calls; (spans, length of the trace).
    """
    begin = 10_000.0 * trace
    auth = begin + own["web"] + own["auth"]
    stock = auth + own["stock"]
    price = auth + own["price"] + own["tax"]
    both = max(stock, price)
    ledger = both + own["pay"] + own["ledger"]
    spans = [
        call(trace, 1, None, "web", begin, ledger),
        call(trace, 2, 1, "auth", begin + own["web"], auth),
        call(trace, 3, 1, "stock", auth, stock),
        call(trace, 4, 1, "price", auth, price),
        call(trace, 5, 4, "tax", auth + own["price"], price),
        call(trace, 6, 1, "pay", both, ledger),
        call(trace, 7, 6, "ledger", both + own["pay"], ledger),
    ]
    return spans, ledger - begin


@pytest.mark.parametrize("slow", ["auth", "stock", "tax", "ledger"])
def test_prices_are_those_of_the_requests_timed_again(slow: str) -> None:
    """Calls of any length, one service slow in one request of five: S and what each service gives back are those of
    the same requests timed with its calls at their median."""
    draw = random.Random(5)
    usual = {"web": 2.0, "auth": 6.0, "stock": 20.0, "price": 8.0, "tax": 9.0, "pay": 12.0, "ledger": 15.0}
    requests = [{name: ms * draw.uniform(0.9, 1.1) for name, ms in usual.items()} for _ in range(41)]
    for own in requests[::5]:
        own[slow] *= 4.0
    median = {name: sorted(own[name] for own in requests)[20] for name in usual}

    def mean_ms(least: set[str]) -> float:
        lengths = [
            shop(0, {name: min(ms, median[name]) if name in least else ms for name, ms in own.items()})[1]
            for own in requests
        ]
        return sum(lengths) / len(lengths)

    found = whatif_spans([span for number, own in enumerate(requests) for span in shop(number, own)[0]])
    assert found.mean_ms == pytest.approx(mean_ms(set()), abs=1e-3)
    assert found.slowdown == pytest.approx(mean_ms(set()) / mean_ms(set(usual)), rel=1e-3)
    assert found.operations[0].service == slow
    for price in found.operations:
        if price.returns_ms is not None:
            assert price.returns_ms == pytest.approx(mean_ms(set()) - mean_ms({price.service}), abs=2e-3)
