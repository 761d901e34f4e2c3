"""Pauses between tries."""

import pytest

from pagein.origins.retry import FIRST, MOST, Backoff


@pytest.mark.parametrize("drawn", [0.0, 0.5, 0.999])
def test_a_pause_is_any_part_of_a_bound_that_doubles(drawn: float) -> None:
    """Full jitter."""
    backoff, bound = Backoff(draw=lambda: drawn), FIRST
    for _ in range(20):
        assert backoff.pause() == drawn * bound
        bound = min(2 * bound, MOST)
    assert bound == MOST


def test_what_a_server_asks_for_comes_first() -> None:
    backoff = Backoff(draw=lambda: 0.5)
    assert backoff.pause(7.0) == 7.0 + FIRST / 2
    assert backoff.pause() == FIRST
