"""Trace events: the kernel's names, what is said when, and nothing when off."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagein.cachefiles import tracepoints
from pagein.cachefiles.debug import debug
from pagein.cachefiles.tracepoints import ABSENT, EVENTS, Trace, line_of, table, trace
from pagein.fscache import Cookie
from pagein.protocol.messages import decode
from pagein.testing import AnonFd, Fail, Kernel, Step

PAGE = 4096
DOCS = Path(__file__).parents[2] / "docs/events.md"
KERNEL = [
    "ref", "lookup", "mkdir", "tmpfile", "link", "unlink", "rename", "coherency",
    "vol_coherency", "prep_read", "read", "write", "trunc", "mark_active", "mark_failed",
    "mark_inactive", "vfs_error", "io_error", "ondemand_open", "ondemand_copen",
    "ondemand_close", "ondemand_read", "ondemand_cread", "ondemand_fd_write",
    "ondemand_fd_release",
]  # fmt: skip
"""Every TRACE_EVENT(cachefiles_...) of Linux 6.12, in its order."""


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    trace.switch(False)
    debug.set(0)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with Kernel(tmp_path) as kernel:
        yield kernel


def mount(kernel: Kernel, size: int = 2 * PAGE) -> tuple[Cookie, AnonFd]:
    mounting = kernel.mount(b"erofs,image", b"image")
    message = decode(kernel.device.read())
    fd = kernel.device.open_fd(message.object_id)
    kernel.device.write(b"copen %d,%d" % (message.msg_id, size))
    return mounting.result(), fd


def read(kernel: Kernel, cookie: Cookie, fd: AnonFd) -> None:
    reading = kernel.read(cookie, 0, PAGE)
    message = decode(kernel.device.read())
    fd.pwrite(b"x" * PAGE, 0)
    fd.cread(message.msg_id)
    assert reading.result() == b"x" * PAGE


def umount(kernel: Kernel, cookie: Cookie, fd: AnonFd) -> None:
    leaving = kernel.umount(cookie)
    kernel.device.read()
    fd.close()
    leaving.result()


def said() -> list[tuple[str, dict[str, Any]]]:
    """Names without their prefix, and fields."""
    records = []
    for record in trace.records():
        assert record.pop("t") > 0
        records.append((record.pop("event").removeprefix("cachefiles_"), record))
    return records


def test_every_tracepoint_of_the_kernel_has_an_event_or_a_reason() -> None:
    assert sorted([event.name for event in EVENTS] + list(ABSENT)) == sorted(KERNEL)
    assert [e.name for e in EVENTS] == [name for name in KERNEL if name not in ABSENT]


def test_the_docs_have_the_table() -> None:
    assert table() in DOCS.read_text()


def test_a_life(kernel: Kernel) -> None:
    kernel.bind()
    trace.switch(True)
    cookie, fd = mount(kernel)
    read(kernel, cookie, fd)
    inode = cookie.file._file.inode
    umount(kernel, cookie, fd)
    path = cookie.object.path.decode()
    volume = str(kernel.directory / "cache/Ierofs,image")
    assert said() == [
        ("ref", {"o": "image", "u": 1, "why": "NEW obj"}),
        ("mkdir", {"o": "", "path": volume}),
        ("vol_coherency", {"o": "", "path": volume, "why": "VOL OK"}),
        ("ondemand_open", {"o": "image", "mid": 0, "oid": 1, "fd": 0xFFFFFFFF, "f": 0}),
        ("ondemand_copen", {"o": "image", "mid": 0, "l": 2 * PAGE}),
        ("lookup", {"o": path, "e": -2}),
        ("tmpfile", {"o": path, "B": inode}),
        ("link", {"o": path, "B": inode}),
        ("mark_active", {"o": path, "B": inode}),
        ("prep_read", {"o": "image", "why": "found-hole", "s": 0, "l": PAGE}),
        ("ondemand_read", {"o": "image", "mid": 1, "oid": 1, "s": 0, "l": PAGE}),
        ("ondemand_fd_write", {"o": "image", "s": 0, "l": PAGE}),
        ("write", {"o": path, "s": 0, "l": PAGE}),
        ("ondemand_cread", {"o": "image", "mid": 1}),
        ("read", {"o": path, "s": 0, "l": PAGE}),
        ("ref", {"o": "image", "u": 1, "why": "SEE withdraw_cookie"}),
        ("ondemand_close", {"o": "image", "mid": 2, "oid": 1}),
        ("mark_inactive", {"o": path, "B": inode}),
        ("ref", {"o": "image", "u": 0, "why": "PUT detach"}),
        ("ondemand_fd_release", {"o": "image", "oid": 1}),
    ]
    assert trace.count == len(said()) and trace.lost == 0


def test_files_that_are_stale_or_no_files(kernel: Kernel) -> None:
    kernel.bind()
    cookie, fd = mount(kernel)
    umount(kernel, cookie, fd)
    path = kernel.directory / cookie.object.path.decode()
    trace.switch(True)
    umount(kernel, *mount(kernel, 3 * PAGE))  # of another size
    assert ("coherency", {"o": cookie.object.path.decode(), "why": "BAD"}) in said()
    assert [f["w"] for name, f in said() if name == "unlink"] == ["stale"]
    with path.open("r+b") as file:
        file.truncate(PAGE)
    umount(kernel, *mount(kernel, 3 * PAGE))
    changed = {"o": "", "why": "SHRINK", "from": PAGE, "to": 3 * PAGE}
    assert ("trunc", changed) in said()
    path.unlink()
    path.mkdir()
    umount(kernel, *mount(kernel, 3 * PAGE))
    assert [f["path"] for name, f in said() if name == "rename"] == [str(path)]


def test_failures(kernel: Kernel) -> None:
    kernel.bind()
    cookie, fd = mount(kernel)
    trace.switch(True)
    kernel.faults.add(Step.STORE, Fail(28))
    with pytest.raises(OSError):
        fd.pwrite(b"x" * PAGE, 0)
    failed = {"o": cookie.object.path.decode(), "where": "write", "e": -28}
    assert ("vfs_error", failed) in said()
    umount(kernel, cookie, fd)
    kernel.faults.add(Step.LOOK_UP, Fail(5))
    mounting = kernel.mount(b"erofs,image", b"image")
    message = decode(kernel.device.read())
    kernel.device.open_fd(message.object_id)
    kernel.device.write(b"copen %d,-5" % message.msg_id)
    assert mounting.done
    assert ("ref", {"o": "image", "u": 1, "why": "SEE lookup_failed"}) in said()
    assert ("ondemand_copen", {"o": "image", "mid": message.msg_id, "l": -5}) in said()


def test_off_nothing_is_kept_and_no_memory_taken(kernel: Kernel) -> None:
    kernel.bind()
    before = trace.count
    here = tracemalloc.Filter(True, tracepoints.__file__)
    tracemalloc.start()
    try:
        cookie, fd = mount(kernel)
        read(kernel, cookie, fd)
        umount(kernel, cookie, fd)
        kept = tracemalloc.take_snapshot().filter_traces([here]).traces
        assert not kept, kept
        assert trace.count == before
        trace.switch(True)  # and on, it is this filter that sees it
        for number in range(2000):
            trace.event(tracepoints.ONDEMAND_CREAD, b"k", number)
        assert tracemalloc.take_snapshot().filter_traces([here]).traces
    finally:
        tracemalloc.stop()


def test_the_oldest_are_forgotten() -> None:
    few = Trace(capacity=2)
    few.switch(True)
    for number in range(5):
        few.event(tracepoints.ONDEMAND_CREAD, b"k", number)
    assert [record["mid"] for record in few.records()] == [3, 4]
    assert (few.count, few.lost) == (5, 3)
    few.switch(False)
    assert few.count == 5  # they can still be shown
    few.switch(True)
    assert (few.count, few.lost, list(few.records())) == (0, 0, [])


def test_a_line() -> None:
    record = {"t": 1.5, "event": "cachefiles_lookup", "o": "a", "l": 4096, "e": -28}
    assert line_of(record) == "1.500000: cachefiles_lookup: o=a l=1000 e=-28"


# ---- the debug mask -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "there", "not_there"),
    [
        (b"0", [], ["==>", "<==", "    "]),
        (b"1", ["==> cachefiles_daemon_copen(0,8192)"], ["<==", "    "]),
        (b"2", ["<== cachefiles_daemon_copen() = 12"], ["==>", "    "]),
        (b"4", ["    object image: COPEN: CLOSE -> OPEN"], ["==>", "<=="]),
        (b"0x7", ["==> cachefiles_lookup_cookie(erofs,image,image)", "<==", "    OPEN 0"], []),
    ],
)
def test_each_bit(
    kernel: Kernel,
    caplog: pytest.LogCaptureFixture,
    mask: bytes,
    there: list[str],
    not_there: list[str],
) -> None:
    kernel.bind()
    kernel.device.write(b"debug " + mask)
    caplog.clear()
    mount(kernel)
    lines = [r.getMessage() for r in caplog.records if r.name == "pagein.cachefiles.debug"]
    for beginning in there:
        assert any(line.startswith(beginning) for line in lines), lines
    for beginning in not_there:
        assert not any(line.startswith(beginning) for line in lines), lines


def test_a_refused_command_shows_its_errno(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.bind()
    kernel.device.write(b"debug 3")
    with pytest.raises(OSError):
        kernel.device.write(b"tag again")
    assert "<== cachefiles_daemon_tag() = -17" in caplog.text


def test_the_mask_outlives_the_open_that_set_it(kernel: Kernel) -> None:
    kernel.bind()
    kernel.device.write(b"debug 4")
    kernel.device.close()
    kernel.bind()
    assert debug.mask == 4
    kernel.device.write(b"debug")
    assert debug.mask == 0
