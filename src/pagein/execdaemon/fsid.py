"""Mounts by fsid: what `mount -t erofs -o fsid=...` says, as a question to our kernel half.

Keys are those of the kernel's EROFS (facts cachefiles-kernel 4): the volume is `erofs,` and the
domain, or the fsid without one; the cookies are the fsid and the names of the devices.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

_KEYS = ("fsid", "domain_id", "device")
_MEANINGLESS = frozenset({"", "ro", "user_xattr", "nouser_xattr", "acl", "noacl"})
_MAX_KEY = 248
"""Bytes of a name (facts 12)."""


@dataclass
class FsidMount:
    """The options of one mount."""

    fsid: str
    domain: str = ""
    devices: list[str] = field(default_factory=list)

    def question(self, target: str) -> dict[str, Any]:
        """What to ask the kernel half; `target` is absolute and without symbolic links.

        Always by READs, as the kernel: a daemon that sees none for complete blobs, and a CLOSE
        while they are mounted, would learn what no kernel does.
        """
        volume = b"erofs," + os.fsencode(self.domain or self.fsid)
        blobs = [
            {"volume": volume.hex(), "cookie": os.fsencode(name).hex(), "label": name}
            for name in (self.fsid, *self.devices)
        ]
        return {"op": "mount", "target": target, "blobs": blobs, "direct": False}


def parse_options(text: str) -> FsidMount | None:
    """The options of a mount of EROFS; None if it is not one by fsid. Raises OSError EINVAL."""
    found: dict[str, list[str]] = {key: [] for key in _KEYS}
    others = []
    for option in text.split(","):
        key, _, value = option.partition("=")
        if key in found:
            found[key].append(value)
        elif option not in _MEANINGLESS:
            others.append(option)
    if not found["fsid"]:
        return None
    if others:
        raise OSError(errno.EINVAL, f"-o {others[0]}: not an option of a mount by fsid here")
    for name in chain(*found.values()):
        _check(name)
    (*_, fsid), (*_, domain) = found["fsid"], ["", *found["domain_id"]]
    return FsidMount(fsid, domain, found["device"])


def parse_mount(text: str) -> tuple[FsidMount, str]:
    """`fsid=NAME[,domain_id=NAME][,device=NAME...],DIR`. Raises OSError EINVAL."""
    words = text.split(",")
    count = 0
    while count < len(words) and words[count].partition("=")[0] in _KEYS:
        count += 1
    options, directory = parse_options(",".join(words[:count])), ",".join(words[count:])
    if options is None or not directory:
        raise OSError(errno.EINVAL, f"--mount {text}: expected fsid=NAME,DIR")
    return options, directory


def _check(name: str) -> None:
    if not 1 <= len(os.fsencode(name)) <= _MAX_KEY or "/" in name:
        text = f"a fsid, domain_id or device has 1 to {_MAX_KEY} bytes and no slash"
        raise OSError(errno.EINVAL, f"{name!r}: {text}")
