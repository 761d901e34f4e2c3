"""`stack:FILE`: an image by its parts, for tests and for layers made by mkfs.erofs.

    {"layers": [{"name": NAME, "blobs": [SOURCE, ...]}, ...], "config": {...}}

Layers lowest first; each blob as `pagein mount` takes it, metadata before its devices. `config` is
what the OCI image config calls so.
"""

from __future__ import annotations

import errno
import json
from typing import Any

from pagein.cli.run import MountRequest
from pagein.cli.sources import blob_of
from pagein.cli.stacks import Layer, mount_stack
from pagein.control import ControlError


def mount(request: MountRequest) -> dict[str, Any]:
    """Mount the layers of a file; the image's config. Raises OSError in one line."""
    path = request.wanted.source.removeprefix("stack:")
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
            parts = [(each["name"], list(each["blobs"])) for each in found["layers"]]
            config = dict(found.get("config") or {})
        except (ValueError, KeyError, TypeError) as problem:
            raise ControlError(errno.EINVAL, f"{path}: not a stack: {problem!r}") from None
    patience = request.timeout + 10
    mount_stack(
        request.ask,
        request.target,
        [
            Layer(name, [blob_of(request.settings, blob, timeout=patience) for blob in blobs])
            for name, blobs in parts
        ],
        label=request.wanted.source,
        writable=request.writable,
        suid=True,
        timeout=request.timeout,
    )
    return config
