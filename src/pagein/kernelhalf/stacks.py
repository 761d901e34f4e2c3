"""Stacks: overlayfs over layers, each of which is an EROFS mount that stacks share.

A layer is mounted once, below the runtime directory (0700), however many stacks it is part of, and
unmounted with the last of them. It is a mount like any other: fetched on demand, or directly on its
files when they are complete.

A stack is nosuid, unless it is asked otherwise, which is for containers: there set-uid programs of
the image have to work, and the image's owner decides what runs as root anyway. Such a stack may be
mounted below the runtime directory only, where no user of this machine can come to its programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagein.mounts.erofs import LoopMode, MountError, umount_image
from pagein.mounts.overlay import MAX_LAYERS, Upper, mount_overlay
from pagein.mounts.syscalls import mount_at, mounts

if TYPE_CHECKING:
    from pagein.kernelhalf.half import Blob, KernelHalf, Mount
    from pagein.kernelhalf.state import LayerState, StackState
    from pagein.mounts.blobfs import Export

log = logging.getLogger("pagein.kernelhalf")

_AT_ONCE = 8
"""Layers of one stack that are mounted side by side; each takes a helper process."""
_EMPTY = "empty"
_HELPER_LOOKS = 20
"""Tenths of a second that an overlay begun by a predecessor gets to show, to be undone."""


@dataclass(eq=False)
class Layer:
    """A layer by its name: the directory it is mounted on, and how many stacks want it."""

    name: str
    number: int
    target: str
    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is being mounted or unmounted."""


@dataclass(eq=False)
class Stack:
    """An overlay in the table."""

    target: str
    label: str
    layers: list[Layer] = field(default_factory=list)
    """Those it holds, lowest first."""
    upper: Upper | None = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class LayerBlobs:
    """What a layer is made of: its metadata first, then its devices."""

    name: str
    blobs: list[Blob]


