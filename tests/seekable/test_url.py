"""Of a URL only the spans that are needed are fetched; what is counted here is all there is."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.seekable.files import CONTENT, KINDS, SIZE, text

from pagein import OriginError, seekable
from pagein.seekable.index import CHUNK
from pagein.testing.answers import Fault
from pagein.testing.webserver import WebServer, serve_in_thread

PACKED = KINDS["gzip"](CONTENT)
MEMBERS = KINDS["members"](CONTENT)
FRAMES = KINDS["frames"](CONTENT)
HEADER = 10
"""Bytes before the first deflate block, which nothing has to be read of once there is an index."""

WHOLE = ("/file.gz", 0, len(PACKED))
FIRST = ("/file.gz", 0, 1)
"""Which tells the size."""


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def files() -> dict[str, bytes | Path]:
    return {"/members.gz": MEMBERS, "/file.gz": PACKED, "/file.zst": FRAMES}


@pytest.fixture
def web(files: dict[str, bytes | Path]) -> Iterator[WebServer]:
    with serve_in_thread(WebServer(files)) as server:
        yield server


def span(file: seekable.SeekableFile, first: int, last: int) -> tuple[str, int, int]:
    """The request for all that has two chunks, and what lies between."""
    index = file.index
    start = index.place(index.span_of(first * CHUNK)).start
    return "/file.gz", start, index.place(index.span_of(min((last + 1) * CHUNK, SIZE) - 1)).end


def test_the_index_is_built_in_one_request_and_kept(web: WebServer, cache: Path) -> None:
    with seekable.open(web.url("/file.gz")) as file:
        assert file.size == SIZE
        assert web.requests == [FIRST, WHOLE]
        assert [str(each) for each in cache.iterdir()] == [file.index.path]
    web.requests.clear()
    with seekable.open(web.url("/file.gz"), may_build=False) as file:
        assert web.requests == [FIRST]


@pytest.mark.parametrize("length", [1, 1000, CHUNK, 5 * CHUNK])
def test_a_read_is_one_request_for_the_spans_that_it_needs(web: WebServer, length: int) -> None:
    seekable.open(web.url("/file.gz"), interval=1 << 18).close()
    for at in range(0, SIZE - length, 500_000):
        with seekable.open(web.url("/file.gz")) as file:
            web.requests.clear()
            assert file.pread(length, at) == CONTENT[at : at + length]
            assert web.requests == [span(file, at // CHUNK, (at + length - 1) // CHUNK)]
            # What is in the same chunks costs nothing more.
            assert file.pread(length, at) == CONTENT[at : at + length]
            assert len(web.requests) == 1


def test_what_was_fetched_is_not_fetched_again_by_who_reads_on(web: WebServer) -> None:
    with seekable.open(web.url("/file.gz"), interval=1 << 18) as file:
        web.requests.clear()
        assert file.read() == CONTENT
        assert web.requests == [("/file.gz", HEADER, len(PACKED))]
    with seekable.open(web.url("/file.gz")) as file:
        web.requests.clear()
        for at in range(0, SIZE, 100_000):
            assert file.read(100_000) == CONTENT[at : at + 100_000]
        asked = [request[1:] for request in web.requests]
        assert [start for start, _ in asked] == [HEADER, *(end for _, end in asked[:-1])]
        assert asked[-1][1] == len(PACKED)
        assert len(asked) <= 4


def test_all_that_was_fetched_is_kept(web: WebServer) -> None:
    seekable.open(web.url("/members.gz"), interval=300_000).close()
    with seekable.open(web.url("/members.gz")) as file:
        begins = [file.index.begin_of(number) for number in range(file.index.points)]
        assert len(begins) > 8
        web.requests.clear()
        for at in begins:
            assert file.pread(10, at + CHUNK) == CONTENT[at + CHUNK : at + CHUNK + 10]
        asked = len(web.requests)
        assert asked == len(begins)
        for at in begins[:-1]:
            assert file.pread(10, at + 2 * CHUNK) == CONTENT[at + 2 * CHUNK :][:10]
        assert len(web.requests) == asked


def test_the_next_request_is_under_way_before_who_reads_on_needs_it(web: WebServer) -> None:
    seekable.open(web.url("/file.gz"), interval=1 << 18).close()
    with seekable.open(web.url("/file.gz")) as file:
        web.requests.clear()
        first, second = (file.index.place(number) for number in (0, 1))
        asked = [("/file.gz", first.start, first.end)]
        assert file.read(1000) == CONTENT[:1000]
        assert web.requests == asked
        at = second.out + 2 * CHUNK
        assert file.read(at) == CONTENT[1000 : 1000 + at]
        asked.append(("/file.gz", first.end, second.end))
        asked.append(("/file.gz", second.end, len(PACKED)))
        wait_until(lambda: len(web.requests) == 3)
        assert file.read() == CONTENT[1000 + at :]
        assert web.requests == asked


def test_threads_that_want_the_same_ask_once(web: WebServer) -> None:
    with seekable.open(web.url("/file.gz")) as file:
        web.requests.clear()
        web.latency = 0.2
        wanted = CONTENT[1_500_000:1_501_000]
        got: list[bytes] = []

        def read() -> None:
            got.append(file.pread(1000, 1_500_000))

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [wanted] * 8
        assert len(web.requests) == 1


def test_zstd(web: WebServer) -> None:
    with seekable.open(web.url("/file.zst")) as file:
        draw = random.Random(1)
        web.requests.clear()
        for at in draw.sample(range(0, SIZE, 100_000), 10):
            assert file.pread(2000, at) == CONTENT[at : at + 2000]
        assert len(web.requests) <= file.index.points
        assert sum(end - start for _, start, end in web.requests) < len(FRAMES) * 3 // 2


# ---- indexes on the web --------------------------------------------------------------------------


def test_an_index_beside_the_url_saves_the_first_pass(
    web: WebServer, files: dict[str, bytes | Path], tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(PACKED)
    made = files["/file.gz.pgx"] = Path(seekable.build(path)).read_bytes()
    edges = [("/file.gz", 0, 4096), ("/file.gz", len(PACKED) - 4096, len(PACKED))]
    with seekable.open(web.url("/file.gz")) as file:
        index = [("/file.gz.pgx", 0, 1), ("/file.gz.pgx", 0, len(made))]
        assert web.requests == [FIRST, *index, *edges]
        assert file.pread(10, 1_000_000) == CONTENT[1_000_000:1_000_010]
    web.requests.clear()
    with seekable.open(web.url("/file.gz")) as file:
        assert web.requests == [FIRST]
    assert len(list(cache.iterdir())) == 1


def test_an_index_at_another_url(
    web: WebServer, files: dict[str, bytes | Path], tmp_path: Path
) -> None:
    with seekable.open(web.url("/file.gz")) as file:
        files["/index"] = Path(file.index.path).read_bytes()
    with seekable.open(
        web.url("/file.gz"), cache=tmp_path / "other", index=web.url("/index")
    ) as file:
        assert file.pread(10, 1_000_000) == CONTENT[1_000_000:1_000_010]
    with pytest.raises(OriginError, match="/nothing: 404"):
        seekable.open(web.url("/file.gz"), cache=tmp_path / "3", index=web.url("/nothing"))


def test_an_index_beside_the_url_that_is_not_its_own(
    web: WebServer, files: dict[str, bytes | Path], cache: Path
) -> None:
    with seekable.open(web.url("/file.gz")) as file:
        old = Path(file.index.path)
        files["/file.gz.pgx"] = old.read_bytes()
    old.unlink()
    files["/file.gz"] = changed = KINDS["gzip"](text(seed=2))
    with pytest.raises(seekable.BadIndex, match=rf"{web.url('/file.gz.pgx')}: .*build it again"):
        seekable.open(web.url("/file.gz"))
    assert list(cache.iterdir()) == []
    with seekable.open(web.url("/file.gz"), rebuild=True) as file:
        assert file.index.packed_size == len(changed)


def test_a_signed_url_is_asked_as_it_is_and_nothing_else(web: WebServer) -> None:
    with seekable.open(web.url("/file.gz?sig=1")) as file:
        assert file.pread(10, 1_000_000) == CONTENT[1_000_000:1_000_010]


# ---- servers that fail ---------------------------------------------------------------------------


def test_a_transfer_that_breaks_off_goes_on(web: WebServer) -> None:
    seekable.open(web.url("/file.gz")).close()
    with seekable.open(web.url("/file.gz")) as file:
        web.requests.clear()
        web.faults = lambda number, path, start, end: (
            Fault("short_body", after=200_000) if end - start > 200_000 else None
        )
        assert file.read() == CONTENT
        asked = [start for _, start, _ in web.requests]
        assert asked == list(range(HEADER, len(PACKED), 200_000))


def test_a_build_goes_on_as_well(web: WebServer) -> None:
    web.faults = lambda number, path, start, end: (
        Fault("reset", after=300_000) if end - start > 300_000 else None
    )
    with seekable.open(web.url("/file.gz")) as file:
        web.faults = None
        assert file.read() == CONTENT


def test_a_file_that_changed_is_an_error(web: WebServer, files: dict[str, bytes | Path]) -> None:
    with seekable.open(web.url("/file.gz")) as file:
        files["/file.gz"] = KINDS["gzip"](text(seed=2))
        with pytest.raises(OriginError, match=r"/file\.gz: content changed"):
            file.pread(10, 1_000_000)


def test_wrong_bytes_under_right_headers_are_never_given_out(
    web: WebServer, files: dict[str, bytes | Path]
) -> None:
    web.validators = ()
    with seekable.open(web.url("/file.gz")) as file:
        wrong = bytearray(PACKED)
        for at in range(100_000, len(wrong), 100_000):
            wrong[at] ^= 1
        files["/file.gz"] = bytes(wrong)
        with pytest.raises(seekable.SeekableError, match=r"/file\.gz: "):
            file.pread(10, 1_000_000)
        files["/file.gz"] = PACKED
        assert file.pread(10, 1_000_000) == CONTENT[1_000_000:1_000_010]


def test_bytes_that_were_wrong_once_are_asked_for_again(web: WebServer) -> None:
    web.validators = ()
    with seekable.open(web.url("/file.gz")) as file:
        web.requests.clear()
        files = dict(web.files)  # type: ignore[arg-type]
        spoiled = bytearray(PACKED)
        spoiled[len(spoiled) // 2] ^= 1

        def swap(number: int, path: str, start: int, end: int) -> None:
            web.files = {**files, "/file.gz": PACKED}

        web.files = {**files, "/file.gz": bytes(spoiled)}
        web.faults = swap
        assert file.read() == CONTENT
        assert len(web.requests) == 2


def test_a_server_without_ranges(web: WebServer) -> None:
    web.faults = lambda *_: Fault("ignore_range")
    with pytest.raises(OriginError, match=r"/file\.gz: does not answer ranged requests"):
        seekable.open(web.url("/file.gz"))


def test_a_server_that_is_gone(web: WebServer) -> None:
    with pytest.raises(OriginError, match="404 not found"):
        seekable.open(web.url("/none.gz"))
    with pytest.raises(OriginError, match="only http:// and https://"):
        seekable.open("ftp://host/file.gz")


def test_it_survives_a_fork_and_nothing_stays(web: WebServer) -> None:
    with seekable.open(web.url("/file.gz")) as file:
        child = os.fork()
        if not child:
            try:
                os._exit(0 if file.pread(100, 2_000_000) == CONTENT[2_000_000:2_000_100] else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert file.pread(100, 2_000_000) == CONTENT[2_000_000:2_000_100]
    assert not [each for each in threading.enumerate() if each.name.startswith("pagein seekable")]
