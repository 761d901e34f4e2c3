"""What a scenario is given: a kernel, an empty cache directory, a transcript."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.scenarios import image
from tests.scenarios.disk import Disk
from tests.scenarios.files import DEADLINE, Anon, Device, poll_mask
from tests.scenarios.kernels import Kernel
from tests.scenarios.netfs import Netfs, Pending
from tests.scenarios.room import Room
from tests.scenarios.transcript import Transcript

from pagein.protocol.messages import MSG_MAX_SIZE, Open, Read
from pagein.protocol.space import State

_FLAGS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
LIMIT = 45.0
"""Seconds that a scenario may take altogether."""


class World:
    """The device, the netfs and the disk of one scenario."""

    def __init__(self, kernel: Kernel, directory: Path) -> None:
        self.kernel = kernel
        self.directory = directory
        """Empty, on the same file system as the cache; not the cache."""
        self.log = Transcript()
        self.cache = directory / "cache-directory"
        self.cache.mkdir()
        self.log.names = {str(self.cache): "$CACHE", str(directory): "$DIR"}
        self.netfs = Netfs(kernel.netfs, self.log)
        self.disk = Disk(self.cache, self.log)
        self._devices: list[Device] = []
        self._room: Room | None = None

    def room(self, block: int = 4096) -> Room:
        """Make the cache directory a small file system of its own."""
        self._room = Room(self.cache, self.directory / "image", self.log, block)
        return self._room

    # ---- the device --------------------------------------------------------------------------

    def try_open(self, flags: int = os.O_RDWR, *, name: str = "device") -> Device | None:
        """Open the device now; None if that is refused."""
        what = f"open {name} {_FLAGS[flags & os.O_ACCMODE]}"
        number = self.log.call(what, lambda: self._open(flags), lambda _: "ok")
        return self._device(number, name) if number is not None else None

    def open(self, flags: int = os.O_RDWR, *, name: str = "device") -> Device:
        """Open the device, once whatever came before has let go of it."""
        number = self._open_when_free(flags)
        self.log.say(f"open {name} {_FLAGS[flags & os.O_ACCMODE]}: ok")
        return self._device(number, name)

    def _open(self, flags: int) -> int:
        return os.open(self.kernel.device, flags | os.O_CLOEXEC)

    def _open_when_free(self, flags: int) -> int:
        give_up = time.monotonic() + DEADLINE
        while True:
            try:
                return self._open(flags)
            except OSError as problem:
                if problem.errno != errno.EBUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.002)

    def _device(self, number: int, name: str) -> Device:
        device = Device(number, name, self.log, self.kernel)
        self._devices.append(device)
        return device

    def bound(self, *, name: str = "device", mode: bytes = b"bind ondemand") -> Device:
        """Open the device and bind the cache directory."""
        device = self.open(name=name)
        device.write(b"dir " + os.fsencode(self.cache))
        device.write(mode)
        return device

    def state(self, device: Device, size: int = MSG_MAX_SIZE) -> None:
        """Read the state line of the original mode; its marks as per cents of the file system."""
        what = f"{device.name}: read" + ("" if size == MSG_MAX_SIZE else f" of {size}")
        self.log.call(what, lambda: os.read(device.number, size), self._in_per_cent)

    def _in_per_cent(self, line: bytes) -> str:
        if not line:
            return "0"
        state, found = State.decode(line), os.statvfs(self.cache)
        whole = {"f": found.f_files // 100, "b": found.f_blocks // 100}
        marks = " ".join(
            f"{each.name}={getattr(state.marks, each.name) / whole[each.name[0]]:g}%"
            for each in dataclasses.fields(state.marks)
        )
        released = f"freleased={state.freleased} breleased={state.breleased}"
        return f"cull={state.culling:d} {marks} {released}"

    def cull(self, device: Device, directory: Path, name: str, verb: str = "cull") -> int | None:
        """Write `cull NAME`, or `inuse NAME`, from a working directory."""
        self.log.say(f"in {directory}:")
        before = Path.cwd()
        os.chdir(directory)
        try:
            return device.write(b"%s %s" % (verb.encode(), os.fsencode(name)))
        finally:
            os.chdir(before)

    # ---- a daemon's ordinary work -------------------------------------------------------------

    def mounted(
        self, device: Device, name: str = "a", fsid: str = "blob", domain: str | None = None
    ) -> Anon:
        """Mount an image, none of which is there; returns its anonymous fd.

        OPEN gets id 0 and the READ of page 0 id 1, if this is the first on the device.
        """
        mounting = self.netfs.mount(name, fsid, domain)
        anon = self.serve_mount(device, mounting)
        return anon

    def serve_mount(self, device: Device, mounting: Pending, size: int = image.SIZE) -> Anon:
        """Answer what a mount asks that has just been started, and wait for it."""
        message, anon = device.take_open()
        self.serve_opened(device, message, anon, size)
        mounting.result()
        return anon

    def serve_opened(
        self, device: Device, message: Open, anon: Anon, size: int = image.SIZE
    ) -> None:
        """Answer the OPEN of a mount, and its READ of page 0."""
        device.copen(message, size)
        anon.answer(device.take(Read))

    def opening(self, device: Device, name: str = "a", fsid: str = "blob") -> tuple[Open, Anon]:
        """Start a mount and take its OPEN; the mount waits (`netfs.started[-1]`)."""
        self.netfs.mount(name, fsid)
        return device.take_open()

    def asked(self, device: Device, pending: Pending) -> bool:
        """Wait until there is something to read, or until `pending` has ended; which it was."""
        give_up = time.monotonic() + DEADLINE
        while not poll_mask(device.number, 0.01, select.POLLIN):
            if pending.ended():
                return False
            assert time.monotonic() < give_up, f"neither asked for more nor ended: {pending.what}"
        return True

    def note(self, text: str) -> None:
        """Write a line of the scenario's own."""
        self.log.say(text)

    # ---- the end -----------------------------------------------------------------------------

    def end(self) -> None:
        """Close everything; whoever still waits gets an error by that."""
        for device in self._devices:
            device.drop()
            for anon in device.anonymous.values():
                anon.drop()
        self.netfs.reset()
        os.close(self._open_when_free(os.O_RDWR))  # what lies on the disk is nobody's now
        if self._room is not None:
            self._room.end()


@contextlib.contextmanager
def world(kernel: Kernel, directory: Path) -> Iterator[World]:
    """A world in a new directory below `directory`, which is removed."""
    place = Path(tempfile.mkdtemp(dir=directory, prefix="world-"))
    mine = World(kernel, place)
    # A system call on our device cannot be interrupted while its server lives.
    watch = threading.Timer(LIMIT, kernel.abort)
    watch.start()
    try:
        try:
            yield mine
        finally:
            kernel.broken = True  # until the end was reached
            mine.end()
            kernel.broken = not watch.is_alive()
    finally:
        watch.cancel()
        watch.join()
        shutil.rmtree(place)