class Stacks:
    """The stacks of a kernel half, and their layers."""

    def __init__(self, half: KernelHalf, directory: str) -> None:
        """Layers are mounted below `directory`, which is made when it is needed."""
        self.half = half
        self.directory = directory
        self.table: dict[str, Stack] = {}
        self.layers: dict[str, Layer] = {}

    # ---- stacks ------------------------------------------------------------------------------

    async def mount(
        self,
        target: str,
        layers: Sequence[LayerBlobs],
        *,
        label: str = "",
        upper: Upper | None = None,
        suid: bool = False,
        loop: LoopMode = "auto",
    ) -> Stack:
        """Mount `layers`, lowest first, as one tree on `target`.

        Raises OSError with one line for the user; nothing of it is left behind then.
        """
        half = self.half
        self._check(target, layers, suid)
        # Of a layer that is there twice, the upper one says all that the lower one does, and
        # overlayfs wants no directory twice.
        once = list(reversed({layer.name: layer for layer in reversed(layers)}.values()))
        stack = Stack(target, label, [self._wanted(each.name) for each in once], upper)
        self.table[target] = stack
        half.busy += 1
        try:
            half.changed()
            await self._mount_layers(stack, once, loop)
            await mount_overlay(
                [layer.target for layer in stack.layers],
                target,
                empty=self._make(_EMPTY),
                upper=upper,
                suid=suid,
                timeout=half.settings.timeout,
            )
            stack.done = True
            return stack
        except BaseException:
            await half.gone(await self._forget(stack))
            raise
        finally:
            half.busy -= 1
            half.changed()

    def _check(self, target: str, layers: Sequence[LayerBlobs], suid: bool) -> None:
        if not layers:
            raise MountError(errno.EINVAL, f"{target}: a stack has at least one layer")
        if len(layers) > MAX_LAYERS:
            text = f"{len(layers)} layers: overlayfs takes {MAX_LAYERS} at most"
            raise MountError(errno.E2BIG, text)
        self.half.refresh()
        if target in self.table or target in self.half.mounts:
            raise MountError(errno.EBUSY, f"{target} is already mounted by pagein")
        private = os.path.dirname(self.directory) + os.sep
        if suid and not target.startswith(private):
            text = f"{target}: set-uid programs of an image may work below {private} only"
            raise MountError(errno.EPERM, text)

    async def umount(self, stack: Stack, *, lazy: bool) -> list[Export]:
        """Unmount a stack, then the layers that nobody else uses; the files these held.

        Raises OSError for the user, EBUSY when it is in use; it is still there then.
        """
        timeout = self.half.settings.timeout
        await umount_image(stack.target, timeout=timeout, lazy=lazy)
        return await self._forget(stack)

    def refresh(self, mounted: dict[str, str]) -> None:
        """Let go of stacks that somebody else has unmounted; `mounted`: directory -> type."""
        for stack in list(self.table.values()):
            if stack.done and mounted.get(stack.target) != "overlay":
                self.half.spawn(self._gone(stack))

    async def _gone(self, stack: Stack) -> None:
        # The watch of the mount table may be faster than who unmounts it here, and waits for us.
        await self.half.closed(await self._forget(stack))

    async def _forget(self, stack: Stack) -> list[Export]:
        """Take a stack out of the table and let go of its layers, once."""
        if self.table.get(stack.target) is stack:
            del self.table[stack.target]
        layers, stack.layers = stack.layers, []
        for layer in layers:
            layer.users -= 1
        self.half.changed()
        limit = asyncio.Semaphore(_AT_ONCE)
        found = await asyncio.gather(*(self._drop(layer, limit) for layer in layers))
        return [export for exports in found for export in exports]

    # ---- layers ------------------------------------------------------------------------------

    def is_layer(self, target: str) -> bool:
        """Whether a directory is one that a layer is mounted on."""
        return os.path.dirname(target) == self.directory

    def mounts_of(self, stack: Stack) -> list[Mount]:
        """The mounts of a stack's layers, as far as they are there."""
        mounts = self.half.mounts
        return [mounts[each.target] for each in stack.layers if each.target in mounts]

    def _wanted(self, name: str) -> Layer:
        """The layer of a name, with one user more."""
        layer = self.layers.get(name)
        if layer is None:
            taken = {each.number for each in self.layers.values()}
            number = next(n for n in itertools.count(1) if n not in taken and self._free(n))
            layer = self.layers[name] = Layer(name, number, self._target(number))
        layer.users += 1
        return layer

    def _target(self, number: int) -> str:
        return os.path.join(self.directory, str(number))

    def _free(self, number: int) -> bool:
        """Whether nothing is mounted there, or about to be, or on its way out."""
        return self._target(number) not in self.half.mounts and not os.path.lexists(
            self._target(number)
        )

    def _make(self, name: str) -> str:
        path = os.path.join(self.directory, name)
        os.makedirs(path, 0o700, exist_ok=True)
        return path

    async def _mount_layers(
        self, stack: Stack, wanted: Sequence[LayerBlobs], loop: LoopMode
    ) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)
        done = await asyncio.gather(
            *(
                self._mount_layer(layer, each.blobs, loop, limit)
                for layer, each in zip(stack.layers, wanted, strict=True)
            ),
            return_exceptions=True,
        )
        for problem in done:
            if problem is not None:
                raise problem

    async def _mount_layer(
        self, layer: Layer, blobs: list[Blob], loop: LoopMode, limit: asyncio.Semaphore
    ) -> None:
        async with layer.lock, limit:
            mount = self.half.mounts.get(layer.target)
            if mount is None or not mount.done:
                self._make(str(layer.number))
                await self.half.mount(layer.target, blobs, loop=loop)
            elif mount.keys != [(blob.volume, blob.cookie) for blob in blobs]:
                text = f"{layer.name} is already mounted, from other blobs"
                raise MountError(errno.EINVAL, text)

    async def _drop(self, layer: Layer, limit: asyncio.Semaphore) -> list[Export]:
        """Unmount a layer that nobody uses any more; the files it held."""
        exports: list[Export] = []
        async with layer.lock, limit:
            if layer.users or self.layers.get(layer.name) is not layer:
                return exports
            mount = self.half.mounts.get(layer.target)
            if mount is not None:
                exports = list(mount.exports)
                try:
                    # Lazily: whoever of root looks around in it must not keep it.
                    await self.half.take_down(mount, lazy=True)
                except OSError as problem:
                    log.error("layer %s: %s", layer.name, problem.strerror)
                    return []
            if not layer.users:
                del self.layers[layer.name]
                with contextlib.suppress(OSError):
                    os.rmdir(layer.target)
        return exports

    # ---- predecessors ------------------------------------------------------------------------

    async def clear(self) -> None:
        """Take away the layers of a keeper that was killed: reads of them fail for ever."""
        for entry in mounts():
            if self.is_layer(entry.target):
                with contextlib.suppress(OSError):
                    await umount_image(entry.target, timeout=self.half.settings.timeout, lazy=True)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(self.directory, name))

    def adopt(self, layers: Iterable[LayerState], stacks: Iterable[StackState]) -> None:
        """Take up a predecessor's layers and stacks, over mounts that are taken up already.

        A stack that was being made is undone: its asker was told that it failed, and asks again.
        """
        for old in layers:
            mount = self.half.mounts.get(self._target(old.number))
            # One that was being mounted is undone, and its number used again after that.
            if mount is not None and mount.done:
                self.layers[old.name] = Layer(old.name, old.number, mount.target)
        for left in stacks:
            held = [self._wanted(name) for name in left.layers if name in self.layers]
            upper = Upper(*left.upper) if left.upper else None
            stack = Stack(left.target, left.label, held, upper, left.done)
            self.table[stack.target] = stack
            if not stack.done:
                self.half.spawn(self._undo(stack))
        for layer in [each for each in self.layers.values() if not each.users]:
            self.half.spawn(self._drop_unused(layer))

    async def _drop_unused(self, layer: Layer) -> None:
        await self._drop(layer, asyncio.Semaphore())

    async def _undo(self, stack: Stack) -> None:
        self.half.busy += 1
        try:
            entry = None
            for _ in range(_HELPER_LOOKS):
                # The helper that finds nobody to take its answer undoes its mount itself.
                if (entry := mount_at(stack.target)) is not None:
                    break
                await asyncio.sleep(0.1)
            if entry is not None and entry.fstype == "overlay":
                await umount_image(stack.target, timeout=self.half.settings.timeout)
        except OSError as problem:
            log.error("a stack begun on %s could not be undone: %s", stack.target, problem)
        finally:
            self.half.busy -= 1
            await self._forget(stack)
