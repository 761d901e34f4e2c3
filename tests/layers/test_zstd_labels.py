"""The samples of labels: with numpy and without it they give the same runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagein.images.layers.zstd import labels


def sampled(places: list[int | None], planes: int) -> bytearray:
    """As windows of labels give them; None for a blank."""
    samples = bytearray(4 * len(places))
    for plane in range(planes):
        output = bytes(
            labels.BLANK if each is None else labels.DIGITS[each // labels.BASE**plane % 255]
            for each in places
        )
        labels.put(samples, plane, b"xx" + output, 2, 1)
    return samples


def found(
    monkeypatch: pytest.MonkeyPatch, numpy: object, places: list[int | None], planes: int
) -> list[tuple[int, int]]:
    """First and last places of the runs."""
    with monkeypatch.context() as patched:
        patched.setattr(labels, "numpy", lambda: numpy)
        samples = sampled(places, planes)
        firsts, lasts = labels.runs(samples, planes, 4096 * 255 if planes == 3 else 32 << 20, 6)
    return list(zip(firsts, lasts, strict=True))


near = st.one_of(st.none(), st.integers(0, 1000), st.integers(0, 4096 * 255 - 1))


@settings(max_examples=60, deadline=None)
@given(places=st.lists(near, max_size=200))
def test_with_numpy_and_without(places: list[int | None]) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.MonkeyPatch.context() as patch:
        plain = found(patch, None, places, 3)
        assert found(patch, numpy, places, 3) == plain
    for first, last in plain:
        assert first in places and last in places
    for place in places:
        assert place is None or sum(first <= place <= last for first, last in plain) == 1


@pytest.mark.parametrize("with_numpy", [False, True])
def test_four_planes_and_many_samples(monkeypatch: pytest.MonkeyPatch, with_numpy: bool) -> None:
    numpy = pytest.importorskip("numpy") if with_numpy else None
    start = 323 * 255**2
    places: list[int | None] = [*range(start, start + 60_000)] * 5 + [None, 5, 6, 40]
    assert found(monkeypatch, numpy, places, 4) == [
        (5, 6),
        (40, 40),
        (start, start + 59_999),
    ]
