"""Where indexes are found and put, and which are not used."""

import gzip
import os
import shutil
from pathlib import Path

import pytest
from tests.seekable.files import CONTENT, KINDS, text

from pagein import seekable
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index
from pagein.seekable import places
from pagein.seekable.index import FileIndex


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file.gz"
    made.write_bytes(KINDS["gzip"](CONTENT))
    return made


def read(path: Path, **options: object) -> str:
    """The path of the index that was used."""
    with seekable.open(path, **options) as file:  # type: ignore[arg-type]
        assert file.pread(1000, 2_000_000) == CONTENT[2_000_000:2_001_000]
        return file.index.path


def test_a_new_index_goes_into_the_cache_and_is_found_there(path: Path, cache: Path) -> None:
    calls: list[tuple[int, int]] = []
    used = read(path, progress=lambda done, total: calls.append((done, total)))
    assert [str(each) for each in cache.iterdir()] == [used]
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)
    assert sorted(calls) == calls
    calls.clear()
    assert read(path, may_build=False, progress=lambda *_: calls.append((0, 0))) == used
    assert not calls
    assert os.listdir(path.parent) != []


def test_another_cache(path: Path, tmp_path: Path, cache: Path) -> None:
    assert read(path, cache=tmp_path / "other").startswith(f"{tmp_path}/other/seekable/")
    assert not cache.exists()


def test_the_one_beside_the_file_comes_first(path: Path, cache: Path) -> None:
    beside = seekable.build(path)
    assert beside == f"{path}.pgx"
    assert read(path) == beside
    assert not cache.exists()


def test_a_place_of_ones_own(path: Path, tmp_path: Path, cache: Path) -> None:
    mine = tmp_path / "mine"
    assert read(path, index=mine) == str(mine)
    before = mine.stat()
    assert read(path, index=mine, may_build=False) == str(mine)
    assert mine.stat().st_ino == before.st_ino
    assert read(path, index=mine, rebuild=True) == str(mine)
    assert mine.stat().st_ino != before.st_ino
    assert not cache.exists()


def test_no_index_and_none_wanted(path: Path) -> None:
    with pytest.raises(seekable.NoIndex, match=f"{path}: has no index: build one"):
        seekable.open(path, may_build=False)


def test_the_index_goes_with_a_copy_of_the_file(path: Path, tmp_path: Path, cache: Path) -> None:
    seekable.build(path)
    (tmp_path / "else").mkdir()
    for name in ("file.gz", "file.gz.pgx"):
        shutil.copyfile(tmp_path / name, tmp_path / "else" / name)
    assert read(tmp_path / "else" / "file.gz") == str(tmp_path / "else" / "file.gz.pgx")


def test_the_same_file_has_the_same_index(path: Path) -> None:
    first = Path(seekable.build(path)).read_bytes()
    assert Path(seekable.build(path)).read_bytes() == first


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (gzip.compress(CONTENT, mtime=1), "has other content than when"),
        (gzip.compress(CONTENT[:-50]), "the index of a file of [0-9]* bytes, but"),
        (gzip.compress(CONTENT) + b"\0", "the index of a file of [0-9]* bytes, but"),
    ],
    ids=["header", "shorter", "longer"],
)
def test_the_index_of_another_file_is_refused(path: Path, changed: bytes, said: str) -> None:
    beside = seekable.build(path)
    path.write_bytes(changed)
    with pytest.raises(seekable.BadIndex, match=rf"^\[Errno 5\] {beside}: .*{said}.*again$"):
        seekable.open(path)
    with pytest.raises(seekable.BadIndex, match=beside):
        seekable.open(path, index=beside)
    with seekable.open(path, index=beside, rebuild=True) as file:
        assert file.read() == gzip.decompress(changed)


def test_a_changed_file_has_no_index_in_the_cache(path: Path, cache: Path) -> None:
    used = read(path)
    changed = text(seed=2)
    path.write_bytes(gzip.compress(changed))
    with seekable.open(path) as file:
        assert file.read() == changed
        assert file.index.path != used
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_index_in_the_cache_is_built_again(path: Path) -> None:
    used = Path(read(path))
    good = used.read_bytes()
    used.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    assert read(path) == str(used)
    assert used.read_bytes() == good


def test_indexes_used_least_recently_leave_the_cache(
    path: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for number in range(4):
        copy = tmp_path / f"{number}.gz"
        shutil.copyfile(path, copy)
        used.append(Path(read(copy)))
        os.utime(used[-1], (number, number))
    assert read(tmp_path / "0.gz", may_build=False) == str(used[0]), "its turn comes last"
    size = used[0].stat().st_size
    monkeypatch.setattr(places, "_MOST", 3 * size + size // 2)
    last = Path(read(path))
    assert set(cache.iterdir()) == {used[3], used[0], last}


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path, content = tmp_path / "small.gz", text(70_000)
    path.write_bytes(b"".join(gzip.compress(content[at:][:30_000]) for at in (0, 30_000, 60_000)))
    index = Path(seekable.build(path, interval=25_000))
    good = index.read_bytes()
    named = 0
    for at in range(len(good)):
        index.write_bytes(good[:at] + bytes((good[at] ^ 1 << at % 8,)) + good[at + 1 :])
        try:
            with seekable.open(path) as file:
                for offset in (65_000, 40_000, 0):  # each by its own point
                    assert file.pread(5000, offset) == content[offset : offset + 5000]
                with pytest.raises(seekable.BadIndex, match=str(index)):
                    file.index.verify()
        except seekable.BadIndex as problem:
            assert str(index) in str(problem)
            named += 1
    assert named > len(good) // 2
    for size in range(0, len(good), 100):
        index.write_bytes(good[:size])
        with pytest.raises(seekable.BadIndex, match=str(index)):
            seekable.open(path)


def test_it_is_not_a_layers_index(path: Path) -> None:
    beside = seekable.build(path)
    with pytest.raises(LayerError, match=f"{beside}: not an index of a layer"):
        Index(beside)
    with FileIndexOf(path) as index:
        assert index.about.name == "file.gz"
    with pytest.raises(seekable.BadIndex, match=f"{path}: not an index of a file"):
        seekable.open(path, index=path)


class FileIndexOf(FileIndex):
    """The index beside a file, closed at the end."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}.pgx")

    def __enter__(self) -> FileIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.mark.parametrize("place", ["", "none/index"])
def test_places_where_nothing_can_be_written(path: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(OSError, match=str(tmp_path / place)):
        seekable.build(path, tmp_path / place)
    assert [each.name for each in tmp_path.iterdir()] == ["file.gz"]


def test_an_interrupted_build_leaves_nothing(path: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seekable.build(path, progress=stop)
    assert [each.name for each in tmp_path.iterdir()] == ["file.gz"]


def test_the_index_may_be_read_by_whom_the_umask_says(path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert os.stat(seekable.build(path)).st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
