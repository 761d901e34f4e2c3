"""The control sockets of both halves: one JSON object a line, a question and its answer.

Only the command line talks here, on Unix sockets in the runtime directory (0700); between the
halves there is the device and nothing else. Questions are `{"op": ..., ...}`, answers
`{"ok": true, ...}` or `{"ok": false, "errno": N, "error": "one line"}`. This is who asks;
`controlserver`, which needs an event loop, is who answers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

Answer = dict[str, Any]
_CONNECT_TIMEOUT = 10.0


class ControlError(OSError):
    """A half answered with an error, or did not answer; `strerror` is one line for the user."""


class NotListening(ControlError):
    """Nobody is at this socket."""


def message_of(problem: BaseException) -> str:
    """What went wrong, in one line, with the file name that an OSError carries."""
    if isinstance(problem, OSError) and problem.strerror:
        name = os.fsdecode(problem.filename) if problem.filename is not None else ""
        return f"{name}: {problem.strerror}" if name else problem.strerror
    return str(problem) or type(problem).__name__


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """A name for `path` that fits a socket address, which has room for 107 bytes."""
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


def listen(path: str) -> socket.socket:
    """A listening Unix socket at `path`, in place of what a dead one left there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if os.path.exists(path):
            os.unlink(path)
        with _short(path) as name:
            sock.bind(name)
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection:
    """A connection to a half, for programs without a loop; as long as it is open, it stays."""

    def __init__(self, path: str) -> None:
        """Connect. Raises ControlError; NotListening (ENOENT, ECONNREFUSED) without anybody."""
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.settimeout(_CONNECT_TIMEOUT)
            with _short(path) as name:
                self._sock.connect(name)
        except OSError as problem:
            self._sock.close()
            if problem.errno in (errno.ENOENT, errno.ECONNREFUSED):
                raise NotListening(problem.errno, problem.strerror, path) from None
            raise self._failed(problem) from None

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    def ask(self, question: dict[str, Any], *, timeout: float) -> Answer:
        """Ask one question and return the answer. Raises ControlError as `say` and `answer`."""
        self.say(question, timeout=timeout)
        return self.answer(timeout=timeout)

    def say(self, question: dict[str, Any], *, timeout: float) -> None:
        """Send a question; it waits there if the half is only about to start."""
        try:
            self._sock.settimeout(timeout)
            self._sock.sendall(json.dumps(question).encode() + b"\n")
        except TimeoutError:
            raise ControlError(errno.ETIMEDOUT, f"not heard within {timeout:g} s") from None
        except OSError as problem:
            raise self._failed(problem) from None

    def answer(self, *, timeout: float) -> Answer:
        """Wait for the answer to the question that was sent.

        Raises ControlError: what the half answered, ETIMEDOUT after `timeout` seconds, ECONNRESET
        when it went away before it answered.
        """
        try:
            self._sock.settimeout(timeout)
            with self._sock.makefile("rb") as stream:
                line = stream.readline()
        except TimeoutError:
            raise ControlError(errno.ETIMEDOUT, f"no answer within {timeout:g} s") from None
        except OSError as problem:
            raise self._failed(problem) from None
        if not line:
            raise ControlError(errno.ECONNRESET, "it was restarted before it answered")
        answer: Answer = json.loads(line)
        if not answer.get("ok"):
            raise ControlError(answer.get("errno", errno.EIO), answer.get("error", "failed"))
        return answer

    def _failed(self, problem: OSError) -> ControlError:
        number = problem.errno or errno.EIO
        return ControlError(number, problem.strerror or str(problem), self._path)


def ask(path: str, question: dict[str, Any], *, timeout: float) -> Answer:
    """Connect, ask one question and return the answer. Raises ControlError as `Connection`."""
    with contextlib.closing(Connection(path)) as connection:
        return connection.ask(question, timeout=timeout)
