"""Both halves against a server that lies at random: right bytes or an error, and a right cache."""

import contextlib
import os
import random
import tempfile
from pathlib import Path
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

import pagein
from pagein.cachefiles.presence import PAGE_SIZE, data_ranges
from pagein.testing.answers import Fault, FaultKind
from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(4).randbytes((1 << 20) + 777)

KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

faults_drawn = st.lists(
    st.none()
    | st.builds(
        Fault,
        kind=st.sampled_from(KINDS),
        code=st.sampled_from([403, 404, 429, 500, 503]),
        after=st.none() | st.integers(1, 70_000),
    ),
    max_size=12,
)
reads_drawn = st.lists(
    st.tuples(st.integers(0, len(CONTENT)), st.integers(1, 300_000)), min_size=1, max_size=6
)


def wrong_in(cache: Path) -> list[int]:
    """Offsets of pages that the cache shows as data and that are not the content's."""
    wrong = []
    for path in (cache / "cache").glob("I*/@*/D*"):
        with path.open("rb") as file:
            for start, end in data_ranges(file.fileno(), 0, path.stat().st_size):
                for at in range(start, end, PAGE_SIZE):
                    page = os.pread(file.fileno(), PAGE_SIZE, at)
                    if page != CONTENT[at : at + PAGE_SIZE].ljust(PAGE_SIZE, b"\0"):
                        wrong.append(at)
    return wrong


@settings(max_examples=25)
@given(faults=faults_drawn, reads=reads_drawn)
def test_right_bytes_or_an_error(faults: list[Fault | None], reads: list[tuple[int, int]]) -> None:
    lying = iter(faults)

    def fault(number: int, path: str, start: int, end: int) -> Fault | None:
        return None if (start, end) == (0, 1) else next(lying, None)

    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "cache"
        with (
            serve_in_thread(WebServer({"/blob": CONTENT}, faults=fault)) as web,
            contextlib.suppress(OSError),  # of the open, whose 0.5 s a busy machine may take
            pagein.open(web.url("/blob"), cache=str(cache), timeout=0.5) as file,
        ):
            for offset, length in reads:
                try:
                    assert file.pread(length, offset) == CONTENT[offset : offset + length]
                except OSError:
                    continue
        assert not wrong_in(cache)
