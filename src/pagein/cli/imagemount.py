"""Images for the commands: brought here by the user half, mounted as stacks by the kernel half."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from dataclasses import dataclass
from typing import Any

import msgspec

from pagein.cli.halves import Ask, user_half
from pagein.cli.pulling import Shown
from pagein.cli.settings import Settings
from pagein.cli.sources import VOLUME
from pagein.cli.stacks import Layer, Writable, mount_stack
from pagein.control import Answer, ControlError, NotListening

_MAX_PACKED = 900_000
"""Bytes of a packed trace: with the rest of the question less than `control.MAX_LINE`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image as a user named it; `platform` is "" for that of this machine.

    `trace` is the file of one, to be used instead of the one that is beside the image's indexes.
    """

    source: str
    platform: str = ""
    trace: str | None = None
    prefetch: bool = True


def mount_image(
    settings: Settings,
    ask: Ask,
    wanted: Wanted,
    target: str,
    *,
    writable: Writable | None,
    suid: bool = False,
    loop: str = "auto",
    timeout: float,
) -> dict[str, Any]:
    """Mount an image on `target`; what its config says of containers. Raises OSError."""
    answer = _bring(settings, wanted, timeout=timeout)
    if answer["note"]:
        print(f"pagein: {answer['note']}", file=sys.stderr)
    layers = [Layer(each["name"], [_blob(b) for b in each["blobs"]]) for each in answer["layers"]]
    mount_stack(
        ask,
        target,
        layers,
        label=answer["source"],
        writable=writable,
        suid=suid,
        loop=loop,
        timeout=timeout,
    )
    config: dict[str, Any] = answer["config"]
    return config


def absolute(source: str) -> str:
    """The name with the directory of a layout from the root: other processes have another one."""
    if not source.startswith("oci:"):
        return source
    directory, colon, rest = source.removeprefix("oci:").partition(":")
    if not directory:
        return source
    return f"oci:{os.path.abspath(directory)}{colon}{rest}"


def _bring(settings: Settings, wanted: Wanted, *, timeout: float) -> Answer:
    """Ask until the image can be mounted, showing how far it is."""
    question = {
        "op": "image",
        "source": absolute(wanted.source),
        "platform": wanted.platform,
        "prefetch": wanted.prefetch,
        "trace": _packed(wanted.trace) if wanted.trace else "",
        "auth": asyncio.run(_auth(wanted.source)),
    }
    with Shown() as shown:
        while True:
            try:
                answer = user_half(settings, question, timeout=timeout + 10)
            except NotListening:
                text = "the user half does not run: images are served by pagein's own only"
                raise ControlError(errno.ENOENT, f"{wanted.source}: {text}") from None
            shown.update(answer["progress"])
            if answer["done"]:
                return answer


def _packed(path: str) -> str:
    """The trace in a file, looked at here: the user half may not be able to read the file."""
    from pagein.cli.tracefile import load
    from pagein.images.traces.document import pack

    packed = pack(load(path).dump())
    if len(packed) > _MAX_PACKED:
        raise ControlError(errno.EFBIG, f"{path}: too much for a trace: {len(packed)} bytes packed")
    return packed


async def _auth(source: str) -> dict[str, Any]:
    """What docker has for the registry of `source`; the user half cannot read it there."""
    from pagein.images.dockerconfig import DockerConfig
    from pagein.images.reference import RegistryReference, parse_reference

    reference = parse_reference(source)
    if not isinstance(reference, RegistryReference):
        return {}
    found = await DockerConfig().look_up(reference.host)
    return {reference.host: msgspec.to_builtins(found)} if found else {}


def _blob(told: dict[str, Any]) -> dict[str, Any]:
    cookie = told["cookie"].encode()
    return {"volume": VOLUME.hex(), "cookie": cookie.hex(), "label": told["label"]}
