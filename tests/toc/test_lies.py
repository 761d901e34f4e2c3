"""Tables of contents that lie are refused by name, and no byte of what they claim is given out."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.layers.rig import gzipped, member, tar_of
from tests.toc.rig import Opened, archive, refusal
from tests.toc.writers import (
    CHUNKED,
    TOC_DIGEST,
    Document,
    Made,
    Options,
    estargz,
    footer,
    sha256,
    zstd_chunked,
)

from pagein.images.toc.fetch import toc_of

Write = Callable[[bytes, Options], Made]
Change = Callable[[Document], object]

WRITERS: dict[str, Write] = {"estargz": estargz, "zstd:chunked": zstd_chunked}


def entry(toc: Document, name: str) -> Document:
    """The last entry of a name."""
    found: Document = [e for e in toc["entries"] if e["name"] == name and e["type"] != "chunk"][-1]
    return found


def chunks(toc: Document, name: str) -> list[Document]:
    """A file's entry, and those of its further chunks."""
    return [each for each in toc["entries"] if each["name"] == name]


def put(path: str, **fields: Any) -> Change:
    """Fields of one entry."""
    return lambda toc: entry(toc, path).update(fields)


def put_chunk(number: int, **fields: Any) -> Change:
    """Fields of a chunk of the big file."""
    return lambda toc: chunks(toc, "usr/big")[number].update(fields)


def add(**fields: Any) -> Change:
    """Another entry, at the end."""
    return lambda toc: toc["entries"].append(fields)


def swap(toc: Document) -> None:
    """Two small files change places in the layer."""
    one, other = entry(toc, "small/0"), entry(toc, "small/1")
    one["offset"], other["offset"] = other["offset"], one["offset"]


def overlap(toc: Document) -> None:
    """The third chunk of the big file is the second one."""
    big = chunks(toc, "usr/big")
    big[2]["offset"] = big[1]["offset"]


def leave_out(toc: Document) -> None:
    """The third chunk of the big file is not there."""
    toc["entries"].remove(chunks(toc, "usr/big")[2])


def insert_chunk(number: int) -> Change:
    """A chunk of the big file elsewhere."""
    return lambda toc: toc["entries"].insert(number, chunks(toc, "usr/big")[1])


