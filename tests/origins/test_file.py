"""A local file as origin: right bytes, and an error for a file that is not what it was."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pagein.origins.file as module
from pagein.origins import Identity, Origin, OriginError, open_origin, resolve

DATA = os.urandom(3_000_000)


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


async def opened(path: Path, timeout: float = 30) -> Origin:
    return open_origin(await resolve(str(path), timeout=30), timeout=timeout)


def fds_of(path: Path) -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").removesuffix(" (deleted)") == str(path):
                found.append(int(name))
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


def test_ranges_and_streams_give_the_bytes(blob: Path) -> None:
    async def main() -> None:
        origin = await opened(blob)
        assert await origin.size() == len(DATA)
        for offset, length in [(0, 1), (0, len(DATA)), (len(DATA), 0), (4095, 8193)]:
            assert await origin.read(offset, length) == DATA[offset : offset + length]
            pieces = [bytes(piece) async for piece in origin.stream(offset, length)]
            assert b"".join(pieces) == DATA[offset : offset + length]
        await origin.close()

    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(-5, 110), st.integers(-5, 110)), max_size=5))
def test_a_range_is_exact_or_refused(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "hundred"
    path.write_bytes(DATA[:100])

    async def main() -> None:
        origin = await opened(path)
        for offset, length in ranges:
            if offset < 0 or length < 0 or offset + length > 100:
                with pytest.raises(OriginError) as caught:
                    await origin.read(offset, length)
                assert caught.value.errno == errno.EINVAL
            else:
                assert await origin.read(offset, length) == DATA[offset : offset + length]
        await origin.close()

    asyncio.run(main())


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    # A write within the clock tick of the first one keeps mtime: not what is tested here.
    os.utime(path, ns=(1, 1))


def grow(path: Path) -> None:
    times = path.stat()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path) -> None:
    times = path.stat()
    os.truncate(path, 10)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, grow, cut])
@pytest.mark.parametrize("read_before", [False, True])
def test_changed_content_is_an_error(
    blob: Path, change: Callable[[Path], None], read_before: bool
) -> None:
    async def main() -> None:
        origin = await opened(blob)
        if read_before:
            assert await origin.read(0, 10) == DATA[:10]
        change(blob)
        for offset in (0, 500_000):
            with pytest.raises(OriginError, match="content changed") as caught:
                await origin.read(offset, 10)
            assert (caught.value.errno, caught.value.retry) == (errno.EIO, False)
        await origin.close()

    asyncio.run(main())


def test_a_replaced_file_is_read_on_but_not_opened(blob: Path) -> None:
    async def main() -> None:
        reading, late = await opened(blob), await opened(blob)
        assert await reading.read(0, 10) == DATA[:10]
        new = blob.with_name("new")
        new.write_bytes(DATA[::-1])
        new.rename(blob)
        assert await reading.read(10, 10) == DATA[10:20]
        with pytest.raises(OriginError, match="content changed"):
            await late.read(0, 10)
        await reading.close()
        await late.close()

    asyncio.run(main())


def test_opened_once_at_the_first_read_and_closed(blob: Path) -> None:
    async def main() -> None:
        origin = await opened(blob)
        assert fds_of(blob) == []
        await asyncio.gather(*(origin.read(i, 1) for i in range(20)))
        (fd,) = fds_of(blob)
        assert not os.get_inheritable(fd)
        await origin.close()
        await origin.close()
        assert fds_of(blob) == []
        with pytest.raises(OriginError, match="closed"):
            await origin.read(0, 1)
        assert fds_of(blob) == []

    asyncio.run(main())


class SlowRead:
    """Holds every pread until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self._real = module._pread_all
        monkeypatch.setattr(module, "_pread_all", self)

    def __call__(self, fd: int, offset: int, length: int) -> bytes:
        self.begun.set()
        assert self.go.wait(30)
        return self._real(fd, offset, length)


