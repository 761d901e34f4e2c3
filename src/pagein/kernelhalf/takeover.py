"""From one kernel half to the next: what is written down, and how it is taken up again.

A successor finds the FUSE connections as they were: the daemon's device and anonymous fds are
open, EROFS has the blobs' files open, and requests its predecessor had read are waiting. It makes
the objects anew from the cache directory, under the handles and ids that are still in use, and
then has the kernel send the waiting requests again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os

from pagein.cachefiles import namei
from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.device import Session
from pagein.cachefiles.object import FD_CLOSED, CachefilesObject
from pagein.fscache import Cookie
from pagein.kernelhalf import state as states
from pagein.kernelhalf.half import KernelHalf, Mount
from pagein.kernelhalf.stacks import Stack
from pagein.mounts.blobfs import Export
from pagein.mounts.erofs import umount_image
from pagein.mounts.syscalls import mount_at
from pagein.protocol.space import Limits
from pagein.protocol.states import ObjectEvent, ObjectState

log = logging.getLogger("pagein.kernelhalf")

_HELPER_PATIENCE = 10.0
"""Seconds that a mount begun by a predecessor gets to end before it is undone."""


def snapshot(half: KernelHalf, epoch: int) -> states.State:
    """Everything a successor has to know, now."""
    session = half.device.session
    return states.State(
        epoch=epoch,
        device=_device_state(half, session) if session else None,
        objects=[_object_state(obj) for obj in session.requests.objects.values()]
        if session
        else [],
        exports=[
            states.ExportState(e.node, *e.cookie.key, e.cookie.size, sorted(e.handles))
            for e in half.blobfs.exports.values()
        ],
        mounts=[
            states.MountState(
                m.target, m.labels, m.keys, [e.node for e in m.exports], m.loop, m.done
            )
            for m in half.mounts.values()
        ],
        layers=[states.LayerState(each.name, each.number) for each in half.stacks.layers.values()],
        stacks=[_stack_state(stack) for stack in half.stacks.table.values()],
    )


def _stack_state(stack: Stack) -> states.StackState:
    upper = stack.upper
    return states.StackState(
        stack.target,
        stack.label,
        [layer.name for layer in stack.layers],
        (upper.upper, upper.work, upper.volatile) if upper else None,
        stack.done,
    )


def _device_state(half: KernelHalf, session: Session) -> states.DeviceState | None:
    if half.devfs.device_handle is None:
        return None
    return states.DeviceState(
        handle=half.devfs.device_handle,
        poll_handles=sorted(half.devfs.poll_handles),
        dir=session.dir,
        tag=session.tag,
        limits=session.limits.percent,
        ondemand=session.ondemand_mode,
        bound=session.cache is not None,
        culling=session.cache is not None and session.cache.space.culling,
    )


def _object_state(obj: CachefilesObject) -> states.ObjectState:
    return states.ObjectState(
        obj.volume_key,
        obj.cookie_key,
        obj.ondemand_id,
        obj.state is ObjectState.OPEN,
        obj.size,
        sorted(obj.handles),
    )


async def take_over(half: KernelHalf, left: states.State) -> None:
    """Take up what a predecessor left. Raises OSError when its cache cannot be bound again."""
    if left.device is None:
        return
    session = half.device.open()
    half.devfs.adopt(left.device.handle, set(left.device.poll_handles))
    session.dir, session.tag = left.device.dir, left.device.tag
    session.limits = Limits(left.device.limits)
    session.ondemand_mode = left.device.ondemand
    if left.device.bound:
        await half.device.bind(session)
    if session.cache is not None:
        session.cache.space.culling |= left.device.culling
    objects = {}
    for saved in left.objects:
        objects[saved.volume, saved.cookie] = await _adopt_object(half, session, saved)
    for left_export in left.exports:
        await _adopt_export(half, session, left_export, objects)
    exported = {e.cookie.object for e in half.blobfs.exports.values()}
    for mount in left.mounts:
        _adopt_mount(half, mount)
    half.stacks.adopt(left.layers, left.stacks)
    for obj in [o for o in objects.values() if o not in exported]:
        # Of a lookup or a withdrawal that its predecessor did not finish.
        half.spawn(_withdraw(half, session, obj))
    for export in list(half.blobfs.exports.values()):
        half.blobfs.check_released(export)


async def _adopt_object(
    half: KernelHalf, session: Session, saved: states.ObjectState
) -> CachefilesObject:
    path = namei.object_path(saved.volume, saved.cookie)
    obj = CachefilesObject(saved.volume, saved.cookie, path)
    obj.looked_up()
    obj.size = saved.size
    obj.ondemand_id = saved.id
    obj.handles = set(saved.handles)
    session.requests.objects[saved.id] = obj
    for handle in saved.handles:
        half.devfs.anonymous[handle] = AnonymousFile(half.device, saved.id, handle)
    if saved.open:
        obj.event(ObjectEvent.COPEN)
        await _open_file(session, obj)
    return obj


async def _open_file(session: Session, obj: CachefilesObject) -> None:
    cache = session.cache
    if cache is None or obj.size is None:
        raise OSError(errno.EIO, "an open object without a cache or a size")
    loop = asyncio.get_running_loop()
    obj.file = await loop.run_in_executor(None, cache.look_up, obj.path, obj.size)
    session.files.add(obj)


async def _adopt_export(
    half: KernelHalf,
    session: Session,
    saved: states.ExportState,
    objects: dict[tuple[bytes, bytes], CachefilesObject],
) -> None:
    key = (saved.volume, saved.cookie)
    obj = objects.get(key)
    if obj is None or obj.state is not ObjectState.OPEN:
        # Its anonymous fds are closed, or its reopening was under way: a READ begins one anew.
        # Files of an OPEN that was never answered stay with the object that was made for them.
        obj = CachefilesObject(*key, namei.object_path(*key), ondemand_id=FD_CLOSED)
        obj.looked_up()
        obj.size = saved.size
        await _open_file(session, obj)
    if obj.file is None:
        raise OSError(errno.EIO, "an exported object without its file")
    cookie = Cookie(session, obj, obj.file)
    cookie.users = 1
    half.fscache.cookies[key] = cookie
    name = b"%d" % saved.node
    half.blobfs.add(Export(saved.node, name, cookie, handles=set(saved.handles)))


def _adopt_mount(half: KernelHalf, saved: states.MountState) -> None:
    exports = [half.blobfs.exports[node] for node in saved.nodes if node in half.blobfs.exports]
    mount = Mount(saved.target, saved.labels, saved.keys, exports, saved.loop, saved.done)
    for export in exports:
        export.holds += 1
    half.mounts[mount.target] = mount
    if not mount.done:
        half.spawn(_undo(half, mount))


async def _undo(half: KernelHalf, mount: Mount) -> None:
    """Undo a mount that was being made: its asker was told that it failed, and asks again."""
    half.busy += 1
    try:
        waited = 0.0
        while mount_at(mount.target) is None and waited < _HELPER_PATIENCE:
            if not any(e.handles for e in mount.exports):
                break
            await asyncio.sleep(0.1)
            waited += 0.1
        entry = mount_at(mount.target)
        if entry is not None and entry.fstype == "erofs":
            await umount_image(mount.target, timeout=half.settings.timeout)
    except OSError as problem:
        log.error("a mount begun on %s could not be undone: %s", mount.target, problem)
    finally:
        half.busy -= 1
        half.forget(mount)


async def _withdraw(half: KernelHalf, session: Session, obj: CachefilesObject) -> None:
    await session.requests.withdraw(obj, half.settings.timeout)
    session.close_object(obj)
    log.info("gave back %s, which nobody has in use", os.fsdecode(obj.cookie_key))
