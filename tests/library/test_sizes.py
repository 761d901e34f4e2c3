"""Files of odd sizes, large files, reads that last."""

import os
import random
from pathlib import Path

import pytest

import pagein
from pagein.testing.webserver import WebServer, serve_in_thread


@pytest.mark.parametrize("size", [1, 511, 512, 4095, 4096, 4097, (64 << 10) + 1, (1 << 20) - 1])
def test_odd_sizes(size: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    with (
        serve_in_thread(WebServer({"/blob": content})) as web,
        pagein.open(web.url("/blob"), cache=str(tmp_path / "cache")) as file,
    ):
        assert file.pread(10, size - 1) == content[-1:]
        assert file.pread(10, size) == b""
        assert file.readall() == content
        assert file.read(1) == b""


def test_beyond_4_gib(tmp_path: Path) -> None:
    path, far = tmp_path / "blob", (5 << 30) + 12345
    with path.open("wb") as sparse:
        for at in (0, (4 << 30) - 2, far):
            sparse.seek(at)
            sparse.write(b"here")
    with pagein.open(str(path), cache=str(tmp_path / "cache")) as file:
        assert file.size == far + 4
        for at in (far, (4 << 30) - 2, 0):
            assert file.pread(4, at) == b"here"
            assert file.pread(4, at + (1 << 20)) in (bytes(4), b"")
        file.seek(-6, os.SEEK_END)
        assert file.read() == b"\0\0here"
    (kept,) = (tmp_path / "cache" / "cache").glob("I*/@*/D*")
    assert kept.stat().st_blocks * 512 < 2 << 20


def test_a_read_of_much_has_the_deadline_of_its_parts(tmp_path: Path) -> None:
    """It may last longer than the deadline as long as bytes come."""
    content = random.Random(6).randbytes(8 << 20)
    with (
        serve_in_thread(WebServer({"/blob": content}, rate=2_000_000)) as web,
        pagein.open(web.url("/blob"), cache=str(tmp_path / "cache"), timeout=3) as file,
    ):
        assert file.readall() == content
