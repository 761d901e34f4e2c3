"""What the keeper of the front end `fuse` holds; and what that of each front end does.

The runtime directory and the listening sockets are common to both; `Held` adds the FUSE
connections, `heldkernel` the kernel's own device.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil

from pagein.control import listen
from pagein.keeper.half import START_TIMEOUT

_MNT_DETACH = 2


class Runtime:
    """A runtime directory and its sockets, held until `close`; its lock until the process ends."""

    def __init__(self, state_dir: str, *, daemon_control: bool) -> None:
        """Take the runtime directory and listen there; `hold` takes the rest. Raises OSError.

        `daemon_control`: also hold the user half's socket.
        """
        self.state_dir = state_dir
        self.connections = contextlib.ExitStack()
        """The /dev/fuse fds: closed before anything that would ask their server."""
        with contextlib.ExitStack() as stack:
            self._take_lock()
            # Credentials that the user half holds are for its mounts, and end with them.
            shutil.rmtree(self.path("secrets"), ignore_errors=True)
            stack.callback(shutil.rmtree, self.path("secrets"), ignore_errors=True)
            # The user half's also when they are not ours.
            for name in ("control.sock", "daemon.sock", "metrics.sock"):
                stack.callback(_remove, self.path(name))
            self.control = self._listen(stack, "control.sock")
            self.daemon_control = self._listen(stack, "daemon.sock") if daemon_control else -1
            self.stack = stack.pop_all()

    def close(self) -> None:
        """Let go of everything, the connections first."""
        self.connections.close()
        self.stack.close()

    def path(self, name: str) -> str:
        """A file of the runtime directory."""
        return os.path.join(self.state_dir, name)

    def hold(self) -> None:
        """Take what belongs to one front end; all of it is let go by `close`. Raises OSError."""
        raise NotImplementedError

    def _take_lock(self) -> None:
        os.makedirs(self.state_dir, 0o700, exist_ok=True)
        os.chmod(self.state_dir, 0o700)
        lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Never closed: whoever gets the lock after us finds nothing of us left, no process either.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path("kernel-half.json"))

    def _listen(self, stack: contextlib.ExitStack, name: str) -> int:
        sock = stack.enter_context(listen(self.path(name)))
        return sock.fileno()


class Held(Runtime):
    """The two FUSE connections."""

    resend = True
    """Whether the kernel sends lost requests again (6.9 and newer)."""

    def hold(self) -> None:
        """Mount both."""
        self.device_fd = self._fuse("dev")
        self.blob_fd = self._fuse("blobs")

    def _fuse(self, name: str) -> int:
        """Mount a FUSE directory and do its INIT, so that halves come and go without one."""
        # Not before the user half is on its way.
        from pagein.fuse.handshake import handshake
        from pagein.mounts.syscalls import mount_fuse, mounts, umount

        target = os.path.join(os.path.realpath(self.state_dir), name)
        for entry in mounts():
            if entry.target == target:  # of a keeper that was killed: its connection is dead
                umount(target, _MNT_DETACH)
        os.makedirs(target, 0o700, exist_ok=True)
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            mount_fuse(fd, target, name="pagein")
        except BaseException:
            os.close(fd)
            raise
        # At the end the connection is closed first: nobody would answer what umount asks.
        self.stack.callback(_umount_dead, target)
        self.connections.callback(os.close, fd)
        self.resend &= handshake(fd, timeout=START_TIMEOUT).resend
        return fd


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _umount_dead(target: str) -> None:
    """Unmount a FUSE directory whose server is gone; detach it if a mount still stands on it."""
    from pagein.mounts.syscalls import umount

    try:
        umount(target)
    except OSError:
        umount(target, _MNT_DETACH)
