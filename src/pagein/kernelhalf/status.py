"""What `pagein status` shows of the kernel half, as plain values."""

from __future__ import annotations

import os
import time
from typing import Any

from pagein.cachefiles.requests import Request
from pagein.fscache import Cookie
from pagein.kernelhalf.half import KernelHalf, Mount
from pagein.kernelhalf.stacks import Stack
from pagein.protocol.messages import Opcode

MOST_WAITING = 16
"""Waiting reads that are shown one by one."""


def status(half: KernelHalf) -> dict[str, Any]:
    """Blobs with sizes in bytes, mounts, and the oldest waiting read (age in seconds)."""
    session = half.device.session
    return {
        "pid": os.getpid(),
        "front_end": "fuse",
        "mount_namespace": os.readlink("/proc/self/ns/mnt"),
        "cache": os.fsdecode(session.dir) if session and session.dir else None,
        "problem": session.problem if session and session.cache is None else None,
        "dead": bool(session and session.dead),
        "fuse_requests": {
            "device": half.devfs.server.requests,
            "blobs": half.blobfs.server.requests,
        },
        "blobs": [
            _blob(cookie, sum(e.reads for e in half.blobfs.exports.values() if e.cookie is cookie))
            for cookie in half.fscache.cookies.values()
        ],
        "mounts": [_stack(half, stack) for stack in half.stacks.table.values()]
        + [_mount(mount) for mount in half.visible_mounts],
        "numbers": half.readership.numbers.values(),
        "oldest_read": _oldest_read(half),
        "waiting": [_waiting(request) for request in _reads(half)[:MOST_WAITING]],
    }


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _mount(mount: Mount) -> dict[str, Any]:
    return {
        "target": mount.target,
        "sources": mount.labels,
        "direct": mount.done and not mount.exports,
        "blobs": [[_text(volume), _text(cookie)] for volume, cookie in mount.keys],
    }


def _stack(half: KernelHalf, stack: Stack) -> dict[str, Any]:
    """A stack shows as one mount, of all blobs of its layers."""
    layers = [_mount(mount) for mount in half.stacks.mounts_of(stack)]
    return {
        "target": stack.target,
        "sources": [stack.label] if stack.label else [each.name for each in stack.layers],
        "direct": stack.done and all(layer["direct"] for layer in layers),
        "blobs": [blob for layer in layers for blob in layer["blobs"]],
        "layers": len(stack.layers),
        "upper": stack.upper.upper if stack.upper else None,
    }


def _blob(cookie: Cookie, reads: int) -> dict[str, Any]:
    file = cookie.file
    resident = min(file.present.total, cookie.size)
    return {
        "volume": _text(cookie.key[0]),
        "cookie": _text(cookie.key[1]),
        "size": cookie.size,
        "resident": resident,
        "written": file.written,
        "reads": reads,
        "requests": cookie.object.requests,
        "state": cookie.object.state.name,
        "users": cookie.users,
    }


def _reads(half: KernelHalf) -> list[Request]:
    """The READs that wait, the oldest first."""
    session = half.device.session
    pending = session.requests.pending.values() if session else ()
    waiting = [request for request in pending if request.opcode is Opcode.READ]
    return sorted(waiting, key=lambda request: request.since)


def _oldest_read(half: KernelHalf) -> dict[str, Any] | None:
    waiting = _reads(half)
    return {**_waiting(waiting[0]), "waiting": len(waiting)} if waiting else None


def _waiting(request: Request) -> dict[str, Any]:
    """`pid` is the thread that reads; 0 if nobody reads for it, a kworker's with a loop device."""
    return {
        "age": round(time.monotonic() - request.since, 3),
        "pid": request.pid,
        "volume": _text(request.object.volume_key),
        "cookie": _text(request.object.cookie_key),
        "off": request.off,
        "len": request.len,
    }
