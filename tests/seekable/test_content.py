"""What is read is what the file holds, however it is packed, wherever it is read; else an error."""

import gzip
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.seekable.files import CONTENT, KINDS, SIZE, text

from pagein import seekable
from pagein.images.layers.errors import LayerError
from pagein.seekable.index import CHUNK


def written(tmp_path: Path, kind: str, content: bytes = CONTENT) -> Path:
    path = tmp_path / f"file.{kind}"
    path.write_bytes(KINDS[kind](content))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_random_reads_of_every_kind(tmp_path: Path, kind: str) -> None:
    draw = random.Random(kind)
    with seekable.open(written(tmp_path, kind), interval=1 << 19, memory=1 << 20) as file:
        assert file.size == SIZE
        for _ in range(60):
            at, length = draw.randrange(SIZE), draw.choice((1, 1000, CHUNK, 300_000))
            assert file.pread(length, at) == CONTENT[at : at + length]
        assert file.read() == CONTENT


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_content(tmp_path: Path, kind: str) -> None:
    with seekable.open(written(tmp_path, kind, b"")) as file:
        assert (file.size, file.read(), file.pread(10, 0), file.pread(1, 5)) == (0, b"", b"", b"")


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
@pytest.mark.parametrize("kind", ["gzip", "frames"])
def test_edges_of_chunks(tmp_path: Path, kind: str, size: int) -> None:
    with seekable.open(written(tmp_path, kind, CONTENT[:size])) as file:
        assert file.pread(size + 1, 0) == CONTENT[:size]
        assert file.pread(2, size - 1) == CONTENT[size - 1 : size]
        assert file.pread(2, size) == b""


def test_zeros_whose_blocks_are_large(tmp_path: Path) -> None:
    zeros = bytes(20 << 20) + b"end"
    with seekable.open(written(tmp_path, "gzip", zeros), memory=0) as file:
        assert file.pread(100, 10 << 20) == bytes(100)
        assert file.pread(100, (20 << 20) - 1) == b"\0end"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, seekable.SeekableFile]:
    directory = tmp_path_factory.mktemp("opened")
    files = {}
    for kind in ("gzip", "members", "frames"):
        path = written(directory, kind)
        seekable.build(path, interval=200_000)
        files[kind] = seekable.open(path, memory=10 * CHUNK)
    return files


@settings(max_examples=60)
@given(
    st.sampled_from(["gzip", "members", "frames"]),
    st.lists(st.tuples(st.integers(0, SIZE + 10), st.integers(0, 4 * CHUNK)), max_size=8),
)
def test_any_reads_in_any_order(
    opened: dict[str, seekable.SeekableFile], kind: str, reads: list[tuple[int, int]]
) -> None:
    for at, length in reads:
        assert opened[kind].pread(length, at) == CONTENT[at : at + length]


def test_the_files_of_that_test_are_closed(opened: dict[str, seekable.SeekableFile]) -> None:
    for file in opened.values():
        file.close()


# ---- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_gets_no_index(tmp_path: Path, cache: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    packed = path.read_bytes().rstrip(b"\0")
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(seekable.SeekableError, match=r"file\..*truncated"):
        seekable.open(path)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("kind", ["gzip", "members", "frame"])
def test_a_damaged_file_gets_no_index(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2] ^= 1
    path.write_bytes(packed)
    with pytest.raises(seekable.SeekableError, match=str(path)):
        seekable.build(path)
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith("pgx")] == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"plain text", "neither a gzip nor a zstd file"),
        (b"BZh91AY", "bzip2: only gzip and zstd are read"),
        (b"", "is empty"),
        (b"\x1f", "neither a gzip nor a zstd file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    with pytest.raises(OSError, match=f"{path}: .*{said}"):
        seekable.open(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"{tmp_path}/none: no such file"):
        seekable.open(tmp_path / "none")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_after_the_index_was_built_is_never_given_out(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    seekable.build(path, interval=1 << 19)
    packed = bytearray(path.read_bytes())
    draw = random.Random(kind)
    told = 0
    for _ in range(12):
        at = draw.randrange(5000, len(packed.rstrip(b"\0")) - 5000)
        packed[at] ^= 1 << draw.randrange(8)
        path.write_bytes(packed)
        with seekable.open(path) as file:
            for offset in range(0, SIZE, 400_000):
                try:
                    assert file.pread(1000, offset) == CONTENT[offset : offset + 1000]
                except seekable.SeekableError as problem:
                    told += 1
                    assert str(path) in str(problem)
    assert told


def test_a_file_that_changes_while_it_is_open(tmp_path: Path) -> None:
    path = written(tmp_path, "gzip")
    with seekable.open(path, memory=0) as file:
        assert file.pread(10, 0) == CONTENT[:10]
        path.write_bytes(gzip.compress(text(SIZE, 2)))
        with pytest.raises(OSError, match="content changed since it was first read"):
            file.pread(10, SIZE // 2)


def test_frames_that_need_a_dictionary_are_refused(tmp_path: Path) -> None:
    samples: list[bytes | bytearray | memoryview] = [
        CONTENT[at : at + 1000] for at in range(0, 200_000, 1000)
    ]
    trained = zstandard.train_dictionary(8000, samples)
    path = tmp_path / "file.zst"
    path.write_bytes(zstandard.ZstdCompressor(dict_data=trained).compress(CONTENT))
    with pytest.raises(seekable.SeekableError, match=f"{path}: .*dictionary {trained.dict_id()}"):
        seekable.open(path)


def test_zstd_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, packed = written(tmp_path, "frame"), written(tmp_path, "gzip")
    seekable.build(path)

    def missing() -> None:
        raise LayerError("zstd needs zstandard")

    monkeypatch.setattr("pagein.images.layers.zstd.library.library", missing)
    for options in ({}, {"rebuild": True}):
        with pytest.raises(seekable.SeekableError, match=f"{path}: zstd needs zstandard"):
            seekable.open(path, **options)  # type: ignore[arg-type]
    seekable.open(packed).close()
