"""A server's health: when it counts as dead, who is let through, who stands aside."""

from hypothesis import given
from hypothesis import strategies as st

from pagein.origins.health import (
    ASIDE_MOST,
    BUSY_MOST,
    LIED,
    PROBE_FIRST,
    PROBE_MOST,
    Attempt,
    Health,
    Refusal,
)

DEAD = 10.0  # seconds of failures after which it is dead


def most() -> float:
    return 1.0  # the upper end of every random part


def health() -> Health:
    return Health(DEAD, most)


def let_through(it: Health, now: float) -> Attempt:
    found = it.begin(now)
    assert isinstance(found, Attempt), found
    return found


def refused(it: Health, now: float) -> Refusal:
    found = it.begin(now)
    assert isinstance(found, Refusal), found
    return found


def fail(it: Health, now: float, *, took: float = 0.0) -> bool:
    return it.bad(let_through(it, now - took), now, "no")


def dead(it: Health) -> float:
    """Fail until it is dead; when that was."""
    assert not fail(it, 0.0)
    assert not fail(it, DEAD - 0.1)
    assert fail(it, DEAD)
    return DEAD


# ---- the breaker --------------------------------------------------------------------------------


def test_nothing_but_failures_for_so_long_opens_it() -> None:
    it = health()
    now = dead(it)
    assert it.state(now) == "open"
    why = refused(it, now)
    assert why.down
    assert why.cause == "has not answered for 10 s"
    assert 0 < why.seconds <= PROBE_FIRST


def test_an_answer_now_and_then_keeps_it_closed() -> None:
    it = health()
    for now in range(100):
        assert not fail(it, float(now))
        if now % 5 == 0:
            it.good(let_through(it, now), now)
    assert it.state(100.0) == "closed"


def test_one_long_silence_is_enough() -> None:
    """What counts is since when there was no answer, not how often there was none."""
    it = health()
    assert fail(it, DEAD, took=DEAD)


def test_failures_far_apart_prove_nothing() -> None:
    """Nobody asked in between."""
    it = health()
    assert not fail(it, 0.0)
    assert not fail(it, 1000.0)
    assert it.state(1000.0) == "closed"


def test_who_pauses_between_tries_for_longer_than_that_proves_it_all_the_same() -> None:
    it = Health(0.5, most)
    assert not fail(it, 0.0)
    assert fail(it, 2.0)


def test_one_probe_is_let_through_and_its_answer_closes_it() -> None:
    it = health()
    now = dead(it) + PROBE_FIRST
    assert it.state(now) == "half-open"
    probe = let_through(it, now)
    assert refused(it, now).down  # one at a time
    assert it.rank(now)[0] == 3
    assert it.good(probe, now)
    assert it.state(now) == "closed"
    let_through(it, now)


def test_probes_that_fail_come_more_and_more_seldom() -> None:
    it = health()
    now, pauses = dead(it), []
    for _ in range(10):
        pause = refused(it, now).seconds
        pauses.append(pause)
        now += pause
        it.bad(let_through(it, now), now, "no")
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == PROBE_MOST


def test_a_probe_that_was_given_up_makes_room_for_the_next() -> None:
    it = health()
    now = dead(it) + PROBE_FIRST
    it.dropped(let_through(it, now), now)
    let_through(it, now)


def test_a_probe_that_nobody_ended_is_not_waited_for_for_ever() -> None:
    it = health()
    now = dead(it) + PROBE_FIRST
    let_through(it, now)
    refused(it, now + PROBE_MOST)
    let_through(it, now + PROBE_MOST + 1)


def test_an_answer_to_who_asked_before_closes_it() -> None:
    it = health()
    early = let_through(it, 0.0)
    now = dead(it)
    assert it.good(early, now)
    let_through(it, now)


def test_who_gives_up_quickly_says_nothing_of_the_server() -> None:
    it = health()
    for now in range(100):
        assert not it.dropped(let_through(it, now), now + 0.1)
    assert it.rank(100.0)[0] == 0
    # Who waited in vain for long does.
    assert not it.dropped(let_through(it, 100.0), 105.0)
    assert it.dropped(let_through(it, 105.0), 110.0)
    assert it.state(110.0) == "open"


def test_a_long_answer_that_breaks_off_or_is_given_up_is_no_dead_server() -> None:
    it = health()
    stream = let_through(it, 0.0)
    for now in range(5 * int(DEAD)):
        assert not it.alive(float(now))
    assert not it.bad(stream, now + 1.0, "broke off")
    given_up = let_through(it, now + 1.0)
    assert not it.dropped(given_up, now + 5 * DEAD, answering=True)
    assert it.state(now + 5 * DEAD) == "closed"


def test_the_first_bytes_of_a_probe_close_it() -> None:
    it = health()
    now = dead(it) + PROBE_FIRST
    let_through(it, now)
    assert it.alive(now)
    let_through(it, now)


# ---- pauses -------------------------------------------------------------------------------------


def test_a_pause_that_was_asked_for_is_kept_by_all_and_ends() -> None:
    it = health()
    it.busy(let_through(it, 0.0), 0.0, 7.0)
    assert refused(it, 2.0) == Refusal(5.0, "asked not to be asked for another 5.0 s", False)
    assert it.rank(2.0)[0] == 2
    let_through(it, 7.0)
    assert it.state(7.0) == "closed"


def test_nobody_may_ask_for_a_day() -> None:
    it = health()
    it.busy(let_through(it, 0.0), 0.0, 86400.0)
    let_through(it, BUSY_MOST)


# ---- mirrors ------------------------------------------------------------------------------------


def test_who_failed_stands_aside_for_longer_each_time() -> None:
    it = Health(1e9, most)
    now, pauses = 0.0, []
    for _ in range(10):
        fail(it, now)
        assert it.rank(now)[0] == 1
        pauses.append(it.status(now)["aside_for"])
        now += pauses[-1]
        assert it.rank(now)[0] == 0
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == ASIDE_MOST
    it.good(let_through(it, now), now)
    fail(it, now)
    assert it.status(now)["aside_for"] == 1.0


def test_who_lied_stands_aside_also_when_it_answers() -> None:
    it = health()
    it.lied(0.0, "wrong bytes")
    it.good(let_through(it, 1.0), 1.0)
    assert it.rank(LIED - 1)[0] == 1
    assert it.rank(LIED)[0] == 0
    assert it.error == "wrong bytes"


@given(st.lists(st.tuples(st.sampled_from("gbdu"), st.floats(0, 20)), max_size=60))
def test_whatever_happens_it_can_be_asked_again_before_long(steps: list[tuple[str, float]]) -> None:
    it, now = Health(DEAD), 0.0
    for what, seconds in steps:
        begun = it.begin(now)
        now += seconds
        if isinstance(begun, Refusal):
            assert 0 <= begun.seconds <= BUSY_MOST
            continue
        match what:
            case "g":
                it.good(begun, now)
            case "b":
                it.bad(begun, now, "no")
            case "d":
                it.dropped(begun, now)
            case "u":
                it.busy(begun, now, seconds)
    later = now + BUSY_MOST
    it.good(let_through(it, later), later)
    assert it.state(later) == "closed"
