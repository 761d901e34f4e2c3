"""`pagein::` before other URLs of fsspec."""

import errno
import io
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.chained.counting import CountingFileSystem

from pagein.fsspec import PageinFileSystem
from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(1).randbytes((3 << 20) + 1234)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT, "/empty": b""})) as server:
        yield server


@pytest.fixture
def counting() -> Iterator[CountingFileSystem]:
    """With the file /blob."""
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    fs = CountingFileSystem(skip_instance_cache=True)
    fs.pipe_file("/blob", CONTENT)
    CountingFileSystem.asked.clear()
    yield fs
    CountingFileSystem.lie = ""
    fs.store.clear()


@pytest.fixture
def fs(tmp_path: Path, counting: CountingFileSystem) -> PageinFileSystem:
    """Over `counting`."""
    return PageinFileSystem(fs=counting, cache=str(tmp_path / "cache"), timeout=30.0)


def fetched(web: WebServer) -> list[tuple[int, int]]:
    """Ranges asked for, but for the first byte, which tells the size."""
    return sorted((start, end) for _, start, end in web.requests if (start, end) != (0, 1))


def test_fsspec_knows_the_protocol() -> None:
    assert fsspec.get_filesystem_class("pagein") is PageinFileSystem


def test_a_url_with_options(web: WebServer, tmp_path: Path) -> None:
    url, options = f"pagein::{web.url('/blob')}", {"cache": str(tmp_path / "cache")}
    with fsspec.open(url, pagein=options) as file:
        assert (file.size, file.read(10)) == (len(CONTENT), CONTENT[:10])
    found, path = fsspec.url_to_fs(url, **options)
    assert (path, found.cache) == (web.url("/blob"), str(tmp_path / "cache"))
    assert found.cat(path) == CONTENT
    assert (tmp_path / "cache").is_dir()


def test_every_other_protocol(counting: CountingFileSystem, tmp_path: Path) -> None:
    options = {"cache": str(tmp_path / "cache")}
    for _ in range(2):
        with fsspec.open("pagein::counting://blob", pagein=options) as file:
            assert file.read() == CONTENT
    assert sorted(counting.asked) == [(0, 2 << 20), (2 << 20, len(CONTENT))]


def test_what_is_fetched_is_what_is_wanted(web: WebServer, tmp_path: Path) -> None:
    """A large read asks for its own pages, in one request; the second time for nothing."""
    url = f"pagein::{web.url('/blob')}"
    for _ in range(2):
        with fsspec.open(url, pagein={"cache": str(tmp_path / "cache")}) as file:
            file.seek(1_000_000)
            assert file.read(2_000_000) == CONTENT[1_000_000:3_000_000]
    assert fetched(web) == [(1_000_000 // 4096 * 4096, -(-3_000_000 // 4096) * 4096)]


@pytest.mark.parametrize("start", [None, 0, 5, 4096, -7, len(CONTENT) + 1])
@pytest.mark.parametrize("end", [None, 0, 9, 100_000, -5, len(CONTENT) + 9])
def test_parts_of_a_file(fs: PageinFileSystem, start: int | None, end: int | None) -> None:
    assert fs.cat_file("/blob", start, end) == CONTENT[start:end]


def test_several_ranges(fs: PageinFileSystem) -> None:
    assert fs.cat_ranges(["/blob"] * 2, [0, 10_000], [5, 200_000]) == [
        CONTENT[:5],
        CONTENT[10_000:200_000],
    ]


def test_an_open_file(fs: PageinFileSystem) -> None:
    with fs.open("/blob") as file:
        assert isinstance(file, io.BufferedIOBase)
        assert file.read(3) == CONTENT[:3]
        assert file.read(300_000) == CONTENT[3:300_003]
        assert file.tell() == 300_003
        line = file.readline()
        assert CONTENT[300_003:].startswith(line)
        assert line.endswith(b"\n")
        assert file.seek(-10, os.SEEK_END) == len(CONTENT) - 10
        assert file.read() == CONTENT[-10:]
        assert file.read(70_000) == b""
    assert file.closed


def test_text(counting: CountingFileSystem, fs: PageinFileSystem) -> None:
    counting.pipe_file("/text", b"one\ntwo\n")
    with fs.open("/text", "r") as file:
        assert list(file) == ["one\n", "two\n"]


def test_other_content_is_another_file(counting: CountingFileSystem, fs: PageinFileSystem) -> None:
    assert fs.cat("/blob") == CONTENT
    counting.pipe_file("/blob", CONTENT[::-1])
    assert fs.cat("/blob") == CONTENT[::-1]


def test_names_are_those_underneath(counting: CountingFileSystem, fs: PageinFileSystem) -> None:
    counting.pipe_file("/dir/a", b"a")
    assert fs.ls("/dir", detail=False) == ["/dir/a"]
    assert fs.find("/") == ["/blob", "/dir/a"]
    assert fs.glob("/d*/*") == ["/dir/a"]
    assert (fs.exists("/dir/a"), fs.exists("/dir/b"), fs.isdir("/dir")) == (True, False, True)
    assert fs.info("/blob")["size"] == len(CONTENT)
    assert fs.unstrip_protocol("/blob") == "counting:///blob"


def test_a_file_and_its_file_system_are_pickled(fs: PageinFileSystem) -> None:
    assert pickle.loads(pickle.dumps(fs)).cat_file("/blob", 0, 9) == CONTENT[:9]
    with fs.open("/blob") as file:
        file.seek(1_000_000)
        with pickle.loads(pickle.dumps(file)) as copy:
            assert copy.tell() == 1_000_000
            assert copy.read(5) == CONTENT[1_000_000:1_000_005]


def test_an_empty_file(counting: CountingFileSystem, fs: PageinFileSystem) -> None:
    counting.pipe_file("/empty", b"")
    assert fs.cat("/empty") == b""


@pytest.mark.parametrize("protocol", ["counting://", "http"])
def test_a_missing_file(
    web: WebServer, fs: PageinFileSystem, tmp_path: Path, protocol: str
) -> None:
    url = web.url("/none") if protocol == "http" else "counting://none"
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"pagein::{url}", pagein={"cache": str(tmp_path / "cache")}).open()


def test_it_is_read_only(fs: PageinFileSystem) -> None:
    with pytest.raises(OSError, match="read-only") as caught:
        fs.open("/blob", "wb")
    assert caught.value.errno == errno.EROFS


def test_a_directory_is_no_file(counting: CountingFileSystem, fs: PageinFileSystem) -> None:
    counting.mkdir("/dir")
    with pytest.raises(IsADirectoryError):
        fs.open("/dir")


def test_it_needs_another_protocol() -> None:
    with pytest.raises(ValueError, match="pagein::https://"):
        fsspec.filesystem("pagein")


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ("short", "bytes came where"),
        ("broken", "the bucket has a hole"),
        ("slow", "no data for 1.5 s"),
    ],
)
def test_what_cannot_be_had_is_an_error(
    counting: CountingFileSystem, tmp_path: Path, lie: str, says: str, caplog: Any
) -> None:
    timeout = 30.0 if lie == "short" else 3.0
    fs = PageinFileSystem(fs=counting, cache=str(tmp_path / "cache"), timeout=timeout)
    CountingFileSystem.lie = lie
    with pytest.raises(OSError), fs.open("/blob") as file:
        file.read(200_000)
    assert says in caplog.text
    CountingFileSystem.lie = ""
    other = PageinFileSystem(fs=counting, cache=str(tmp_path / "cache"), timeout=60.0)
    assert other.cat("/blob") == CONTENT
