"""What a user names to be mounted, as the keys of blobs."""

from __future__ import annotations

import errno
import os
from typing import Any

from pagein.cli.halves import user_half
from pagein.cli.settings import Settings
from pagein.control import ControlError, NotListening

VOLUME = b"erofs,pagein"
"""The volume of every blob that pagein's own daemon serves: what kernel EROFS calls it with
`domain_id=pagein` (facts cachefiles-kernel 4)."""


_IMAGES = ("docker://", "oci:")


def is_image(source: str) -> bool:
    """Whether `source` names a container image, in a registry or in an OCI layout."""
    return source.startswith(_IMAGES)


def blob_of(settings: Settings, source: str, *, timeout: float) -> dict[str, Any]:
    """The blob of an http(s) URL, a path, or `key:VOLUME/COOKIE`, as the kernel half wants it.

    URLs and paths are looked at by the user half. Raises ControlError in one line.
    """
    if source.startswith("key:"):
        volume, slash, cookie = source.removeprefix("key:").partition("/")
        if not (volume and slash and cookie):
            raise ControlError(errno.EINVAL, f"{source}: expected key:VOLUME/COOKIE")
        return _blob(os.fsencode(volume), os.fsencode(cookie), source)
    if "://" not in source:
        source = os.path.abspath(source)
    elif not source.startswith(("http://", "https://")):
        raise ControlError(errno.EINVAL, f"{source}: use an http(s) URL or a path")
    question = {"op": "resolve", "source": source}
    try:
        answer = user_half(settings, question, timeout=timeout)
    except NotListening:
        text = "no `pagein daemon` runs here; for a daemon of your own use key:VOLUME/COOKIE"
        raise ControlError(errno.ENOENT, f"{source}: {text}") from None
    return _blob(VOLUME, answer["cookie"].encode(), answer["source"]) | {"size": answer["size"]}


def _blob(volume: bytes, cookie: bytes, label: str) -> dict[str, Any]:
    return {"volume": volume.hex(), "cookie": cookie.hex(), "label": label}
