"""Which content a source had when it was first seen.

A cache key must never stand for two contents. So a source is resolved once, to an `Identity`;
its key names the cookie, and every later read is checked against it. A source whose content
changes resolves to another identity, with another key.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from typing import TYPE_CHECKING

import msgspec

from pagein.origins.base import Origin, OriginError, redact

if TYPE_CHECKING:
    from pagein.origins.session import Session

_KEY_VERSION = "pagein identity 1"
_PASSWORD = re.compile(r"^([a-z]+://[^/?#:]*):[^/?#]*@", re.IGNORECASE)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A source (http(s) URL or absolute path), its size in bytes and its validators.

    `source` may hold credentials: `repr` hides them; `dump` keeps them, so what it
    returns belongs in files that only their owner reads.
    """

    source: str
    size: int
    etag: str | None = None
    last_modified: str | None = None
    mirrors: tuple[str, ...] = ()
    """URLs of copies, which are asked before the source itself; no part of what it is."""

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"an identity wants a size above 0, not {self.size}")

    def __repr__(self) -> str:
        return (
            f"Identity(source={redact(self.source)!r}, size={self.size}, "
            f"etag={self.etag!r}, last_modified={self.last_modified!r})"
        )

    def key(self) -> bytes:
        """The cookie key: 64 hex digits, another one for every other content.

        The password of a URL is left out: a new one must not empty the cache, and a key is a
        file name that everybody may see. The user stays in: servers may answer each with its own.
        """
        source = _PASSWORD.sub(r"\1@", self.source)
        fields = [_KEY_VERSION, source, self.size, self.etag, self.last_modified]
        return hashlib.sha256(json.dumps(fields).encode("ascii")).hexdigest().encode("ascii")

    def dump(self) -> bytes:
        """JSON for `load`. Paths that are not UTF-8 (surrogates) survive it."""
        return json.dumps(msgspec.structs.asdict(self)).encode("ascii")

    @classmethod
    def load(cls, data: bytes) -> Identity:
        """The identity `dump` wrote; ValueError for anything else."""
        return msgspec.convert(json.loads(data), cls)


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) URL; OriginError for URLs of other schemes."""
    scheme, separator, _ = source.partition("://")
    if not separator or "/" in scheme:
        return False
    if scheme.lower() in ("http", "https"):
        return True
    raise OriginError.of(
        source, "only http:// and https:// URLs and paths are supported", errno=errno.EINVAL
    )


async def resolve(source: str, *, timeout: float, session: Session | None = None) -> Identity:
    """Find out size and validators of an http(s) URL or an absolute path, within `timeout` s.

    OriginError when it is missing, unreadable, empty, not a regular file, or on a server that
    does not answer ranged requests.
    """
    if is_url(source):
        from pagein.origins.http import resolve_http

        return await resolve_http(source, timeout=timeout, session=session)
    from pagein.origins.file import resolve_file

    return await resolve_file(source, timeout=timeout)


def open_origin(identity: Identity, *, timeout: float, session: Session | None = None) -> Origin:
    """The origin of `identity`; each of its requests ends within `timeout` seconds.

    Nothing is opened yet. An http origin uses `session`, which its owner closes; without one it
    makes its own and `close` ends it.
    """
    if is_url(identity.source):
        from pagein.origins.http import HttpOrigin

        return HttpOrigin(identity, session, timeout)
    from pagein.origins.file import FileOrigin

    return FileOrigin(identity, timeout)
