"""While a container runs: signals go in, a terminal's bytes both ways, an exit status comes out.

One loop over file descriptors, in a program that does nothing else meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import termios
import tty
from collections.abc import Iterator, Sequence
from typing import Final

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_INSIST: Final = 3
"""So many SIGINT or SIGTERM, and the container is killed: its first process may ignore them."""
_CHUNK: Final = 65536
_DRAIN: Final = 0.2  # seconds for what a terminal still holds after the last process has gone
_CONSOLE: Final = 10.0


class Signals:
    """Signals to be forwarded are noted from here on, and read from a file descriptor."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old = {
            number: signal.signal(number, lambda *_: None)
            for number in (*FORWARDED, signal.SIGWINCH)
        }
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read

    def take(self) -> bytes:
        """The numbers of those that have come."""
        try:
            return os.read(self._read, 4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Let signals do again what they did before."""
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """The terminal passes every byte on, as the container's own terminal will interpret them."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # it may have hung up
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def take_console(listener: socket.socket) -> int:
    """The master of the container's terminal, which runc sends. Raises OSError."""
    listener.settimeout(_CONSOLE)
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(_CONSOLE)
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        raise OSError(errno.EIO, "runc sent no terminal")
    return fds[0]


def terminal_size(fd: int) -> tuple[int, int]:
    """Rows and columns of a terminal; 0 if it does not know them."""
    return termios.tcgetwinsize(fd)


def _resize(console: int) -> None:
    """Give the container's terminal the size of ours."""
    with contextlib.suppress(termios.error):
        termios.tcsetwinsize(console, termios.tcgetwinsize(0))


def wait(
    pid: int, signals: Signals, *, stop_signal: int = signal.SIGTERM, console: int | None = None
) -> int:
    """Serve the container whose first process is `pid`, our child, to its end; its exit status.

    128 + n when signal n ended it. `stop_signal` is what SIGTERM becomes, by the image's wish.
    `console` is the master of its terminal, and closed here: when our terminal hangs up, so does
    the container's.
    """
    insisted = 0
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    try:
        for fd in (pidfd, signals.fileno(), *((0, console) if console is not None else ())):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if signals.fileno() in ready:
                insisted += _forward(signals.take(), pid, stop_signal, console)
                if insisted >= _INSIST:
                    _send(pid, signal.SIGKILL)
            if pidfd in ready:
                if console is not None:
                    _drain(console)
                return _status(os.waitpid(pid, 0)[1])
            if console is not None and not _copy_ready(ready, console):
                poll.unregister(0)
                poll.unregister(console)
                os.close(console)
                console = None
    finally:
        os.close(pidfd)
        if console is not None:
            os.close(console)


def _copy_ready(ready: set[int], console: int) -> bool:
    """Copy what has come, either way; False when one of the terminals has hung up."""
    ways = ((0, console), (console, 1))
    return all(_copy(source, target) for source, target in ways if source in ready)


def _forward(numbers: Sequence[int], pid: int, stop_signal: int, console: int | None) -> int:
    """Pass signals on; how many of them ask for the end."""
    for number in numbers:
        if number == signal.SIGWINCH:
            if console is not None:
                _resize(console)
        elif number in FORWARDED:
            _send(pid, stop_signal if number == signal.SIGTERM else number)
    return sum(number in (signal.SIGINT, signal.SIGTERM) for number in numbers)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _copy(source: int, target: int) -> bool:
    """Copy what is there; False at the end, which a terminal's master says with EIO."""
    try:
        data = os.read(source, _CHUNK)
        while data:
            data = data[os.write(target, data) :]
            if not data:
                return True
    except OSError:
        pass
    return False


def _drain(console: int) -> None:
    while select.select([console], [], [], _DRAIN)[0]:
        if not _copy(console, 1):
            return


def _status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
