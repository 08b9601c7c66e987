"""Readings that are kept from one look at a recording to the next: the window is the same as one read anew."""

from __future__ import annotations

import random
from pathlib import Path

from rankscope.agent.kept_readings import MAX_READINGS, KeptReadings
from rankscope.agent.load import load_window
from rankscope.agent.recording import Recording
from rankscope.reading import Reading
from rankscope.testing import FakeClock

SECOND = 10**9


def test_a_window_of_kept_readings_is_the_one_read_anew(tmp_path: Path) -> None:
    """While a recording grows, with series that come late, fall silent, or are written up to half a minute late."""
    chance = random.Random(1)
    path, kept = tmp_path / "host.db", KeptReadings()
    recording = Recording.create(path, job="test", host="a", clock=FakeClock())
    begins = {"GPU-1": 0, "GPU-2": 100, "GPU-3": 400}
    written = 0
    for now in range(20, 900, 20):
        readings = [
            Reading("gpu.temperature", chance.random(), (second - late) * SECOND + chance.randrange(SECOND), device)
            for device, begin in begins.items()
            for second in range(max(begin, now - 20), now)
            for late in (0, chance.choice((0, 29)))
            if not (device == "GPU-2" and second > 300) and second >= late
        ]
        written += len(readings)
        recording.add_readings(readings)
        recording.commit()
        since_ns = (now - 200) * SECOND
        again = load_window([path], since_ns=since_ns, kept=kept)
        anew = load_window([path], since_ns=since_ns)
        assert again.series == anew.series
        assert {key.device for key in anew.series} == {
            device for device, begin in begins.items() if begin < now and (device != "GPU-2" or now <= 500)
        }
    recording.close()
    # A window of 200 s, read 44 times, of which a look reads the last half minute and what is new.
    assert written < kept.read < 4 * written


def test_nothing_is_kept_of_what_the_window_has_left() -> None:
    """What the window moved on from is no longer held: an agent's memory is bounded by the window."""
    kept = KeptReadings()
    kept.add(1, [second * SECOND for second in range(500)], [60.0] * 500)
    kept.move_on(400 * SECOND)
    # Of the last half minute nothing is held either: it is read anew.
    assert [(number, len(series.times_ns)) for number, series in kept.window()] == [(1, 69)]
    kept.move_on(600 * SECOND)
    assert list(kept.window()) == []


def test_a_burst_is_kept_thinner_where_it_is_old() -> None:
    """However many readings a window holds, so many are kept: the newest of each series, older ones in part, and all of
    a series that has few."""
    kept = KeptReadings()
    for number in (1, 2):
        kept.add(number, range(MAX_READINGS), [float(time_ns) for time_ns in range(MAX_READINGS)])
    kept.move_on(0)
    assert list(kept.window()) == []
    newest_ns = 60 * SECOND
    for number in (1, 2, 3):
        count = 100 if number == 3 else MAX_READINGS
        times_ns = [newest_ns - 40 * SECOND + at for at in range(-count, 0)]
        kept.add(number, [*times_ns, newest_ns], [float(time_ns) for time_ns in [*times_ns, newest_ns]])
    for _ in range(5):
        kept.move_on(0)
    sizes = {number: len(series.times_ns) for number, series in kept.window()}
    assert MAX_READINGS / 2 < sum(sizes.values()) <= MAX_READINGS
    assert sizes[3] == 100
    for _, series in kept.window():
        times = series.times_ns.tolist()
        assert times == sorted(set(times))
        assert series.values.tolist() == times
        assert times[-len(times) // 3 :] == list(range(times[-1] - len(times[-len(times) // 3 :]) + 1, times[-1] + 1))
