"""How fast a server is, as its answers show it."""

from __future__ import annotations

from pagein.origins.pace import ASSUMED_RATE, Pace, pace_of

MB = 1_000_000


def answer(pace: Pace, at: float, *, waited: float, size: int, rate: float) -> float:
    """One answer in pieces of 64 KiB from `at` on; when it is over."""
    now = at + waited
    pace.begin(waited, now)
    for _ in range(size // 65536):
        now += 65536 / rate
        pace.received(65536, now)
    pace.end(size, now - at, now)
    return now


def test_nothing_is_known_before_the_first_answer_and_then_a_rate_is_assumed() -> None:
    pace = Pace()
    assert (pace.rtt, pace.rate, pace.round_trip) == (None, None, None)
    answer(pace, 0.0, waited=0.08, size=65536, rate=1e9)
    assert pace.rtt == 0.08
    assert pace.rate is None
    assert pace.round_trip == int(0.08 * ASSUMED_RATE)


def test_the_round_trip_is_the_least_wait_and_is_not_kept_for_ever() -> None:
    pace, now = Pace(), 0.0
    for waited in (0.16, 0.08, 0.3, 0.09):
        now = answer(pace, now, waited=waited, size=65536, rate=1e9)
    assert pace.rtt == 0.08
    for _ in range(1000):  # another way, or another server
        now = answer(pace, now, waited=0.2, size=65536, rate=1e9)
    assert pace.rtt == 0.2


def test_the_rate_is_that_of_all_answers_together() -> None:
    pace = Pace()
    for _ in range(4):
        pace.begin(0.02, 0.0)
    now = 0.0
    for _ in range(400):  # 25 MB/s, in four answers that take turns
        now += 65536 / (25 * MB)
        pace.received(65536, now)
    for _ in range(4):
        pace.end(100 * 65536, now, now)
    assert pace.rate is not None
    assert abs(pace.rate / (25 * MB) - 1) < 0.01


def test_the_first_rate_is_known_before_the_answer_is_over() -> None:
    pace, now = Pace(), 0.08
    pace.begin(0.08, now)
    while pace.rate is None and now < 0.2:
        now += 65536 / (125 * MB)
        pace.received(65536, now)
    assert now - 0.08 < 0.011
    assert pace.rate is not None
    assert abs(pace.rate / (125 * MB) - 1) < 0.01


def test_a_burst_out_of_a_buffer_is_no_rate() -> None:
    pace, now = Pace(), 0.0
    for _ in range(4):
        now = answer(pace, now, waited=0.02, size=MB, rate=25 * MB)
    answer(pace, now, waited=0.02, size=8 * MB, rate=2000 * MB)
    assert pace.rate is not None
    assert pace.rate < 30 * MB


def test_answers_that_wait_behind_others_show_and_small_ones_say_nothing() -> None:
    pace, now = Pace(), 0.0
    now = answer(pace, now, waited=0.02, size=65536, rate=1e9)
    for _ in range(4):
        now = answer(pace, now, waited=0.05, size=131072, rate=25 * MB)
        now = answer(pace, now, waited=0.02, size=4096, rate=25 * MB)
    assert 0.03 < pace.queued(4) < 0.04
    assert pace.answers == 5


def test_who_names_the_same_server_gets_the_same_pace() -> None:
    assert pace_of("http://a.example:1") is pace_of("http://a.example:1")
    assert pace_of("http://a.example:1") is not pace_of("http://b.example:1")
    assert pace_of("") is not pace_of("")
