"""An fd that several threads use: closed when none of them does any more.

A call that was given up may still run in its thread, and must not meet another file under the same
number. There is no lock: a mutex asks the clock before it looks (CPython's, up to 3.12), which is a
system call where there is no vDSO, and a READ that is at hand would pay that several times. What
takes its place is that each step is one operation on a list, which no other thread can divide:

* who enters counts itself first and looks then whether the fd is closed to it;
* who closes says so first and counts then;
* whoever of them finds the fd closed and nobody in it takes the number, which only one can.
"""

from __future__ import annotations

import os


class SharedFd:
    """`fd`, which is this object's from now on. In any thread."""

    def __init__(self, fd: int) -> None:
        self.number = fd
        self._left = [fd]
        self._users: list[None] = []
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody can enter any more."""
        return self._closed

    def enter(self) -> bool:
        """One user more, until `leave`; False: it is closed."""
        self._users.append(None)
        if self._closed:
            self.leave()
            return False
        return True

    def leave(self) -> None:
        """One user less; OSError where the last one's close(2) fails."""
        self._users.pop()
        if self._closed:
            self._close_unused()

    def shut(self) -> None:
        """Nobody enters any more; the last user closes it, or `close`."""
        self._closed = True

    def close(self) -> None:
        """As `shut`, and close it if it has no user; once more is harmless."""
        self._closed = True
        self._close_unused()

    def _close_unused(self) -> None:
        if self._users:
            return
        try:
            fd = self._left.pop()
        except IndexError:
            return
        os.close(fd)
