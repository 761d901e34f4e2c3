"""A cache that processes share, and files that go to other processes."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(2).randbytes(5 << 20)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT})) as server:
        yield server


def test_each_range_is_fetched_once(web: WebServer, tmp_path: Path) -> None:
    program = Path(__file__).with_name("reader.py")
    words: list[str | Path] = [
        f"pagein::{web.url('/blob')}",
        tmp_path / "cache",
        "2000000",
        "1000000",
    ]
    argv = [sys.executable, program, *words]
    readers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {reader.communicate(timeout=200)[0].strip() for reader in readers}
    assert found == {hashlib.sha256(CONTENT[2_000_000:3_000_000]).hexdigest()}
    content = [(start, end) for _, start, end in web.requests if end - start > 1]
    assert content == [(2_000_000 // 4096 * 4096, -(-3_000_000 // 4096) * 4096)]


@pytest.mark.parametrize("headers", [{}, {"X-Token": "abc"}], ids=["native", "of fsspec"])
def test_an_open_file_survives_a_fork(
    web: WebServer, tmp_path: Path, headers: dict[str, str]
) -> None:
    """With headers it is fsspec's own http that fetches, whose loop stays with the parent."""
    options = {"pagein": {"cache": str(tmp_path / "cache")}}
    if headers:
        options["http"] = {"headers": headers}  # type: ignore[dict-item]
    with fsspec.open(f"pagein::{web.url('/blob')}", **options) as file:
        assert file.read(10) == CONTENT[:10]
        pid = os.fork()
        if not pid:
            ok = False
            try:
                file.seek(3_000_000)
                ok = file.read(500_000) == CONTENT[3_000_000:3_500_000]
            finally:
                os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        file.seek(3_000_000)
        assert file.read(500_000) == CONTENT[3_000_000:3_500_000]