LIES: dict[str, tuple[Change, str]] = {
    "no version": (lambda toc: toc.update(version=2), "version 2"),
    "no entries": (lambda toc: toc.update(entries={}), "not a valid TOC"),
    "beyond the layer": (put_chunk(1, offset=1 << 40), "usr/big.*where no data is"),
    "before the layer": (put_chunk(1, offset=-5), "usr/big.*where no data is"),
    "in the TOC": (put("usr/again", offset=0), "usr/again.*where no data is"),
    "overlapping": (overlap, "usr/big.*overlaps the one before"),
    "out of order": (swap, "small/1.*overlaps the one before"),
    "a chunk twice": (put_chunk(2, chunkOffset=0), "usr/big.*overlap, or leave something out"),
    "a gap": (leave_out, "usr/big.*its chunks"),
    "too short": (put("usr/big", size=400_000), "usr/big.*its chunks"),
    "too long": (put("usr/big", size=1000), "usr/big.*its chunks"),
    "endless": (put("usr/big", size=(1 << 63) - 1), "usr/big.*its chunks"),
    "beyond all numbers": (put("usr/big", size=1 << 70), "impossible size|not a valid TOC"),
    "a huge chunk": (put("usr/again", size=1 << 40), "usr/again.*more than 33554432 bytes"),
    "a chunk of nothing": (insert_chunk(0), "entry 0 is a chunk of no file"),
    "a chunk of a directory": (insert_chunk(2), "chunk of no file"),
    "no digest": (put_chunk(1, chunkDigest=""), "usr/big.*without a digest"),
    "another digest": (put_chunk(1, chunkDigest="md5:" + 32 * "0"), "usr/big.*without a digest"),
    "a kind of chunk": (put_chunk(1, chunkType="secret"), "usr/big.*unknown type 'secret'"),
    "a kind of file": (put("usr/link", type="door"), "unknown type 'door'"),
    "above the root": (put("usr/link", name="usr/../../etc/passwd"), r"with '\.\.' in it"),
    "a link above the root": (
        add(name="up", type="hardlink", linkName="../../x"),
        r"link with '\.\.'",
    ),
    "a link to itself": (
        add(name="loop", type="hardlink", linkName="loop"),
        "'loop', which this layer does not hold",
    ),
    "a ring of links": (add(name="ring/a", type="symlink", linkName="b"), ""),
    "a link to a directory": (
        add(name="x", type="hardlink", linkName="usr"),
        "which is a directory",
    ),
    "below a file": (add(name="usr/big/below", type="dir"), "'usr/big' is not a directory"),
    "a long name": (add(name="x" * 300, type="dir"), "more than 255"),
    "a NUL": (add(name="a\0b", type="dir"), "a NUL in a name"),
    "half a letter": (add(name="\ud800", type="dir"), "not a valid TOC|not UTF-8"),
    "a name that was lost": (add(name="a\ufffd", type="dir"), "a name that JSON cannot hold"),
    "a root that is a file": (add(name="/", type="symlink", linkName="usr"), "has no name"),
    "an endless hole": (
        add(name="hole", type="reg", size=1 << 50, chunkType="zeros"),
        "bytes of data in one layer",
    ),
    "an owner": (put("usr/link", uid=1 << 32), "beyond 32 bits"),
    "a time": (put("usr/link", modtime="yesterday"), "not a time"),
    "a day": (put("usr/link", modtime="2024-02-30T00:00:00Z"), "not a time"),
    "a device": (put("usr/null", devMajor=1 << 20), "does not exist"),
    "a whiteout": (put("usr/null", devMajor=0, devMinor=0), "overlayfs's own whiteout"),
    "an attribute": (put("usr/link", xattrs={"user." + "a" * 300: ""}), "too long"),
    "not base64": (put("usr/link", xattrs={"user.a": "!"}), "not a valid TOC"),
    "a file with a slash": (put("usr/empty", name="usr/empty/"), "with the name of a directory"),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("lie", LIES)
def test_is_refused_by_name(kind: str, lie: str, tmp_path: Path) -> None:
    change, said = LIES[lie]
    made = WRITERS[kind](archive(), Options(chunk=100_000, change=change))
    if kind == "zstd:chunked":
        made = without_tar_split(made)
    found = refusal(made, tmp_path / "index")
    assert bool(found) is bool(said)
    assert re.search(said, found), found


def without_tar_split(made: Made) -> Made:
    """A TOC that has no tar-split to be compared with, as older writers leave it."""
    document = json.loads(made.toc)
    del document["tarSplitDigest"]
    return with_toc(made, json.dumps(document).encode())


def with_toc(made: Made, toc: bytes) -> Made:
    """The zstd:chunked layer with another TOC behind it."""
    packed = zstandard.compress(toc)
    position = f"{CHUNKED}manifest-position"
    annotations = {
        f"{CHUNKED}manifest-checksum": sha256(packed),
        position: f"{len(made.data) + 8}:{len(packed)}:{len(toc)}:1",
    }
    head = b"\x50\x2a\x4d\x18" + len(packed).to_bytes(4, "little")
    return made._replace(data=made.data + head + packed, annotations=annotations, toc=toc)


# ---- what a chunk holds --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_a_chunk_that_is_not_what_the_toc_says(kind: str, tmp_path: Path) -> None:
    """The TOC is right by its digest, and contradicts the data."""
    lie = put_chunk(1, chunkDigest=sha256(b"something else"))
    made = WRITERS[kind](archive(), Options(chunk=100_000, change=lie))
    opened = Opened(made, tmp_path / "index")  # nothing can be seen yet
    with pytest.raises(OSError, match=r"wrong bytes in the chunk at offset \d+ of the layer"):
        opened.read()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("shift", [-1, 1, 200])
def test_a_chunk_that_is_not_where_the_toc_says(kind: str, shift: int, tmp_path: Path) -> None:
    def lie(toc: Document) -> None:
        entry(toc, "small/3")["offset"] += shift

    made = WRITERS[kind](archive(), Options(chunk=100_000, change=lie))
    assert "the chunk at offset" in refusal(made, tmp_path / "index") or shift == 200


# ---- where the TOC is ----------------------------------------------------------------------------


def test_another_digest_of_the_toc(tmp_path: Path) -> None:
    made = estargz(archive())
    wrong = sha256(b"")
    lying = made._replace(annotations={TOC_DIGEST: wrong})
    said = refusal(lying, tmp_path / "index")
    assert said == f"its TOC is {made.annotations[TOC_DIGEST]}, not {wrong}"
    lying = made._replace(annotations={TOC_DIGEST: "sha256:?"})
    assert "is no digest of its TOC" in refusal(lying, tmp_path / "index")
    chunked = zstd_chunked(archive())
    checksum = f"{CHUNKED}manifest-checksum"
    lying = chunked._replace(annotations=chunked.annotations | {checksum: wrong})
    said = refusal(lying, tmp_path / "index")
    assert said == f"its TOC is {chunked.annotations[checksum]}, not {wrong}"
    # As stargz-snapshotter writes it: of the TOC as it is unpacked, too.
    lying = chunked._replace(annotations=chunked.annotations | {TOC_DIGEST: wrong})
    assert refusal(lying, tmp_path / "index") == f"its TOC is {sha256(chunked.toc)}, not {wrong}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], "no footer"),
        (lambda data: data[:40], "no footer"),
        (lambda data: data[:-51] + footer(len(data)), "where no TOC can be"),
        (lambda data: data[:-51] + footer(0), "where no TOC can be"),
        (lambda data: data[:-51] + footer((1 << 64) - 1), "where no TOC can be"),
        (lambda data: data[:-51] + footer(1), "cannot be unpacked"),
        (lambda data: data[:-51] + gzipped(b"") + data[-51:], "between its TOC and its footer"),
        (lambda data: data[:-51] + footer(len(data) - 60), "cannot be unpacked|truncated"),
        (lambda data: gzipped(tar_of(member(b"a", data=b"b"))) + footer(0), "where no TOC can be"),
    ],
)
def test_another_footer(change: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    made = estargz(archive())
    found = refusal(made._replace(data=change(made.data)), tmp_path / "index")
    assert re.search(said, found), found


def test_something_else_where_the_toc_should_be(tmp_path: Path) -> None:
    made = estargz(archive())
    for tar, said in (
        (tar_of(member(b"other", data=b"{}")), "'other' where its TOC should be"),
        (tar_of(*[member(b"stargz.index.json", data=b"{}")] * 2), "where its TOC should be"),
        (tar_of(), "no 'stargz.index.json'"),
        (b"x" * 600, "checksum"),
    ):
        data = made.data[:-51] + gzipped(tar) + footer(len(made.data) - 51)
        assert said in refusal(made._replace(data=data), tmp_path / "index")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("manifest-position", "", "no position"),
        ("manifest-position", "1:2:3", "no position"),
        ("manifest-position", "1:2:3:-1", "no position"),
        ("manifest-position", "\u0661:2:3:1", "no position"),
        ("manifest-position", "100:10:10:2", "of type 2"),
        ("manifest-position", "100:10:99999999999:1", "more than"),
        ("manifest-position", "99999999999:10:10:1", "points outside"),
        ("manifest-position", "0:10:10:1", "points outside"),
        ("manifest-position", "100:0:10:1", "points outside"),
        ("tarsplit-position", "99999999999:1:1", "points outside"),
        ("tarsplit-position", "x", "no position"),
    ],
)
def test_positions(key: str, value: str, said: str, tmp_path: Path) -> None:
    made = zstd_chunked(archive())
    lying = made._replace(annotations=made.annotations | {f"{CHUNKED}{key}": value})
    assert said in refusal(lying, tmp_path / "index")


