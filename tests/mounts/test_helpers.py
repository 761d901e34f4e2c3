"""The helper that is there already: jobs, kills, ends."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pagein.mounts import helper, helpers
from pagein.mounts.erofs import MountError, umount_image
from pagein.mounts.helpers import CURRENT, Helpers

DEADLINE = 60.0


def with_helpers(work: Callable[[Helpers], Awaitable[None]]) -> None:
    """Run `work` where helpers are at hand; none is left at the end."""

    async def main() -> None:
        mine = Helpers()
        CURRENT.set(mine)
        mine.start()
        try:
            await work(mine)
        finally:
            await mine.close()
        assert mine.pid is None

    asyncio.run(main())


async def refused(target: Path) -> None:
    """An unmount that comes back with the helper's own answer."""
    with pytest.raises(MountError, match=r"is not a mount point|not permitted"):
        await umount_image(target, timeout=DEADLINE)


def test_many_jobs_take_one_interpreter(tmp_path: Path) -> None:
    async def work(mine: Helpers) -> None:
        before = mine.pid
        await asyncio.gather(*(refused(tmp_path) for _ in range(8)))
        assert mine.pid == before is not None

    with_helpers(work)


def test_the_next_job_starts_another_when_it_was_killed(tmp_path: Path) -> None:
    async def work(mine: Helpers) -> None:
        before = mine.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await refused(tmp_path)  # by this one, or a helper for it alone
        while mine.pid in (None, before):
            await refused(tmp_path)
        after = mine.pid
        await refused(tmp_path)
        assert mine.pid == after

    with_helpers(work)


def somebody_reads(pipe: Path) -> bool:
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as problem:
        assert problem.errno == errno.ENXIO
        return False
    return True


def test_a_job_that_takes_too_long_is_killed_and_the_helper_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "fifo"
    os.mkfifo(pipe)
    # Stands where an option of the job is read: the process hangs in open(2) until it is killed.
    script = (
        "import pagein.mounts.helper as h\n"
        "def umount(job):\n"
        f"    if job['lazy'] and job['target'] == '/': open({str(pipe)!r})\n"
        "    if job['target'] != '/': raise OSError(1, 'not permitted')\n"
        "    return []\n"
        "h._OPERATIONS['umount'] = umount\n"
        "h.main()"
    )

    async def work(mine: Helpers) -> None:
        await refused(tmp_path)
        before = mine.pid
        with pytest.raises(TimeoutError):
            await mine.ask({"op": "umount", "target": "/", "lazy": True}, 3.0)
        give_up = time.monotonic() + DEADLINE
        while somebody_reads(pipe):  # a second after SIGKILL it is waited for no longer
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)
        assert mine.pid == before
        assert b'"ok": true' in await mine.ask(
            {"op": "umount", "target": "/", "lazy": False}, DEADLINE
        )

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-P", "-c", script, *arguments]

    monkeypatch.setattr(helpers, "command", command)
    with_helpers(work)


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            helpers.command("--serve", str(its.fileno())),
            env=helpers.environment(),
            pass_fds=[its.fileno()],
        )
    ours.close()
    assert process.wait(DEADLINE) == 0


def test_it_ends_when_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "IDLE", 0.01)
    before = signal.getsignal(signal.SIGCHLD)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        try:
            helper.serve(its)
        finally:
            signal.signal(signal.SIGCHLD, before)


def test_a_job_that_nobody_took_is_not_begun() -> None:
    async def main() -> None:
        mine = Helpers()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(helpers, "command", lambda *_: ["/bin/false"])
            with pytest.raises(helpers.NotBegun):
                await mine.ask({"op": "umount", "target": "/"}, DEADLINE)
        await mine.close()

    asyncio.run(main())
