"""A daemon of pagein on the kernel's own device, driven by its command line."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.harness import DEADLINE, Pagein, wait_for

from pagein.control import ControlError, ask, listen

DEVICE = Path("/dev/cachefiles")
INJECTION = Path("/proc/sys/cachefiles/error_injection")


def device_is_free() -> bool:
    """Whether nobody holds the device, or anything that came from it."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        assert problem.errno == errno.EBUSY
        return False
    return True


class Served(Pagein):
    """`pagein daemon --device /dev/cachefiles`, and mounts that the kernel asks it for."""

    daemon: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Run the daemon until it answers."""
        self.state.mkdir(exist_ok=True)
        argv = self.argv("daemon", "--device", DEVICE, *options)
        with (self.state / "log").open("ab") as log:
            self.daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self.answers, patience=DEADLINE)

    def answers(self) -> bool:
        """Whether the daemon does; it must not have ended."""
        assert self.daemon is not None
        assert self.daemon.poll() is None, self.log()
        try:
            self.ask({"op": "status"})
        except (ControlError, OSError):
            return False
        return True

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Ask the daemon."""
        return ask(str(self.state / "daemon.sock"), question, timeout=DEADLINE)

    def fetched(self) -> int:
        """Bytes fetched for the blobs that are open."""
        return sum(blob["fetched"] for blob in self.ask({"op": "status"})["blobs"])

    def mount(
        self, *sources: str, target: Path | None = None, options: tuple[str, ...] = ()
    ) -> None:
        """Mount through the kernel."""
        super().mount(*sources, target=target, options=("--front-end", "kernel", *options))

    def stop(self) -> None:
        """End the daemon as a service manager does; the device must be free then."""
        assert self.daemon is not None
        self.daemon.terminate()
        assert self.daemon.wait(DEADLINE) == 0, self.log()
        self.daemon = None
        wait_for(device_is_free)

    def leftovers(self) -> list[str]:
        """As for any pagein, but a daemon without privileges cannot remove its socket's name."""
        return [found for found in super().leftovers() if not found.endswith("/daemon.sock")]

    def close(self) -> None:
        """Unmount, end the daemon; nothing may be left."""
        try:
            super().close()
        finally:
            if self.daemon is not None:
                self.daemon.kill()
                self.daemon.wait(DEADLINE)
                self.daemon = None
            wait_for(device_is_free)


class Held(Served):
    """The same with the device and the control socket held here, so that daemons may be killed."""

    def __init__(self, directory: Path, **options: Any) -> None:
        """Open the device."""
        super().__init__(directory, **options)
        self.state.mkdir(exist_ok=True)
        self._stack = contextlib.ExitStack()
        self._control = self._stack.enter_context(listen(str(self.state / "daemon.sock")))
        self.fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        self._stack.callback(os.close, self.fd)

    def start(self, *options: str) -> None:
        """Run a daemon, the first or the next, until it is ready."""
        ready, write = os.pipe2(os.O_CLOEXEC)
        argv = [sys.executable, "-P", "-m", "pagein.daemon", "--device", str(DEVICE)]
        argv += ["--device-fd", str(self.fd), "--dir-fd", "-1", "--cache", str(self.cache)]
        argv += ["--control-fd", str(self._control.fileno()), "--ready-fd", str(write)]
        argv += ["--timeout", "30", "--user", "nobody", *options]
        with (self.state / "log").open("ab") as log:
            self.daemon = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self.fd, self._control.fileno(), write],
            )
        os.close(write)
        with os.fdopen(ready, "rb") as pipe:
            assert pipe.read(1) == b"r", self.log()

    def kill(self) -> None:
        """End the daemon as nothing can prepare for; its fds are closed then."""
        assert self.daemon is not None
        assert self.daemon.poll() is None, self.log()
        self.daemon.kill()
        self.daemon.wait(DEADLINE)
        self.daemon = None

    def stop(self) -> None:
        """End the daemon and let go of the device."""
        assert self.daemon is not None
        self.daemon.terminate()
        assert self.daemon.wait(DEADLINE) == 0, self.log()
        self.daemon = None
        self._stack.close()
        wait_for(device_is_free)

    def close(self) -> None:
        """Let go of everything."""
        if self.daemon is not None:
            self.kill()
        self._stack.close()  # whoever still waits for an answer gets EIO
        super().close()


@contextlib.contextmanager
def served_in(directory: Path, **options: Any) -> Iterator[Served]:
    """A `Served` that is ended; its daemon is not started yet."""
    mine = Served(directory, **options)
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