def test_another_size_of_the_toc(tmp_path: Path) -> None:
    made = zstd_chunked(archive())
    key = f"{CHUNKED}manifest-position"
    at, length, size, kind = made.annotations[key].split(":")
    for wrong in (int(size) - 1, int(size) + 1):
        position = {key: f"{at}:{length}:{wrong}:{kind}"}
        lying = made._replace(annotations=made.annotations | position)
        assert "does not unpack to" in refusal(lying, tmp_path / "index")


# ---- the tar -------------------------------------------------------------------------------------


CONTRADICTIONS = pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("usr/link", mode=0o777, linkName="elsewhere"), "the target of 'usr/link'"),
        (put("usr/again", mode=0o4777), "the mode of 'usr/again'"),
        (put("usr/empty", uid=0, gid=1), "the owner of 'usr/empty'"),
        (put("usr/fifo", type="dir"), "the type of 'usr/fifo'"),
        (put("usr/null", devMinor=7), "the device of 'usr/null'"),
        (put("usr/attributes", xattrs={}), "the attributes of 'usr/attributes'"),
        (put("usr/empty", modtime="1999-01-01T00:00:00Z"), "the time of 'usr/empty'"),
        (put("usr/empty", name="usr/full"), "'usr/full' where its tar has 'usr/empty'"),
        (lambda toc: toc["entries"].pop(), "is in its tar, but not in its TOC"),
        (add(name="more", type="dir"), "'more' is in its TOC, but not in its tar"),
    ],
)


