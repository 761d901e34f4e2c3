"""The TOC as JSON: times of all forms, and how much of it is read."""

import pytest

from pagein.images.layers.errors import LayerError
from pagein.images.toc.document import MAX_OBJECTS, MAX_TOC, nanoseconds, parse_toc


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", 0),
        ("0001-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("2020-09-13T12:26:40.123456789Z", 1_600_000_000_123_456_789),
        ("2020-09-13t12:26:40-00:30", 1_600_001_800_000_000_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000_000_000),
    ],
)
def test_times(text: str, wanted: int) -> None:
    assert nanoseconds(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("x", "2020-09-13", "2020-09-13T12:26:40", "2020-13-13T12:26:40Z", "2020-09-13T24:26:40Z"),
        *("2020-09-13T12:26:60Z", "2020-09-13T12:26:40.Z", "\u0662020-09-13T12:26:40Z"),
        "2020-09-13T12:26:40.1234567890Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(LayerError, match="not a time"):
        nanoseconds(text)


def test_no_more_is_read_than_we_can_hold() -> None:
    """Before anything is made of it."""
    with pytest.raises(LayerError, match=f"more than {MAX_TOC} bytes"):
        parse_toc(bytes(MAX_TOC + 1))
    with pytest.raises(LayerError, match=f"more than {MAX_OBJECTS} entries"):
        parse_toc(b"{" * (MAX_OBJECTS + 1))
    with pytest.raises(LayerError, match="not a valid TOC"):
        parse_toc(b'{"version":' + b"[" * 100_000)


def test_no_entries() -> None:
    assert parse_toc(b'{"version": 1, "entries": null, "more": [1]}').entries is None
