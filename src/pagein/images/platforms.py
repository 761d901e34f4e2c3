"""Which of an index's manifests is for a machine: os, architecture, variant.

As containerd's package `platforms` has it: a variant that an architecture has by default may be
left out, and a machine runs what was made for an older variant of its architecture.
"""

from __future__ import annotations

import errno
import platform as machine
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from pagein.origins.base import OriginError

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MACHINES = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", None),
    "i586": ("386", None),
    "loongarch64": ("loong64", None),
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
_DEFAULT_VARIANT = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
_VARIANT = re.compile(r"v([0-9]{1,2})(?:\.[0-9])?")

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`linux/arm64/v8`: what an image runs on, or a machine is."""

    architecture: str
    os: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, [self.os, self.architecture, self.variant]))


def parse_platform(text: str) -> Platform:
    """The platform that `OS/ARCHITECTURE[/VARIANT]` names; OriginError (EINVAL) for other text."""
    words = text.split("/")
    if len(words) not in (2, 3) or not all(map(_WORD.fullmatch, words)):
        cause = "is no platform: name it as linux/amd64 or linux/arm64/v8"
        raise OriginError.of(ascii(text)[1:-1] or "(nothing)", cause, errno=errno.EINVAL)
    os, architecture, *variant = (word.lower() for word in words)
    architecture = _ALIASES.get(architecture, architecture)
    return Platform(os=os, architecture=architecture, variant=variant[0] if variant else None)


def host_platform() -> Platform:
    """The platform of this machine."""
    name = machine.machine()
    architecture, variant = _MACHINES.get(name, (name, None))
    return Platform(os="linux", architecture=architecture, variant=variant)


def suits(found: Platform, wanted: Platform) -> int | None:
    """How well `wanted` runs images for `found`: 0 is best, None is not at all."""
    if found.os != wanted.os or found.architecture != wanted.architecture:
        return None
    has, needs = _level(wanted), _level(found)
    if has is None or needs is None:
        return 0 if found.variant == wanted.variant else None
    return has - needs if needs <= has else None


def choose(entries: Iterable[tuple[Platform | None, T]], wanted: Platform) -> T | None:
    """The entry that suits `wanted` best, the first of equals; None if none does.

    An entry that does not tell its platform is taken when it is the only candidate: its config
    tells later.
    """
    ranked: list[tuple[int, int, T]] = []
    silent: list[T] = []
    for found, entry in entries:
        if found is None:
            silent.append(entry)
        elif (rank := suits(found, wanted)) is not None:
            ranked.append((rank, len(ranked), entry))
    if ranked:
        return min(ranked, key=lambda item: item[:2])[2]
    return silent[0] if len(silent) == 1 else None


def _level(of: Platform) -> int | None:
    """The variant as a number: v7 is 7; None if it is none of that form."""
    match = _VARIANT.fullmatch(of.variant or _DEFAULT_VARIANT.get(of.architecture, "v0"))
    return int(match[1]) if match else None