def test_close_waits_for_the_read_in_its_thread(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowRead(monkeypatch)

    async def main() -> None:
        origin = await opened(blob)
        read = asyncio.create_task(origin.read(5, 5))
        await asyncio.to_thread(slow.begun.wait, 30)
        await origin.close()
        # Were the number free, the thread could read another file's bytes through it.
        assert len(fds_of(blob)) == 1
        slow.go.set()
        assert await read == DATA[5:10]
        assert fds_of(blob) == []

    asyncio.run(main())


def test_a_short_pread_is_continued(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        return real(fd, min(length, 1000), offset)

    async def main() -> None:
        origin = await opened(blob)
        monkeypatch.setattr(os, "pread", pread)
        assert await origin.read(5, 4321) == DATA[5:4326]
        await origin.close()

    asyncio.run(main())


def test_a_read_that_hangs_ends_at_the_deadline(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowRead(monkeypatch)

    async def main() -> None:
        origin = await opened(blob, timeout=0.01)
        try:
            with pytest.raises(OriginError, match="no data within") as caught:
                await origin.read(0, 5)
            assert (caught.value.errno, caught.value.retry) == (errno.ETIMEDOUT, True)
            await origin.close()
        finally:
            slow.go.set()

    asyncio.run(main())
    assert fds_of(blob) == []


def test_resolve_names_inode_and_time(blob: Path) -> None:
    found = blob.stat()
    assert asyncio.run(resolve(str(blob), timeout=30)) == Identity(
        source=str(blob),
        size=len(DATA),
        etag=f"{found.st_ino}-{found.st_mtime_ns}",
        last_modified=None,
    )


def refusal(source: str) -> OriginError:
    with pytest.raises(OriginError) as caught:
        asyncio.run(resolve(source, timeout=30))
    text = str(caught.value)
    assert text.startswith(f"{source}: ")
    assert "\n" not in text
    assert not caught.value.retry
    return caught.value


def test_resolve_refuses_what_cannot_be_served(tmp_path: Path) -> None:
    empty, fifo = tmp_path / "empty", tmp_path / "fifo"
    empty.touch()
    os.mkfifo(fifo)
    assert refusal(str(tmp_path)).errno == errno.EISDIR
    assert "is a directory: name a file" in str(refusal(str(tmp_path)))
    assert refusal(str(tmp_path / "none")).errno == errno.ENOENT
    assert refusal(str(empty / "x")).errno == errno.ENOTDIR
    assert "is empty" in str(refusal(str(empty)))
    assert "not a regular file" in str(refusal(str(fifo)))
    assert "not a regular file" in str(refusal("/dev/null"))
    assert "must be absolute" in str(refusal("relative/path"))
    assert refusal("/nul\0").errno == errno.EINVAL


def test_resolve_refuses_an_unreadable_file(public_tmp: Path) -> None:
    path = public_tmp / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        error = refusal(str(path))
    finally:
        os.seteuid(user)
    assert error.errno == errno.EACCES
    assert "permission denied" in str(error)


def test_what_is_in_memory_is_at_hand_once_the_file_is_open(blob: Path) -> None:
    async def main() -> None:
        origin = await opened(blob)
        view = memoryview(bytearray(5000))
        assert origin.instant
        assert not origin.at_hand(123, view)  # opening may take long
        await origin.read(0, 1)
        blob.read_bytes()
        if origin.at_hand(123, view):
            assert view == DATA[123:5123]
        else:
            assert not origin.instant  # this file system cannot tell
        await origin.close()
        assert not origin.at_hand(123, view)

    asyncio.run(main())
    assert not fds_of(blob)


def test_what_is_not_wholly_in_memory_is_not_at_hand(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        origin = await opened(blob)
        await origin.read(0, 1)
        view = memoryview(bytearray(8192))
        monkeypatch.setattr(os, "preadv", lambda *_: 4096)
        assert not origin.at_hand(0, view)

        def again(*_: object) -> int:
            raise BlockingIOError(errno.EAGAIN, "not now")

        monkeypatch.setattr(os, "preadv", again)
        with pytest.raises(OSError):
            origin.at_hand(0, view)

        def never(*_: object) -> int:
            raise OSError(errno.EOPNOTSUPP, "never")

        monkeypatch.setattr(os, "preadv", never)
        with pytest.raises(OSError):
            origin.at_hand(0, view)
        assert not origin.instant
        await origin.close()

    asyncio.run(main())
    assert not fds_of(blob)


def test_a_changed_file_is_not_at_hand(blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        origin = await opened(blob)
        await origin.read(0, 1)
        os.utime(blob, ns=(0, 0))
        monkeypatch.setattr(os, "preadv", lambda _fd, views, *_: len(views[0]))
        with pytest.raises(OriginError):
            origin.at_hand(0, memoryview(bytearray(4096)))
        await origin.close()

    asyncio.run(main())
