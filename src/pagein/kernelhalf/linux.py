"""Linux as the kernel half, and its deputy: `python -m pagein.kernelhalf.linux`, of the keeper.

The kernel has the objects, the requests and the files. What is left is what a user asks for:
mounts, umounts, what is mounted, and the end when nothing is. The mount table says what is mounted,
whoever did it; what was asked for (sources, devices) it does not say, so that is written down here,
for `pagein status` and for a successor. What is still in use after its umount, or through a copy of
the mount namespace, is no mount in the table, but a volume of fscache: as long as that is there,
the daemon is needed (facts cachefiles-kernel 7.4).

Like any half it may be killed. What stops it: see `life`. It then unmounts, before the daemon and
the device go (15.11).
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import socket
from typing import Any

import msgspec

from pagein.control import Answer
from pagein.controlserver import ControlServer
from pagein.kernelhalf import watching
from pagein.kernelhalf.life import Life
from pagein.mounts import kernel, syscalls
from pagein.mounts.erofs import MountError, umount_image
from pagein.mounts.mountwatch import MountWatch

log = logging.getLogger("pagein.kernelhalf")

_POLL_FIRST, _POLL_MOST = 0.02, 1.0
"""Seconds between looks at what is no mount any more and yet in use."""
_ENDING = 6.0
"""Seconds for unmounting and for CLOSEs when the process ends."""


class Asked(msgspec.Struct):
    """What was asked for of a mount: labels, cookie keys and sizes in bytes of its blobs."""

    labels: list[str]
    keys: list[str]
    sizes: list[int]


class State(msgspec.Struct):
    """What a successor has to know."""

    asked: dict[str, Asked] = {}
    """By the directory of the mount."""
    dead: list[int] = []
    """Ids of mounts that an earlier keeper left: nothing revives them (facts 7.5)."""
    blocked: bool = False
    """Something was left that way, be it in sight or not, and no new mount works until it goes."""


class Deputy:
    """One life of the process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cache = os.path.realpath(options.cache)
        self.busy = 0
        """Mounts being made."""
        handlers = {
            "mount": self._mount,
            "umount": self._umount,
            "status": self._status,
            "leave": self._leave,
            "events": watching.not_ours,
            "debug": watching.not_ours,
        }
        self.control = ControlServer(socket.socket(fileno=options.control_fd), handlers)
        self.life = Life(
            options.linger, idle=self._idle, connections=lambda: self.control.connections
        )
        self.state = self._load()

    async def run(self) -> None:
        """Serve until told to stop, or idle for long enough; then unmount."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.life.stop)
        await self.control.start()
        changed = asyncio.Event()
        watch = MountWatch(loop, changed.set)
        changed.set()  # something may have gone since we looked, before there was a watch
        following = loop.create_task(self._follow(changed))
        os.write(self.options.ready_fd, b"r")
        os.close(self.options.ready_fd)
        try:
            await self.life.wait()
        finally:
            watch.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self.control.close()
            await self._unmount_all()

    # ---- what is there -----------------------------------------------------------------------

    def mounts(self) -> list[syscalls.MountEntry]:
        """Mounts of ours that work, in the order of the kernel."""
        return [entry for entry in _ours() if entry.id not in self.state.dead]

    def _idle(self) -> bool:
        if self.busy or self.mounts():
            return False
        return self._check_blocked() or not kernel.in_use()

    def _check_blocked(self) -> bool:
        """Whether what an earlier keeper left still is in the way."""
        if self.state.blocked and not kernel.in_use():
            self.state.blocked = False
            self._save()
        return self.state.blocked

    async def _follow(self, changed: asyncio.Event) -> None:
        """Tell `life` of changes: of the mount table, and of what that does not show."""
        pause = _POLL_FIRST
        while True:
            hidden = not self.mounts() and kernel.in_use() and not self.state.blocked
            try:
                async with asyncio.timeout(pause if hidden else None):
                    await changed.wait()
                pause = _POLL_FIRST
            except TimeoutError:
                pause = min(2 * pause, _POLL_MOST)
            changed.clear()
            self._forget_gone()
            self.life.changed()

    def _forget_gone(self) -> None:
        targets = {entry.target for entry in self.mounts()}
        if not self.busy and (gone := self.state.asked.keys() - targets):
            for target in gone:
                del self.state.asked[target]
            self._save()

    # ---- control -----------------------------------------------------------------------------

    async def _mount(self, question: dict[str, Any]) -> Answer:
        self.life.check_staying()
        self.busy += 1
        try:
            await self._mount_it(question["target"], question["blobs"])
        finally:
            self.busy -= 1
            self.life.changed()
        return {"target": question["target"], "direct": False, "loop": []}

    async def _mount_it(self, target: str, blobs: list[dict[str, Any]]) -> None:
        asked = Asked([], [], [])
        for blob in blobs:
            volume, cookie = bytes.fromhex(blob["volume"]), bytes.fromhex(blob["cookie"])
            if volume != kernel.VOLUME:
                text = f"{blob['label']}: this front end has no volume but {_VOLUME}"
                raise MountError(errno.EINVAL, text)
            asked.labels.append(blob["label"])
            asked.keys.append(os.fsdecode(cookie))
            asked.sizes.append(blob.get("size", 0))
        if self._check_blocked():
            raise MountError(errno.EBUSY, self._in_the_way())
        # The daemon answers each OPEN and the first READ within its own deadline.
        patience = (len(blobs) + 2) * self.options.timeout + 10
        # Before the mount: a successor of this process has to know what it finds.
        previous = self.state.asked.get(target)
        if not any(entry.target == target for entry in self.mounts()):
            self.state.asked[target] = asked
            self._save()
        try:
            await kernel.mount_image(
                asked.keys[0], asked.keys[1:], target, timeout=patience, label=asked.labels[0]
            )
        except OSError:
            if previous is None and self.state.asked.get(target) is asked:
                del self.state.asked[target]
                self._save()
            raise

    def _in_the_way(self) -> str:
        dead = [entry.target for entry in _ours() if entry.id in self.state.dead]
        if dead:
            many = " and ".join(f"`pagein umount {target}`" for target in dead)
            return f"mounts of a pagein that was killed are in the way of new ones: {many} first"
        text = "what is left of a pagein that was killed is in the way of new mounts:"
        return f"{text} end the processes (or containers) that still use it"

    async def _umount(self, question: dict[str, Any]) -> Answer:
        target = question["target"]
        entry = next((e for e in reversed(_ours()) if e.target == target), None)
        if entry is None:
            raise MountError(errno.EINVAL, f"{target} is not mounted by pagein")
        lazy = question.get("lazy", False)
        await umount_image(target, timeout=self.options.timeout, lazy=lazy)
        if entry.id in self.state.dead:
            self.state.dead.remove(entry.id)
            self._save()
        if not lazy and not self.mounts():
            await self._drained(self.options.timeout)
        self._forget_gone()
        self.life.changed()
        return {"last": self.life.end_if_last()}

    async def _status(self, question: dict[str, Any]) -> Answer:
        self.life.check_staying()
        mounts, blobs = [], dict[str, dict[str, Any]]()
        for entry in self.mounts():
            asked = self.state.asked.get(entry.target) or _unasked(entry)
            for key, size in zip(asked.keys, asked.sizes, strict=True):
                blob = blobs.setdefault(key, {"volume": _VOLUME, "cookie": key, "size": size})
                blob["users"] = blob.get("users", 0) + 1
            keys = [[_VOLUME, key] for key in asked.keys]
            mounts.append(
                {"target": entry.target, "sources": asked.labels, "direct": False, "blobs": keys}
            )
        return {
            "pid": os.getpid(),
            "front_end": "kernel",
            "mount_namespace": os.readlink("/proc/self/ns/mnt"),
            "cache": self.cache,
            "problem": self._in_the_way() if self._check_blocked() else None,
            "blobs": list(blobs.values()),
            "mounts": mounts,
            "oldest_read": None,
        }

    async def _leave(self, question: dict[str, Any]) -> Answer:
        """Asked after a mount that failed: end if it is the reason that we run."""
        return {"last": self.life.end_if_last()}

    # ---- beginning and end -------------------------------------------------------------------

    def _load(self) -> State:
        try:
            with open(self.options.state, "rb") as file:
                return msgspec.json.decode(file.read(), type=State)
        except FileNotFoundError:
            # The first under this keeper, which has opened the device: whoever had it is gone.
            state = State(dead=[entry.id for entry in _ours()], blocked=kernel.in_use())
        self._write(state)
        return state

    def _save(self) -> None:
        self._write(self.state)

    def _write(self, state: State) -> None:
        temporary = f"{self.options.state}.new"
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(state))
        os.replace(temporary, self.options.state)

    async def _drained(self, timeout: float) -> bool:
        """Wait until the daemon has taken all CLOSEs, or those who still use a mount are done."""
        loop = asyncio.get_running_loop()
        give_up, pause = loop.time() + timeout, _POLL_FIRST
        while in_use := kernel.in_use() and not self.state.blocked:
            if loop.time() > give_up or self.mounts():
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.2)
        return not in_use

    async def _unmount_all(self) -> None:
        """Unmount what nobody uses, and say what is lost of the rest (rule 15.11)."""
        loop = asyncio.get_running_loop()
        entries = list(reversed(self.mounts()))
        give_up = loop.time() + _ENDING
        for entry in entries:
            umounting = loop.run_in_executor(None, syscalls.umount, entry.target)
            try:
                await asyncio.wait_for(umounting, max(give_up - loop.time(), 0.1))
            except OSError as problem:
                cause = os.strerror(problem.errno) if problem.errno else "no answer"
                log.warning(
                    "%s: %s; what is not in memory cannot be read any more: `pagein umount %s`",
                    *(entry.target, cause, entry.target),
                )
        if entries and not self.mounts():
            await self._drained(max(give_up - loop.time(), 0.1))


_VOLUME = os.fsdecode(kernel.VOLUME)


def _ours() -> list[syscalls.MountEntry]:
    return [entry for entry in syscalls.mounts() if kernel.is_ours(entry)]


def _unasked(entry: syscalls.MountEntry) -> Asked:
    """Of a mount that somebody made without us: the table says only the first of its blobs."""
    fsid = next((o[5:] for o in entry.super_options if o.startswith("fsid=")), "?")
    return Asked([fsid], [fsid], [0])


def main() -> int:
    """Run the process; the exit status for the keeper."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s kernel-half %(message)s")
    parser = argparse.ArgumentParser(prog="pagein.kernelhalf.linux")
    for name in ("control-fd", "ready-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("state", "cache"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("timeout", "linger"):
        parser.add_argument(f"--{name}", type=float, required=True)
    options = parser.parse_args()

    async def run() -> None:
        await Deputy(options).run()

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