@CONTRADICTIONS
def test_a_toc_that_contradicts_the_tar_split(change: Change, said: str, tmp_path: Path) -> None:
    made = zstd_chunked(archive(), Options(chunk=100_000, change=change))
    assert said in refusal(made, tmp_path / "index")


@CONTRADICTIONS
def test_a_toc_that_contradicts_a_layer_that_is_here_whole(
    change: Change, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SEEN_WHOLE", "_LEAST", "_MOST"):
        monkeypatch.setattr(f"pagein.images.toc.fetch.{name}", 1 << 20)
    assert not refusal(estargz(archive()), tmp_path / "index")
    assert said in refusal(estargz(archive(), Options(change=change)), tmp_path / "index")


@pytest.mark.parametrize(
    ("digest", "said"), [(sha256(b""), "its tar-split is sha256"), ("x", "no digest of its")]
)
def test_another_digest_of_the_tar_split(digest: str, said: str, tmp_path: Path) -> None:
    def change(toc: Document) -> None:
        toc["tarSplitDigest"] = digest

    assert said in refusal(zstd_chunked(archive(), Options(change=change)), tmp_path / "index")
    older = zstd_chunked(archive(), Options(change=lambda toc: toc.pop("tarSplitDigest")))
    assert not refusal(older, tmp_path / "index")
    annotations = older.annotations | {f"{CHUNKED}tarsplit-checksum": digest}
    assert said in refusal(older._replace(annotations=annotations), tmp_path / "index")


def test_a_tar_split_that_nothing_says_the_place_of(tmp_path: Path) -> None:
    made = zstd_chunked(archive())
    annotations = {k: v for k, v in made.annotations.items() if "tarsplit" not in k}
    said = refusal(made._replace(annotations=annotations), tmp_path / "index")
    assert "no annotation says where" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "its tar-split is none"),
        (b'{"type": 3}', "its tar-split is none"),
        (b'{"type": 1, "size": 99999999999}', "files that its TOC does not have"),
        (b'{"type": 1, "size": -1}', "files that its TOC does not have"),
        (b'{"type": 2, "payload": "!"}', "its tar-split is none"),
        (b'{"type": 2, "payload": "%s"}' % base64.b64encode(b"x" * 512), "checksum"),
    ],
)
def test_a_tar_split_that_is_none(line: bytes, said: str, tmp_path: Path) -> None:
    made = zstd_chunked(archive())
    packed = zstandard.compress(line + b"\n")
    document = json.loads(made.toc)
    document["tarSplitDigest"] = sha256(packed)
    lying = with_toc(made, json.dumps(document).encode())
    place = f"{len(lying.data)}:{len(packed)}:{len(line) + 1}"
    annotations = lying.annotations | {f"{CHUNKED}tarsplit-position": place}
    lying = lying._replace(data=lying.data + packed, annotations=annotations)
    assert said in refusal(lying, tmp_path / "index")


def test_layers_without_annotations_are_ordinary_ones() -> None:
    assert toc_of(None) is None
    assert toc_of({}) is None
    assert toc_of({"org.opencontainers.image.title": "x"}) is None
