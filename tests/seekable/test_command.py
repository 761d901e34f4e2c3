"""`pagein seekable`, as typed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.seekable.files import CONTENT, KINDS, SIZE

from pagein.cli.app import app_of
from pagein.testing.webserver import WebServer, serve_in_thread


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file.gz"
    made.write_bytes(KINDS["gzip"](CONTENT))
    return made


Command = Callable[..., bytes]


@pytest.fixture
def pagein(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """What the command prints; what on standard error, if it fails."""
    app = app_of(["seekable"])

    def run(*words: object, fails: int = 0) -> bytes:
        with pytest.raises(SystemExit) as ended:
            app(["seekable", *map(str, words)])
        out, error = capfdbinary.readouterr()
        assert (ended.value.code or 0) == fails, error
        assert bool(error) == bool(fails)
        return error if fails else out

    return run


def test_the_index_goes_beside_the_file(pagein: Command, path: Path) -> None:
    said = pagein(path).decode().splitlines()
    assert said[0].startswith(f"{path}  gzip, ")
    assert said[0].endswith("3.0 MiB of content")
    assert said[1].startswith(f"{path}.pgx  ")
    assert said[1].endswith(" points")
    before = os.stat(f"{path}.pgx").st_ino
    assert pagein(path).decode().splitlines() == said
    assert os.stat(f"{path}.pgx").st_ino == before
    pagein(path, "--rebuild")
    assert os.stat(f"{path}.pgx").st_ino != before


def test_a_name_of_any_bytes(pagein: Command, path: Path) -> None:
    odd = path.parent / os.fsdecode(b"\xff\n.gz")
    path.rename(odd)
    assert os.fsencode(odd) + b"  gzip" in pagein(odd)
    assert json.loads(pagein(odd, "--json"))["file"] == str(odd)


def test_a_range_comes_as_it_is(pagein: Command, path: Path, tmp_path: Path) -> None:
    assert pagein(path, "--offset", "1M", "--length", "70KiB") == CONTENT[1 << 20 :][: 70 << 10]
    assert pagein(path, "--offset", SIZE - 5) == CONTENT[-5:]
    assert pagein(path, "--offset", SIZE) == b""
    assert pagein(path, "--length", 3) == CONTENT[:3]
    assert not os.path.exists(f"{path}.pgx"), "who reads leaves nothing beside the file"
    assert pagein(path, "-o", tmp_path / "all") == b""
    assert (tmp_path / "all").read_bytes() == CONTENT


def test_facts_for_programs(pagein: Command, path: Path, tmp_path: Path) -> None:
    facts = json.loads(pagein(path, "--json", "--verify", "--index", tmp_path / "mine"))
    assert facts["file"] == str(path)
    assert (facts["size"], facts["packed_size"]) == (SIZE, path.stat().st_size)
    assert facts["index"] == str(tmp_path / "mine")
    assert facts["index_size"] == (tmp_path / "mine").stat().st_size
    assert facts["verified"] is True


def test_of_a_url(pagein: Command, path: Path, cache: Path) -> None:
    with serve_in_thread(WebServer(path.parent)) as web:
        said = pagein(web.url("/file.gz")).decode()
        assert str(cache) in said
        assert pagein(web.url("/file.gz"), "--offset", 100, "--length", 10) == CONTENT[100:110]


def test_damage_is_found(pagein: Command, path: Path) -> None:
    pagein(path)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2] ^= 1
    path.write_bytes(packed)
    assert f"pagein: {path}: ".encode() in pagein(path, "--verify", fails=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.gz"], "no such file"),
        (["."], "is a directory"),
        (["file.gz", "--offset", str(SIZE + 1)], f"its content has {SIZE} bytes"),
        (["file.gz", "--index", "none/there"], "name another place"),
        (["file.gz", "--index", "file.gz"], "not an index of a file"),
        (["file.gz", "--length", "5", "-o", "none/there"], "name another place"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    pagein: Command, path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    error = pagein(*words, fails=1).decode()
    assert error.startswith("pagein: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--offset", "1P"], ["--length", "-1"], ["--offset=0", "--json"]]
)
def test_words_that_make_no_sense(pagein: Command, path: Path, words: list[str]) -> None:
    assert b"Usage:" in pagein(path, *words, fails=2)
