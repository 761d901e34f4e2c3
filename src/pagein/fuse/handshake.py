"""The INIT of a FUSE connection: what is agreed with the kernel once, for the life of a mount.

Done before there is an event loop, by whoever keeps the file descriptor; `connection` serves it.
"""

import errno
import os
import select
import time
from dataclasses import dataclass
from typing import Final

from pagein.fuse import abi

MAX_WRITE: Final = 1 << 20
"""Largest WRITE, in bytes, that is negotiated; larger ones arrive in parts."""
MAX_PAGES: Final = 256
"""Pages per request; also the kernel's own limit unless fs.fuse.max_pages_limit is raised."""
MAX_BACKGROUND: Final = 65535
"""Background requests at once. The default of 12 makes the 65th cold read wait behind 64."""
CONGESTION: Final = 49152
WANTED: Final = (
    abi.Init.ASYNC_READ
    | abi.Init.ATOMIC_O_TRUNC
    | abi.Init.BIG_WRITES
    | abi.Init.ASYNC_DIO
    | abi.Init.PARALLEL_DIROPS
    | abi.Init.MAX_PAGES
    | abi.Init.INIT_EXT
    | abi.Init.HAS_RESEND
)

BUFFER: Final = MAX_WRITE + (64 << 10)
"""Bytes of the longest message."""


@dataclass(frozen=True, slots=True)
class InitInfo:
    """What a handshake agreed on; sizes in bytes."""

    minor: int
    flags: int
    max_readahead: int
    max_write: int
    max_pages: int

    @property
    def resend(self) -> bool:
        """Whether the kernel can send lost requests again (6.9 and newer)."""
        return bool(self.flags & abi.Init.HAS_RESEND)


def handshake(fd: int, *, timeout: float) -> InitInfo:
    """Answer the INIT of a fresh mount on ``fd``; blocks for at most ``timeout`` seconds.

    To be done once per mount, by whoever keeps ``fd``: what is agreed stays with the connection and
    outlives its servers. Raises TimeoutError when no INIT comes, OSError EPERM when ``fd`` is not
    mounted, and OSError EPROTO when the kernel speaks another major version or something else came
    first.
    """
    request = _read_first(fd, time.monotonic() + timeout)
    if request.opcode != abi.Opcode.INIT:
        raise OSError(errno.EPROTO, f"expected FUSE INIT, got opcode {request.opcode}")
    offer = abi.InitIn.parse(request.body)
    if offer.major != abi.KERNEL_VERSION:
        raise OSError(errno.EPROTO, f"the kernel speaks FUSE {offer.major}.{offer.minor}, not 7.x")
    info = InitInfo(
        minor=min(offer.minor, abi.KERNEL_MINOR),
        flags=offer.flags & WANTED,
        max_readahead=min(offer.max_readahead, MAX_WRITE),
        max_write=MAX_WRITE,
        max_pages=MAX_PAGES,
    )
    answer = abi.init_out(
        minor=info.minor,
        flags=info.flags,
        max_readahead=info.max_readahead,
        max_write=info.max_write,
        max_pages=info.max_pages,
        max_background=MAX_BACKGROUND,
        congestion_threshold=CONGESTION,
    )
    os.writev(fd, [abi.out_header(request.unique, 0, len(answer)), answer])
    return info


def _read_first(fd: int, deadline: float) -> abi.Request:
    """Return the first message on ``fd``, whether or not it is non-blocking."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    buffer = bytearray(BUFFER)
    while True:
        wait_ms = max(0, round((deadline - time.monotonic()) * 1000))
        if not poller.poll(wait_ms):
            raise TimeoutError(errno.ETIMEDOUT, "no FUSE INIT: is the file descriptor mounted?")
        try:
            count = os.readv(fd, [buffer])
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOENT) or time.monotonic() >= deadline:
                raise
            continue
        return abi.Request.parse(memoryview(buffer)[:count])
