"""EROFS over the kernel's own fscache: what is missing, the kernel asks of /dev/cachefiles itself.

No file of ours is between the reader and the page cache. A blob is named by the cookie key that the
daemon knows it by; `domain_id` makes the volume, which all mounts of a domain share, with the blobs
that they have in common (facts cachefiles-kernel 4, 13).
"""

import errno
import re
from collections.abc import Sequence
from typing import Any, Final

from pagein.mounts import erofs, syscalls

DOMAIN: Final = "pagein"
"""The domain of all mounts of pagein: their volume key is ``erofs,pagein``."""

VOLUME: Final = f"erofs,{DOMAIN}".encode()

MAX_KEY: Final = 248
"""Bytes of a name: with 253, EROFS in a domain brings the kernel down (facts 12)."""

_KEY: Final = re.compile(r"[A-Za-z0-9._:-]+")
_ATTRIBUTES: Final = (
    syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
)
# The daemon's own errno never comes through (facts 6); which of these it is may be timing.
_TEXTS: Final = {
    errno.ENODEV: "this kernel has no EROFS",
    errno.EINVAL: "not an EROFS image of a kind this kernel knows, or wrong --device",
    errno.ENOBUFS: "no cache is bound, no space is left in it, or the daemon refused the blob",
    errno.EIO: "the daemon could not provide its first block; see the daemon's log",
    errno.EEXIST: "mounted already, and once is what the kernel does; use mount --bind",
    errno.EPERM: "mounting is not permitted: not root?",
}


async def mount_image(
    fsid: str,
    devices: Sequence[str],
    target: str,
    *,
    timeout: float,
    label: str = "",
    domain: str = DOMAIN,
) -> None:
    """Mount the image whose primary blob is ``fsid``, read-only, nosuid and nodev.

    ``target`` has no symbolic links in it. ``devices`` are the cookie keys of its data files, in
    order; ``label`` is what the user calls
    the image. Raises MountError, ETIMEDOUT after ``timeout`` seconds: a mount that waits for its
    daemon cannot be killed, and comes to an end when that answers or goes (facts 7.2).
    """
    job = {"op": "mount-fscache", "fsid": fsid, "devices": list(devices), "domain": domain}
    job |= {"target": target, "label": label or fsid}
    try:
        await erofs.ask_helper(job, timeout)
    except TimeoutError:
        text = f"mounting {label or fsid} took more than {timeout:g} s; it may still come"
        raise erofs.MountError(errno.ETIMEDOUT, text) from None


def mount(job: dict[str, Any]) -> None:
    """Do a job of `mount_image`, in the helper; OSError says why not."""
    for name in (job["fsid"], job["domain"], *job["devices"]):
        check_key(name)
    options = [("fsid", job["fsid"]), ("domain_id", job["domain"])]
    options += [("device", device) for device in job["devices"]]
    try:
        syscalls.mount_in_steps(job["domain"], job["target"], "erofs", _ATTRIBUTES, options)
    except OSError as error:
        text = _TEXTS.get(error.errno or 0, error.strerror)
        raise OSError(error.errno, f"{job['label']}: {text}") from None


def check_key(name: str) -> None:
    """Raise OSError EINVAL for what must not be a fsid, domain_id or device of a mount."""
    if len(name) > MAX_KEY or not _KEY.fullmatch(name):
        raise OSError(errno.EINVAL, f"{name!r} cannot be the name of a blob on this front end")


def in_use() -> bool:
    """Whether a file system in the domain of pagein is alive, or the CLOSE of one is not taken.

    That is more than the mount table shows: those that were unmounted lazily, and copies in other
    mount namespaces. Also those of a dead cache, until they are unmounted.
    """
    with open("/proc/fs/fscache/volumes", "rb") as table:
        return any(line.split()[-1:] == [VOLUME] for line in table)


def is_ours(entry: syscalls.MountEntry) -> bool:
    """Whether a mount was made by `mount_image` in the domain of pagein."""
    return entry.fstype == "erofs" and f"domain_id={DOMAIN}" in entry.super_options
