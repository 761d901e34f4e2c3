"""The kernel half of an exec-daemon: started, asked for mounts, and ended with all of them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pagein.control import ControlError, ask
from pagein.execdaemon import tree
from pagein.mounts import syscalls

_START_TIMEOUT = 60.0
_STATUS_TIMEOUT = 5.0
_END_TIMEOUT = 25.0


class KernelHalf:
    """A keeper that has a kernel half and no user half, in one runtime directory."""

    def __init__(self, state_dir: str, timeout: float) -> None:
        """`timeout`: the deadline of OPEN and CLOSE, in seconds."""
        self._state_dir = os.path.realpath(state_dir)
        self._timeout = timeout

    @property
    def device_directory(self) -> str:
        """Where its device is."""
        return os.path.join(self._state_dir, "dev")

    def start(self, command: Sequence[str]) -> int:
        """Run the keeper until it is ready; its pid. It ends with us. Raises OSError."""
        read, write = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()

        def in_child() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            tree.follow_parent(signal.SIGTERM, parent)

        os.makedirs(self._state_dir, 0o700, exist_ok=True)
        with open(self._path("log"), "ab") as log_file:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(write)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,  # Ctrl-C is for the daemon, whose end is ours
                pass_fds=[write],
                cwd="/",
                preexec_fn=in_child,  # noqa: PLW1509 - there is one thread
            )
        os.close(write)
        process.returncode = 0  # reaped with all other children
        said = _last_line(read)
        if said != "ok":
            raise OSError(errno.EIO, said or f"pagein could not start; see {self._path('log')}")
        return process.pid

    def check(self) -> None:
        """Raise OSError if it has ended, though its process may not be gone yet."""
        try:
            os.stat(self.device_directory)
        except OSError:
            raise self.ended() from None

    def ended(self) -> OSError:
        """What to say when it has."""
        return OSError(errno.EIO, f"the kernel half has ended; see {self._path('log')}")

    def mount(self, question: dict[str, Any]) -> None:
        """Make a mount; waits for the daemon to bind its cache. Raises OSError."""
        ask(self._path("control.sock"), question, timeout=4 * self._timeout + 30)

    def unmount_all(self) -> None:
        """Take all its mounts out of sight: without it they could only fail."""
        targets: list[str] = []
        with contextlib.suppress(ControlError, OSError):
            found = ask(self._path("control.sock"), {"op": "status"}, timeout=_STATUS_TIMEOUT)
            targets = [mount["target"] for mount in found["mounts"]]
        blobs = self._path("blobs") + "/"
        targets += [e.target for e in syscalls.mounts() if e.source.startswith(blobs)]
        _detach(dict.fromkeys(targets))

    def end(self, keepers: Sequence[int]) -> None:
        """Unmount, end the keeper, if it runs, and wait for it."""
        self.unmount_all()
        for pid in keepers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        give_up = time.monotonic() + _END_TIMEOUT
        while set(keepers) & set(tree.descendants()) and time.monotonic() < give_up:
            tree.reap()
            time.sleep(0.01)
        tree.end((), _END_TIMEOUT)
        ours = (self._path("dev"), self._path("blobs"))
        _detach(e.target for e in syscalls.mounts() if e.target in ours)  # of a keeper that died

    def _path(self, name: str) -> str:
        return os.path.join(self._state_dir, name)


def _detach(targets: Iterable[str]) -> None:
    for target in targets:
        with contextlib.suppress(OSError):
            syscalls.umount(target, syscalls.MNT_DETACH)


def _last_line(fd: int) -> str:
    """What a keeper says last on its `--ready-fd`, which is closed here; "" if it just ended."""
    said = b""
    deadline = time.monotonic() + _START_TIMEOUT
    with open(fd, "rb", buffering=0) as stream:
        while select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            more = stream.read(4096)
            if not more:
                return said.decode(errors="replace").strip().rpartition("\n")[2]
            said += more
    return "it does not start"
