"""The kernel half as a process: mounts, its control socket, what it leaves to a successor.

Ends with status 0 when nothing is mounted any more, which tells the keeper to end too (`life`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import mmap
import os
import signal
import socket
from typing import Any

from pagein.control import Answer
from pagein.controlserver import ControlServer
from pagein.kernelhalf import state as states
from pagein.kernelhalf import watching
from pagein.kernelhalf.half import Blob, KernelHalf, Settings
from pagein.kernelhalf.life import Life
from pagein.kernelhalf.recording import Recordings
from pagein.kernelhalf.stacks import LayerBlobs
from pagein.kernelhalf.status import status
from pagein.kernelhalf.takeover import snapshot, take_over
from pagein.mounts.helpers import CURRENT, Helpers
from pagein.mounts.mountwatch import MountWatch
from pagein.mounts.overlay import Upper
from pagein.protocol.numbers import SIZE, Numbers

log = logging.getLogger("pagein.kernelhalf")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pagein.kernelhalf")
    for name in ("device-fd", "blob-fd", "control-fd", "ready-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--numbers-fd", type=int, default=-1)
    parser.add_argument("--blob-dir", required=True)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--linger", type=float, default=3.0)
    return parser.parse_args()


class Process:
    """One life of the kernel half."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.life = Life(
            options.linger,
            idle=lambda: self.half.idle,
            connections=lambda: self.control.connections,
        )
        self.left = states.load(options.state) or states.State(epoch=-1)
        self.epoch = self.left.epoch + 1
        self.taken_over = False
        settings = Settings(
            blob_dir=options.blob_dir,
            layer_dir=os.path.join(os.path.dirname(os.path.realpath(options.state)), "layers"),
            timeout=options.timeout,
            # The daemon answers within its own deadline; this one is for a daemon that hangs.
            read_timeout=4 * options.timeout + 30,
            linger=options.linger,
        )
        self.half = KernelHalf(
            options.device_fd,
            options.blob_fd,
            settings,
            epoch=self.epoch,
            changed=self._changed,
            on_close=self.life.stop,
            numbers=_numbers(options.numbers_fd),
        )
        self.recordings = Recordings(self.half)
        handlers = {
            "mount": self._mount,
            "mount-stack": self._mount_stack,
            "umount": self._umount,
            "status": self._status,
            "leave": self._leave,
            "record": self._record,
            "touches": self._touches,
            "events": watching.events,
            "debug": watching.debug,
        }
        self.control = ControlServer(socket.socket(fileno=options.control_fd), handlers)

    def _changed(self) -> None:
        self.life.changed()
        if self.taken_over:
            self.half.count()
            states.save(self.options.state, snapshot(self.half, self.epoch))

    async def run(self) -> None:
        """Serve until told to stop, or idle for long enough."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.life.stop)
        helpers = Helpers()
        CURRENT.set(helpers)
        try:
            await self._run(helpers)
        finally:
            await helpers.close()

    async def _run(self, helpers: Helpers) -> None:
        if not self.epoch:
            await self.half.stacks.clear()
        await take_over(self.half, self.left)
        self.taken_over = True
        self._changed()
        self.half.start(resend=self.epoch > 0)
        await self.control.start()
        watch = MountWatch(asyncio.get_running_loop(), self.half.refresh)
        self.half.refresh()  # of what went since we looked, before there was a watch
        os.write(self.options.ready_fd, b"r")
        os.close(self.options.ready_fd)
        try:
            with contextlib.suppress(OSError):  # who asks it will try again
                helpers.start()
            await self.life.wait()
        finally:
            watch.close()
            await self.control.close()
            await self.half.close()

    # ---- control -----------------------------------------------------------------------------

    async def _mount(self, question: dict[str, Any]) -> Answer:
        self.life.check_staying()
        mount = await self.half.mount(
            question["target"],
            _blobs(question["blobs"]),
            loop=question.get("loop", "auto"),
            direct=question.get("direct", True),
        )
        return {"target": mount.target, "direct": not mount.exports, "loop": mount.loop}

    async def _mount_stack(self, question: dict[str, Any]) -> Answer:
        self.life.check_staying()
        rw = question.get("rw")
        stack = await self.half.stacks.mount(
            question["target"],
            [LayerBlobs(each["name"], _blobs(each["blobs"])) for each in question["layers"]],
            label=question.get("label", ""),
            upper=Upper(rw["upper"], rw["work"], rw.get("volatile", False)) if rw else None,
            suid=question.get("suid", False),
            loop=question.get("loop", "auto"),
        )
        made = self.half.stacks.mounts_of(stack)
        return {
            "target": stack.target,
            "layers": [mount.target for mount in made],
            "direct": not any(mount.exports for mount in made),
        }

    async def _umount(self, question: dict[str, Any]) -> Answer:
        await self.half.umount(question["target"], lazy=question.get("lazy", False))
        return {"last": self.life.end_if_last()}

    async def _status(self, question: dict[str, Any]) -> Answer:
        self.life.check_staying()
        return status(self.half)

    async def _leave(self, question: dict[str, Any]) -> Answer:
        """Asked after a mount that failed: end if it is the reason that we run."""
        return {"last": self.life.end_if_last()}

    async def _record(self, question: dict[str, Any]) -> Answer:
        self.life.check_staying()
        return self.recordings.start(question.get("target"))

    async def _touches(self, question: dict[str, Any]) -> Answer:
        last = question.get("last", False)
        return self.recordings.take(question["recording"], question["most"], last=last)


def _numbers(fd: int) -> Numbers:
    """Those of the keeper's page, if there is one."""
    if fd < 0:
        return Numbers()
    page = mmap.mmap(fd, SIZE)  # for as long as the process lives
    os.close(fd)
    return Numbers(memoryview(page))


def _blobs(given: list[dict[str, str]]) -> list[Blob]:
    return [Blob(bytes.fromhex(b["volume"]), bytes.fromhex(b["cookie"]), b["label"]) for b in given]


def main() -> int:
    """Run the process that the keeper starts; the exit status for it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s kernel-half %(message)s")
    options = _arguments()

    async def run() -> None:
        await Process(options).run()

    asyncio.run(run())
    return 0
