"""A thread that works one thing off after the other, a few behind whoever gives it."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVarTuple

from pagein.images.layers.heap import heap

Ts = TypeVarTuple("Ts")

SWITCH: Final = 5e-4
"""Seconds after which a thread that runs Python lets others do so, while there are workers."""


OBJECTS: Final = 50_000
"""That are made before the garbage collector looks for cycles, while there are workers."""


class Switching:
    """Has threads take turns more often while somebody is in it, of all threads of the process.

    One that decompresses or hashes holds no lock, but has to have it back between two pieces: by
    default it waits 5 ms for that while another one parses, and a processor idles. And the garbage
    collector has rest: it would go through a tree again and again that only ever grows. So has the
    system, which need not give memory and take it back all the time (`heap`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._interval = 0.0
        self._threshold = (0, 0, 0)

    def enter(self) -> None:
        """One user more."""
        with self._lock:
            if not self._users:
                self._interval, self._threshold = sys.getswitchinterval(), gc.get_threshold()
                sys.setswitchinterval(min(self._interval, SWITCH))
                objects, *older = self._threshold
                if objects:  # else it is off
                    gc.set_threshold(max(objects, OBJECTS), *older)
                heap.hold()
            self._users += 1

    def leave(self) -> None:
        """One less; the last one puts all back as it was."""
        with self._lock:
            self._users -= 1
            if not self._users:
                sys.setswitchinterval(self._interval)
                gc.set_threshold(*self._threshold)
                heap.release()


switching = Switching()


class Worker(Generic[*Ts]):
    """Calls `call` with what is submitted, in order, in a thread that begins with the first.

    What `call` raises is raised by a later `submit`, or by `finish`. At most `behind` things wait:
    `submit` does so too beyond that. `close` it in any case. One thread gives, at a time.
    """

    def __init__(self, name: str, call: Callable[[*Ts], object], behind: int) -> None:
        self._name = name
        self._call = call
        self._behind = behind
        self._waiting = 0
        self._todo: SimpleQueue[tuple[*Ts] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, *arguments: *Ts) -> None:
        """Have one more done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name)
            self._thread.start()
        self._todo.put(arguments)
        self._waiting += 1
        if self._waiting > self._behind:
            self._take()

    def finish(self) -> None:
        """Wait until everything is done."""
        while self._waiting:
            self._take()

    def close(self) -> None:
        """End the thread, also half-way; twice is fine. What it has not begun is not done."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            while True:
                self._todo.get_nowait()
        except Empty:
            self._todo.put(None)
        self._waiting = 0
        thread.join()
        # Who is called refers to us, mostly, and may hold large buffers: let go of it now.
        self._call = _nothing

    def _take(self) -> None:
        self._waiting -= 1
        error = self._done.get()
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame: together they would be garbage

    def _run(self) -> None:
        while (arguments := self._todo.get()) is not None:
            error = None
            try:
                self._call(*arguments)
            except BaseException as raised:
                error = raised
            self._done.put(error)
            del arguments, error  # they may hold buffers


def _nothing(*_: object) -> None:
    """What a worker that was closed does."""
