"""`pagein mount --front-end kernel`: the kernel itself as the kernel half."""

from __future__ import annotations

import asyncio
import errno
import os

from pagein.cli.settings import Settings
from pagein.cli.sources import blob_of
from pagein.control import ControlError
from pagein.mounts import kernel

DEVICE = "/dev/cachefiles"


def mount_through_kernel(
    settings: Settings, sources: list[str], target: str, *, timeout: float
) -> None:
    """Mount an image and its devices, which the daemon of this runtime directory looks at first.

    Raises OSError in one line.
    """
    if not os.path.exists(DEVICE):
        text = f"{DEVICE} does not exist: this kernel has no CacheFiles; use --front-end fuse"
        raise ControlError(errno.ENODEV, text)
    blobs = [blob_of(settings, each, timeout=timeout + 10) for each in sources]
    primary, *devices = (os.fsdecode(bytes.fromhex(blob["cookie"])) for blob in blobs)
    # The daemon answers each OPEN and the first READ within its own deadline.
    patience = (len(blobs) + 2) * timeout + 10
    made = kernel.mount_image(primary, devices, target, timeout=patience, label=blobs[0]["label"])
    asyncio.run(made)
