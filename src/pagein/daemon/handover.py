"""The device as the keeper hands it over: file descriptors in a message on the socket to it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Final

from pagein.daemon.filedevice import FileDevice

PATIENCE: Final = 60.0
"""Seconds until there is a device: more than the keeper waits for the kernel half to serve it."""
_MOST = 2  # the device, and the directory of one of ours


async def device_from(line: socket.socket, *, timeout: float) -> FileDevice:
    """The device that comes on `line`, and say there that it did; `timeout` is the device's.

    Raises OSError: ETIMEDOUT when it does not come, ECONNRESET when the keeper has gone.
    """
    line.setblocking(False)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(line, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), PATIENCE)
    except TimeoutError:
        raise OSError(errno.ETIMEDOUT, f"the keeper gave no device in {PATIENCE:g} s") from None
    finally:
        loop.remove_reader(line)
    _, fds, _, _ = socket.recv_fds(line, 1, _MOST, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    line.send(b"r")
    line.close()
    return FileDevice.from_fd(fds[0], fds[1] if len(fds) == _MOST else None, timeout=timeout)
