"""pagein on the kernel's own device, driven by its command line."""

import contextlib
import errno
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.harness import DEADLINE, Pagein, wait_for

from pagein.control import ControlError, ask

DEVICE = Path("/dev/cachefiles")
INJECTION = Path("/proc/sys/cachefiles/error_injection")
LINUX_6_1 = os.uname().release.startswith("6.1.")
"""Its EROFS reads no compressed file through fscache (facts 13), and no image but from a device;
its tmpfs keeps no user extended attributes."""
KEEPER, DEPUTY, USER_HALF = "pagein.keeper", "pagein.kernelhalf.linux", "pagein.daemon"


def drop_caches() -> None:
    """Let the guest's kernel drop every clean page, directory entry and inode."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def device_is_free() -> bool:
    """Whether nobody holds the device, or anything that came from it."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        assert problem.errno == errno.EBUSY
        return False
    return True


def fds_of(pid: int) -> dict[int, str]:
    """What a process has open of the cache."""
    found = {}
    with contextlib.suppress(OSError):  # it ended meanwhile, or one was closed
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if "cachefiles" in target:
                found[int(link.name)] = target
    return found


class Served(Pagein):
    """A pagein whose mounts go through the kernel; its keeper comes with the first of them."""

    def mount(
        self, *sources: str, target: Path | None = None, options: tuple[str, ...] = ()
    ) -> None:
        """Mount through the kernel."""
        super().mount(*sources, target=target, options=("--front-end", "kernel", *options))

    def pid(self, module: str) -> int:
        """The process that runs a part; waits until there is one."""
        pids: list[int] = wait_for(lambda: self._pids(module))
        return pids[0]

    def _pids(self, module: str) -> list[int]:
        return [pid for pid, line in self.processes().items() if f" -m {module} " in line]

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Ask the user half."""
        return ask(str(self.state / "daemon.sock"), question, timeout=DEADLINE)

    def fetched(self) -> int:
        """Bytes fetched for the blobs that are open."""
        return sum(blob["fetched"] for blob in self.ask({"op": "status"})["blobs"])

    def kill(self, module: str = USER_HALF) -> int:
        """End a part as nothing can prepare for, if it is there; its pid, or 0."""
        for pid in self._pids(module):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
                wait_for(functools.partial(self._gone, pid))
                return pid
        return 0

    def _gone(self, pid: int) -> bool:
        return pid not in self.processes()

    def end(self) -> None:
        """Wait until nothing runs any more, and the device is free."""
        wait_for(lambda: not self.leftovers())
        wait_for(device_is_free)

    def close(self) -> None:
        """Unmount, end everything; nothing may be left."""
        super().close()
        wait_for(device_is_free)


class Daemon(Served):
    """`pagein daemon --device /dev/cachefiles`, which stays when nothing is mounted."""

    keeper: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Run the daemon until it answers."""
        self.state.mkdir(exist_ok=True)
        argv = self.argv("daemon", "--device", DEVICE, *options)
        with (self.state / "log").open("ab") as log:
            self.keeper = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self.answers, patience=DEADLINE)

    def answers(self) -> bool:
        """Whether the daemon does; it must not have ended."""
        assert self.keeper is not None
        assert self.keeper.poll() is None, self.log()
        try:
            self.ask({"op": "status"})
        except (ControlError, OSError):
            return False
        return True

    def stop(self) -> None:
        """End the daemon as a service manager does; the device must be free then."""
        assert self.keeper is not None
        self.keeper.terminate()
        assert self.keeper.wait(DEADLINE) == 0, self.log()
        self.keeper = None
        assert device_is_free()

    def close(self) -> None:
        """Unmount, end the daemon; nothing may be left."""
        if self.keeper is not None:
            self.keeper.terminate()
            self.keeper.wait(DEADLINE)
            self.keeper = None
        super().close()


@contextlib.contextmanager
def daemon_in(directory: Path, **options: Any) -> Iterator[Daemon]:
    """A `Daemon` that is ended; it is not started yet."""
    mine = Daemon(directory, **options)
    try:
        yield mine
    finally:
        mine.close()


def reader(tree: Path) -> subprocess.Popen[str]:
    """A process that reads every file of `tree` and prints checksums as `digest  name`."""
    command = "find . -type f -print0 | sort -z | xargs -0 -r sha256sum --"
    argv = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.Popen(argv, cwd=tree, stdout=subprocess.PIPE, text=True)


def checksums(process: subprocess.Popen[str]) -> dict[str, str]:
    """What a `reader` found; it must have read everything."""
    said, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    lines = (line.split("  ", 1) for line in said.splitlines())
    return {name: digest for digest, name in lines}
