"""What the keeper holds so that metrics can be seen: where to ask for them, and a page of numbers.

The sockets stay when the user half is replaced. The page is the kernel half's to write and the user
half's to read: it is root's, and the fd that the user half gets cannot be made one for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket

from pagein.control import listen
from pagein.protocol.numbers import SIZE

SOCKET = "metrics.sock"
"""In the runtime directory."""

LOOPBACK = "127.0.0.1"


class Shown:
    """Fds for both halves; none of them if nobody wants to see anything."""

    def __init__(
        self, stack: contextlib.ExitStack, path: str, port: str | None, *, page: bool = True
    ) -> None:
        """Listen on the Unix socket `path`, and on `port`, as `parse_address` has it.

        All of it is let go with `stack`, but for the name of the socket. Raises OSError.
        """
        self.numbers = self.numbers_to_read = -1
        self.sockets = [stack.enter_context(listen(path)).fileno()]
        if port is not None:
            self.sockets.append(stack.enter_context(_listen(port)).fileno())
        if page:
            self.numbers, self.numbers_to_read = _page(stack)

    @property
    def user_half(self) -> list[str]:
        """Its options."""
        options = [word for fd in self.sockets for word in ("--metrics-fd", str(fd))]
        return [*options, "--numbers-fd", str(self.numbers_to_read)]

    @property
    def user_half_fds(self) -> list[int]:
        """What it inherits."""
        return [fd for fd in (*self.sockets, self.numbers_to_read) if fd >= 0]


def parse_address(text: str) -> tuple[str, int]:
    """Address and port of `PORT`, which is on the loopback, or `ADDRESS:PORT`. Raises OSError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or LOOPBACK
    try:
        ipaddress.ip_address(host)
        if not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
            raise ValueError(port)
    except ValueError:
        cause = "neither PORT nor ADDRESS:PORT, with a port below 65536"
        raise OSError(errno.EINVAL, f"--metrics-port {text}: {cause}") from None
    return host, int(port)


def _listen(text: str) -> socket.socket:
    host, port = parse_address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as problem:
        cause = os.strerror(problem.errno or errno.EIO).lower()
        text = f"--metrics-port {text}: {cause}"
        raise OSError(problem.errno, text) from None


def _page(stack: contextlib.ExitStack) -> tuple[int, int]:
    """The page, to write and to read."""
    fd = os.memfd_create("pagein-numbers", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, fd)
    os.fchmod(fd, 0o600)  # who is not root does not get it by /proc
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, reading)
    return fd, reading
