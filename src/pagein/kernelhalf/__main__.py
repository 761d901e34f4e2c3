"""The kernel half's process, started by the keeper: `python -m pagein.kernelhalf ...`.

Ends with status 0 when nothing has been mounted for a while, which tells the keeper to end too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
from typing import Any

from pagein.control import Answer, ControlServer
from pagein.kernelhalf import state as states
from pagein.kernelhalf.half import Blob, KernelHalf, Settings
from pagein.kernelhalf.status import status
from pagein.kernelhalf.takeover import snapshot, take_over
from pagein.mounts.mountwatch import MountWatch

log = logging.getLogger("pagein.kernelhalf")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pagein.kernelhalf")
    for name in ("device-fd", "blob-fd", "control-fd", "ready-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--state", required=True)
    parser.add_argument("--blob-dir", required=True)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--linger", type=float, default=3.0)
    return parser.parse_args()


class Process:
    """One life of the kernel half."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stopped = False
        self.news = asyncio.Event()
        """Something changed that may end the process: look at it again."""
        self.left = states.load(options.state) or states.State(epoch=-1)
        self.epoch = self.left.epoch + 1
        self.taken_over = False
        settings = Settings(
            blob_dir=options.blob_dir,
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
            on_close=self._stop,
        )
        handlers = {"mount": self._mount, "umount": self._umount, "status": self._status}
        self.control = ControlServer(socket.socket(fileno=options.control_fd), handlers)

    def _changed(self) -> None:
        self.news.set()
        if self.taken_over:
            states.save(self.options.state, snapshot(self.half, self.epoch))

    async def run(self) -> None:
        """Serve until told to stop, or idle for long enough."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        await take_over(self.half, self.left)
        self.taken_over = True
        self._changed()
        if self.epoch:
            self.half.resend()
        await self.control.start()
        watch = MountWatch(loop, self.half.refresh)
        os.write(self.options.ready_fd, b"r")
        os.close(self.options.ready_fd)
        try:
            while not self.stopped:
                await self._wait_for_news()
        finally:
            watch.close()
            await self.control.close()
            await self.half.close()

    def _stop(self) -> None:
        self.stopped = True
        self.news.set()

    async def _wait_for_news(self) -> None:
        """Stop after `linger` seconds with nothing to do; else sleep until something changes."""
        self.news.clear()
        quiet = self.half.idle and not self.control.busy
        try:
            async with asyncio.timeout(self.options.linger if quiet or self.control.busy else None):
                await self.news.wait()
        except TimeoutError:
            self.stopped = self.half.idle and not self.control.busy

    # ---- control -----------------------------------------------------------------------------

    async def _mount(self, question: dict[str, Any]) -> Answer:
        blobs = [
            Blob(bytes.fromhex(b["volume"]), bytes.fromhex(b["cookie"]), b["label"])
            for b in question["blobs"]
        ]
        mount = await self.half.mount(
            question["target"],
            blobs,
            loop=question.get("loop", "auto"),
            direct=question.get("direct", True),
        )
        return {"target": mount.target, "direct": not mount.exports, "loop": mount.loop}

    async def _umount(self, question: dict[str, Any]) -> Answer:
        await self.half.umount(question["target"], lazy=question.get("lazy", False))
        if self.half.idle:
            asyncio.get_running_loop().call_later(0.05, self._stop)  # after the answer
        return {"last": self.half.idle}

    async def _status(self, question: dict[str, Any]) -> Answer:
        return status(self.half)


def main() -> int:
    """Run the process; the exit status for the keeper."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s kernel-half %(message)s")
    options = _arguments()

    async def run() -> None:
        await Process(options).run()

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
