"""What a user names to be mounted, as the keys of blobs."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Source(NamedTuple):
    """What a user named, and the URLs of its copies, in the order in which they are asked."""

    name: str
    mirrors: tuple[str, ...] = ()


def with_mirrors(sources: Sequence[str], mirrors: Sequence[str]) -> list[Source]:
    """`sources`, each with its copy in every mirror. Raises ControlError.

    A mirror that ends in `/` is a directory, in which files have the names that they have at their
    sources; else it is the URL of the copy of the only source.
    """
    for mirror in mirrors:
        if not mirror.startswith(("http://", "https://")):
            raise ControlError(errno.EINVAL, f"--mirror {mirror}: use an http(s) URL")
        if len(sources) > 1 and not mirror.endswith("/"):
            text = "with --device it ends in /, a directory of files of the same names"
            raise ControlError(errno.EINVAL, f"--mirror: {text}")
    for source in sources if mirrors else ():
        if "://" not in source:
            raise ControlError(errno.EINVAL, f"--mirror: {source} is no URL, and needs no mirror")
    return [Source(each, tuple(_copy_in(mirror, each) for mirror in mirrors)) for each in sources]


def _copy_in(mirror: str, source: str) -> str:
    if not mirror.endswith("/"):
        return mirror
    return mirror + source.partition("?")[0].rpartition("/")[2]


def blob_of(
    settings: Settings,
    source: str,
    mirrors: Sequence[str] = (),
    *,
    timeout: float,
    background: str | None = None,
) -> dict[str, Any]:
    """The blob of an http(s) URL, a path, or `key:VOLUME/COOKIE`, as the kernel half wants it.

    URLs and paths are looked at by the user half, and completed by it as `background` says.
    Raises ControlError in one line.
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
    question = {"op": "resolve", "source": source, "mirrors": [*mirrors], "background": background}
    try:
        answer = user_half(settings, question, timeout=timeout)
    except NotListening:
        text = "no `pagein daemon` runs here; for a daemon of your own use key:VOLUME/COOKIE"
        raise ControlError(errno.ENOENT, f"{source}: {text}") from None
    return _blob(VOLUME, answer["cookie"].encode(), answer["source"]) | {"size": answer["size"]}


def _blob(volume: bytes, cookie: bytes, label: str) -> dict[str, Any]:
    return {"volume": volume.hex(), "cookie": cookie.hex(), "label": label}
