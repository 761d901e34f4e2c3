"""It is a Python file: buffered, seekable, for threads, and to be had in other processes."""

import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.seekable.files import CONTENT, KINDS, SIZE

import pagein
from pagein import seekable
from pagein.images.layers.format import Compression
from pagein.seekable.cursor import Cursor
from pagein.seekable.index import CHUNK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file.gz"
    made.write_bytes(KINDS["gzip"](CONTENT))
    return made


@pytest.fixture
def file(path: Path) -> Iterator[seekable.SeekableFile]:
    with seekable.open(path) as opened:
        yield opened


def test_it_is_a_buffered_file(path: Path, file: seekable.SeekableFile) -> None:
    assert isinstance(file, io.BufferedReader)
    assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
    assert (file.name, file.size) == (str(path), SIZE)
    assert file.read(10) == CONTENT[:10]
    assert file.peek(1)[:1] == CONTENT[10:11]
    assert file.seek(-5, os.SEEK_END) == SIZE - 5
    assert file.read(100) == CONTENT[-5:]
    assert file.read(1) == b""
    assert file.seek(1000) == 1000
    assert file.seek(24, os.SEEK_CUR) == 1024
    buffer = bytearray(200_000)
    assert file.readinto(buffer) == 200_000
    assert bytes(buffer) == CONTENT[1024:201_024]
    assert file.tell() == 201_024
    assert file.seek(SIZE + 10) == SIZE + 10
    assert file.read() == b""
    with pytest.raises(OSError, match="negative"):
        file.seek(-1)
    with pytest.raises(OSError, match="negative"):
        file.pread(-1, 0)


def test_lines_are_those_of_the_content(file: seekable.SeekableFile) -> None:
    assert list(file) == io.BytesIO(CONTENT).readlines()


def test_a_closed_file_says_so(file: seekable.SeekableFile) -> None:
    file.close()
    file.close()
    for call in (file.read, lambda: file.pread(1, 0), lambda: file.seek(0), file.tell):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_what_it_says_of_its_index(path: Path, file: seekable.SeekableFile) -> None:
    index = file.index
    assert index.compression is Compression.GZIP
    assert (index.size, index.packed_size) == (SIZE, path.stat().st_size)
    assert index.file_size == os.path.getsize(index.path)
    assert index.points >= 3
    assert index.widest_span() <= 2 << 20


def test_reading_on_continues_in_the_same_decoder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[int] = []
    init = Cursor.__init__

    def counted(self: Cursor, index: object, source: object, number: int) -> None:
        entered.append(number)
        init(self, index, source, number)  # type: ignore[arg-type]

    monkeypatch.setattr(Cursor, "__init__", counted)
    with seekable.open(path, memory=4 * CHUNK) as file:
        last = file.index.span_of(SIZE // 2)
        for at in range(0, SIZE // 2 - 20_000, 20_000):
            assert file.read(20_000) == CONTENT[at : at + 20_000]
            # Another one, far away, has a decoder of its own, and both go on.
            assert file.pread(20_000, SIZE // 2 + at) == CONTENT[SIZE // 2 + at :][:20_000]
    assert entered == [0, last]


def test_what_was_decoded_is_kept_within_the_budget(path: Path) -> None:
    with seekable.open(path, memory=5 * CHUNK) as file:
        file.read()
        content = file._content
        assert len(content._chunks) == 5
        got = file.pread(4 * CHUNK, SIZE - 4 * CHUNK)
        assert got == CONTENT[-4 * CHUNK :]
        assert len(content._chunks) == 5


def test_threads_share_a_file(path: Path) -> None:
    wrong: list[int] = []
    with seekable.open(path, memory=20 * CHUNK) as file:

        def read(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(40):
                at = draw.randrange(SIZE)
                if file.pread(100_000, at) != CONTENT[at : at + 100_000]:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_it_can_be_pickled(path: Path, file: seekable.SeekableFile) -> None:
    file.seek(1234)
    with pickle.loads(pickle.dumps(file)) as other:
        assert other.read(10_000) == CONTENT[1234:11_234]
    assert file.read(10) == CONTENT[1234:1244]


def test_it_survives_a_fork(file: seekable.SeekableFile) -> None:
    file.pread(10, 0)
    child = os.fork()
    if not child:
        os._exit(0 if file.pread(1000, 2 << 20) == CONTENT[2 << 20 :][:1000] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.pread(1000, 1 << 20) == CONTENT[1 << 20 :][:1000]


def test_a_tar_in_it_is_read_by_tarfile(tmp_path: Path) -> None:
    plain = tmp_path / "a.tar"
    with tarfile.open(plain, "w") as tar:
        for number in range(20):
            entry = tarfile.TarInfo(f"file{number}")
            entry.size = 100_000
            tar.addfile(entry, io.BytesIO(CONTENT[number * 1000 :][:100_000]))
    packed = tmp_path / "a.tar.zst"
    packed.write_bytes(KINDS["frames"](plain.read_bytes()))
    with seekable.open(packed) as file, tarfile.open(fileobj=file) as tar:
        member = tar.extractfile("file17")
        assert member is not None
        assert member.read() == CONTENT[17_000:117_000]


def test_nothing_stays_open(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with seekable.open(path) as file:
        file.read(100)
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_module_is_found_from_the_package_alone() -> None:
    program = "import pagein; pagein.seekable.open"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert "seekable" in pagein.__all__


@pytest.mark.parametrize("options", [{"memory": -1}, {"threads": -1}, {"interval": 0}])
def test_impossible_options(path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not be negative"):
        seekable.open(path, **options)  # type: ignore[arg-type]
