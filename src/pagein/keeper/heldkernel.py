"""What the keeper of the front end `kernel` holds: /dev/cachefiles, bound, and the cache directory.

The kernel's cache lives as long as its device is open somewhere (facts cachefiles-kernel 1, 7.5).
So it is opened here, where no data from the network comes by, and bound here: the kernel goes to
the cache as who says `bind`, and that has to be root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from pagein.keeper.held import Runtime
from pagein.protocol import commands

_BIND_TEXTS = {
    errno.EINVAL: "this kernel has no on-demand mode (CONFIG_CACHEFILES_ONDEMAND)",
    errno.EOPNOTSUPP: "the kernel keeps no cache on this file system; use ext4, xfs or btrfs",
    errno.EBUSY: "the cache is in use",
    errno.ENOBUFS: "too little space is left for a cache",
}


class HeldKernel(Runtime):
    """The kernel's device, for one cache directory."""

    def __init__(self, state_dir: str, *, device: str, cache: str) -> None:
        """`hold` opens `device` and binds it to `cache`; OSErrors are one line."""
        self.device = device
        self.cache = cache
        super().__init__(state_dir, daemon_control=True)

    def hold(self) -> None:
        """Open the device, and bind it."""
        _lock_cache(self.stack, self.cache)
        self.device_fd = _open(self.device)
        self.stack.callback(os.close, self.device_fd)
        from pagein.daemon.loop import TAG

        for command in (commands.dir_(self.cache), commands.tag(TAG), commands.bind(ondemand=True)):
            try:
                os.write(self.device_fd, command)
            except OSError as problem:
                text = _BIND_TEXTS.get(problem.errno or 0, problem.strerror)
                raise OSError(problem.errno, text, self.cache) from None


def _lock_cache(stack: contextlib.ExitStack, cache: str) -> None:
    """Keep other kernel halves and the library out: the lock that they take too."""
    os.makedirs(cache, 0o711, exist_ok=True)
    fd = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "the cache is in use by another pagein", cache) from None


def _open(device: str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno != errno.EBUSY:
            raise
    holders = holders_of(device)
    if holders:
        text = f"in use by {holders[0]}: end it, or go through it; a kernel has one cache"
    else:
        text = "in use by a process that cannot be seen from here (another container?)"
    raise OSError(errno.EBUSY, text, device)


def holders_of(device: str) -> list[str]:
    """Who has the device open, or an object of its cache: `process 17 (its command line)`."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended, or is not ours to look at
            links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
            if any(link == device or "[cachefiles]" in link for link in links):
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = os.fsdecode(file.read()).replace("\0", " ").split()
                found.append(f"process {pid} ({' '.join(words)[:80]})")
    return found
