"""Damaged layers and random tables of contents: an error, or right bytes; never anything else."""

import asyncio
import copy
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from tests.layers.rig import member, tar_of
from tests.toc.rig import Opened, Run
from tests.toc.writers import TOC_DIGEST, Made, estargz, footer, sha256, zstd_chunked

from pagein.images.layers.errors import LayerError

CASES = 1000
"""Tables of contents of each format. More is in the long run."""
MEMORY = 400 << 20
"""Bytes that all of them together may add to what the process holds."""

SMALL = tar_of(
    member(b"a/", kind=b"5"),
    member(b"a/file", data=b"some text, " * 20),
    member(b"a/link", kind=b"2", link=b"file"),
    member(b"hard", kind=b"1", link=b"a/file"),
    member(b"b", data=bytes(3000)),
    member(b"c", data=b"x" * 700),
)
NAMES = ["", "/", ".", "..", "a", "a/file", "../x", "a/../../x", "/etc", "a/.wh.x", ".wh.", "\0"]
NUMBERS = [0, 1, -1, 7, 700, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 64, 1e300]
TYPES = ["reg", "dir", "chunk", "hardlink", "symlink", "char", "block", "fifo", "", "x"]
OTHERS: list[Any] = [None, [], {}, True, "text", 1.5]


def with_toc(made: Made, toc: bytes) -> Made:
    """The layer with another TOC, whose digest is right."""
    if "gzip" not in made.media_type:
        from tests.toc.test_lies import with_toc as chunked

        return chunked(made, toc)
    from tests.layers.rig import gzipped
    from tests.toc.writers import tar_of as tar

    data = made.data + gzipped(tar("stargz.index.json", toc), 1)
    data += footer(len(made.data))
    return made._replace(data=data, annotations={TOC_DIGEST: sha256(toc)}, toc=toc)


def other(draw: random.Random, key: str) -> object:
    """A value for a member of an entry, which may be what it should be."""
    if draw.random() < 0.1:
        return draw.choice(OTHERS)
    if key in ("name", "linkName"):
        return draw.choice(NAMES) * draw.choice([1, 1, 1, 2, 3000])
    if key == "type":
        return draw.choice(TYPES)
    if key in ("digest", "chunkDigest"):
        return draw.choice([sha256(b"x" * 700), sha256(b""), "sha256:", "x"])
    if key == "modtime":
        return draw.choice(["", "0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z", "now"])
    if key == "xattrs":
        return draw.choice([{"user.a": "QQ=="}, {"": ""}, {"trusted.overlay.opaque": "eQ=="}])
    return draw.choice(NUMBERS)


KEYS = [
    *("name", "type", "size", "modtime", "linkName", "mode", "uid", "gid", "devMajor", "devMinor"),
    *("xattrs", "digest", "offset", "innerOffset", "chunkOffset", "chunkSize", "chunkDigest"),
]


def changed(draw: random.Random, toc: bytes) -> bytes:
    """Another TOC: bytes of it, or values in it."""
    if draw.random() < 0.2:
        data = bytearray(toc)
        for _ in range(draw.choice([1, 1, 5])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data)
    document = copy.deepcopy(json.loads(toc))
    entries = document["entries"]
    for _ in range(draw.choice([1, 1, 2, 4])):
        if not entries:
            break
        at = draw.randrange(len(entries))
        match draw.randrange(8):
            case 0:
                entries.insert(draw.randrange(len(entries)), copy.deepcopy(entries[at]))
            case 1:
                del entries[at]
            case 2:
                entries[at] = copy.deepcopy(draw.choice([*OTHERS, entries[0]]))
            case _:
                if isinstance(entries[at], dict):
                    key = draw.choice(KEYS)
                    entries[at][key] = copy.deepcopy(other(draw, key))
    return json.dumps(document).encode()


def tried(made: Made, path: Path, run: Run) -> bool:
    """Whether it was refused; if it was not, nothing in its tree leads out of it."""
    try:
        seen = Opened(made, path, run=run).seen()
    except (LayerError, OSError) as error:
        assert str(error)
        assert "\n" not in str(error)
        return True
    for name in seen:
        parts = name.split(b"/")
        assert parts[0] == b""
        assert not {b"", b".", b".."} & set(parts[1:]), name
    return False


def fuzz(kind: str, cases: int, seed: int, path: Path) -> None:
    made = {"estargz": estargz, "zstd:chunked": zstd_chunked}[kind](SMALL)
    document = json.loads(made.toc)
    document.pop("tarSplitDigest", None)
    toc = json.dumps(document).encode()
    draw = random.Random(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    begun, refused = time.process_time(), 0
    with asyncio.Runner() as runner:
        for _ in range(cases):
            refused += tried(with_toc(made, changed(draw, toc)), path, runner.run)
    assert 0.3 * cases < refused < cases
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MEMORY
    assert time.process_time() - begun < 0.1 * cases  # of the CPU: a case takes 2 ms


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the layers were large: small ones are compared with their TOC as a whole."""
    monkeypatch.setattr("pagein.images.toc.fetch.SEEN_WHOLE", 0)


@pytest.mark.parametrize("kind", ["estargz", "zstd:chunked"])
def test_random_tocs(kind: str, tmp_path: Path) -> None:
    fuzz(kind, CASES, 1, tmp_path / "index")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["estargz", "zstd:chunked"])
def test_many_random_tocs(kind: str, tmp_path: Path) -> None:
    for seed in range(2, 22):
        fuzz(kind, CASES, seed, tmp_path / "index")


@pytest.mark.parametrize("write", [estargz, zstd_chunked])
def test_each_byte_of_a_layer(write: Any, tmp_path: Path) -> None:
    """Flipped, one after the other: what is given out is right, or nothing is."""
    tar = tar_of(member(b"a", data=b"text " * 20), member(b"b/c", data=b"more"))
    made = write(tar)
    wanted = Opened(made, tmp_path / "index").seen()
    refused = 0
    with asyncio.Runner() as runner:
        for at in range(len(made.data)):
            data = bytearray(made.data)
            data[at] ^= 1 << at % 8
            try:
                seen = Opened(made, tmp_path / "index", bytes(data), runner.run).seen()
            except (LayerError, OSError):
                refused += 1
                continue
            assert seen == wanted, at
    assert refused > len(made.data) // 3
