"""The cache directory: where it is, who may read it, and what happens when it goes away."""

import os
import pwd
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cachefiles.files import PATH  # noqa: F401

import pagein
from pagein.library import files
from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(8).randbytes(2 << 20)


@pytest.fixture
def web() -> Iterator[WebServer]:
    blobs = {f"/{n}": CONTENT[n:] for n in range(300)}
    with serve_in_thread(WebServer({"/blob": CONTENT, **blobs})) as server:
        yield server


def test_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert files.default_cache() == "/caches/pagein"
    for nothing in ("", "relative"):  # which the XDG specification says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert files.default_cache() == "/home/me/.cache/pagein"


def test_without_a_home(web: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container with a user id of its own: no directory called "~" is made."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="HOME"):
        pagein.open(web.url("/blob"))
    assert not list(tmp_path.iterdir())


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    content = b"x" * 10_000
    with serve_in_thread(WebServer({"/blob": content})) as web:
        url = web.url("/blob").replace("://", "://me:secret@")
        with pagein.open(url, cache=str(tmp_path / "cache")) as file:
            assert file.readall() == content
            assert "secret" not in f"{file!r} {file.name}"
    cache = tmp_path / "cache"
    assert cache.stat().st_mode & 0o777 == 0o700
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in kept} == {"0o600"}
    assert any(b"secret" in path.read_bytes() for path in kept if path.parent.name == "origins")


def test_removed_while_files_are_open(web: WebServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pagein.open(web.url("/blob"), cache=str(cache)) as file:
        assert file.pread(10, 0) == CONTENT[:10]
        shutil.rmtree(cache)
        assert file.pread(10, 0) == CONTENT[:10]
        assert file.pread(10, 1 << 20) == CONTENT[1 << 20 : (1 << 20) + 10]
        with (
            pagein.open(web.url("/blob"), cache=str(cache)) as again,
            pagein.open(web.url("/1"), cache=str(cache)) as other,
        ):
            assert again.readall() == CONTENT
            assert other.pread(5, 5) == CONTENT[6:11]
            assert (cache / "pagein.inflight").exists()
        assert file.readall() == CONTENT


def test_replaced_while_files_are_open(web: WebServer, tmp_path: Path) -> None:
    """What is written must stand in the table that others of the new directory look at."""
    cache = tmp_path / "cache"
    with pagein.open(web.url("/blob"), cache=str(cache)) as file:
        shutil.rmtree(cache)
        program = "import pagein, sys; pagein.open(*sys.argv[1:2], cache=sys.argv[2]).pread(1, 0)"
        command = [sys.executable, "-c", program, web.url("/2"), str(cache)]
        subprocess.run(command, check=True, timeout=200)
        with pagein.open(web.url("/2"), cache=str(cache)) as other:
            use = other._blob.attach()
            table = use.cookie.file.cache.inflight
            assert os.fstat(table._fd).st_nlink == 1
            assert other.pread(5, 5) == CONTENT[7:12]
        assert file.pread(10, 0) == CONTENT[:10]


@pytest.mark.parametrize("name", ["cache", "cache/origins", "cache/cache", "cache/pagein.inflight"])
def test_what_is_in_the_way_is_named(web: WebServer, tmp_path: Path, name: str) -> None:
    cache = tmp_path / "cache"
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith("inflight"):
        path.mkdir()
    else:
        path.write_text("")
    with pytest.raises(OSError, match=path.name):
        pagein.open(web.url("/blob"), cache=str(cache), timeout=3)


UNPRIVILEGED = """
import os, sys, pagein
url, mine, *others = sys.argv[1:]
pagein.open(url, cache=mine).pread(1, 0)  # all is imported: the interpreter may be out of reach
os.setgid(65534); os.setuid(65534)
for other in others:
    try:
        pagein.open(url, cache=other, timeout=3)
    except OSError as problem:
        print(type(problem).__name__, problem.filename)
"""


@pytest.mark.root
def test_without_permission(web: WebServer, public_tmp: Path) -> None:
    mine, theirs, new = (str(public_tmp / name) for name in ("mine", "theirs", "new"))
    with pagein.open(web.url("/blob"), cache=theirs) as file:
        assert file.pread(10, 0) == CONTENT[:10]
        command = [sys.executable, "-c", UNPRIVILEGED, web.url("/blob"), mine, theirs, new]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        first, second = done.stdout.splitlines()
        assert first.startswith(f"PermissionError {theirs}")
        assert second == f"PermissionError {new}"


MANY = """
import errno, resource, sys, threading, time, pagein
base, cache, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
for _ in range(3):
    files = []
    try:
        for n in range(300):
            files.append(pagein.open(f"{base}/{n}", cache=cache, timeout=200))
        print("all", end=" ")
    except OSError as problem:
        print(errno.errorcode[problem.errno], end=" ")
    assert all(file.pread(3, 1000) for file in files[:20])
    assert threading.active_count() < 30, threading.enumerate()
    for file in files:
        file.close()
    give_up = time.monotonic() + 60
    while True:  # what was closed is given back in a moment
        try:
            file = pagein.open(f"{base}/299", cache=cache, timeout=200)
            assert len(file.pread(10, 0)) == 10
            file.close()
            break
        except OSError as problem:
            if problem.errno != errno.EMFILE or time.monotonic() > give_up:
                raise
"""


@pytest.mark.parametrize(("limit", "ends"), [(1000, "all all all"), (100, "EMFILE " * 3)])
def test_many_files(web: WebServer, tmp_path: Path, limit: int, ends: str) -> None:
    command = [sys.executable, "-W", "error", "-c", MANY, web.url(""), str(tmp_path / "cache")]
    done = subprocess.run([*command, str(limit)], capture_output=True, text=True, timeout=250)
    assert done.stdout.strip() == ends.strip(), done.stderr
