"""What was brought and is not read: exact, whatever is read and written."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pagein.kernelhalf.readership import Readership
from pagein.protocol.numbers import Number, Numbers

SPAN = 64
Step = tuple[str, int, int]
steps = st.lists(st.tuples(st.sampled_from(["wrote", "read"]), *[st.integers(0, SPAN)] * 2))


@dataclass(eq=False)
class Blob:
    """As much of a cookie as is looked at."""

    object: object = field(default_factory=object)


def blob() -> tuple[Any, Any]:
    """A cookie and its object."""
    cookie = Blob()
    return cookie, cookie.object


@given(steps)
def test_each_byte_is_unread_until_it_is_read(steps: list[Step]) -> None:
    numbers = Numbers()
    numbers[Number.UNREAD_BYTES] = 99  # of a predecessor
    readership = Readership(numbers)
    cookie, obj = blob()
    unread: set[int] = set()
    written = 0
    for what, offset, length in steps:
        if what == "wrote":
            readership.wrote(obj, offset, length)
            unread |= set(range(offset, offset + length))
            written += length
        else:
            readership.read(cookie, offset, length, bool(length % 2))
            unread -= set(range(offset, offset + length))
        assert numbers[Number.UNREAD_BYTES] == len(unread)
    assert numbers[Number.WRITTEN_BYTES] == written
    reads = [length for what, _, length in steps if what == "read"]
    assert numbers[Number.READS] == len(reads)
    assert numbers[Number.MISSES] == sum(length % 2 for length in reads)
    assert numbers[Number.READ_BYTES] == sum(reads)
    readership.withdrawn(cookie)
    readership.withdrawn(cookie)
    assert numbers[Number.UNREAD_BYTES] == 0
    assert numbers[Number.WASTED_BYTES] == len(unread)


def test_blobs_are_told_apart() -> None:
    readership = Readership(Numbers())
    (one, first), (other, _) = blob(), blob()
    readership.wrote(first, 0, 10)
    readership.read(other, 0, 10, False)
    assert readership.numbers[Number.UNREAD_BYTES] == 10
    readership.withdrawn(other)
    assert readership.numbers[Number.WASTED_BYTES] == 0
    readership.read(one, 0, 4, False)
    assert readership.numbers[Number.UNREAD_BYTES] == 6
