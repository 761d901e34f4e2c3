"""What the fill engine asks of a source of bytes, and the one error it gets."""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import NamedTuple, Self

STREAM_PIECE = 1 << 20
"""Bytes of one piece of the default `Origin.stream`."""

_USERINFO = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/?#]*@", re.IGNORECASE)
# Presigned links carry their secret in the query: X-Amz-Signature, X-Goog-Credential, sig, token.
_SECRET = re.compile(
    r"([?&][^=&#]*(?:sig|token|cred|secret|passw|api_?key)[^=&#]*=)[^&#]*", re.IGNORECASE
)


def redact(source: str) -> str:
    """`source` as it may be shown and logged: without user, password and signed query values."""
    if "://" not in source:
        return source  # a path
    return _SECRET.sub(r"\1***", _USERINFO.sub(r"\1", source))


class OriginError(OSError):
    """A source did not give what was asked; `str()` is one line that names it and the cause.

    `retry` tells whether the same request may succeed before the deadline: it is false where
    only a person can help (a missing file, changed content, a server without ranges).
    """

    retry: bool

    after: float | None
    """Seconds after which the server wants to be asked again, if it said so."""

    cause: str
    """The line without the source."""

    def __init__(
        self,
        errno_: int,
        message: str,
        *,
        retry: bool = False,
        after: float | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(errno_, message)
        self.retry = retry
        self.after = after
        self.cause = cause or message

    def __str__(self) -> str:
        return str(self.args[1])

    @property
    def temporary(self) -> bool:
        """Whether it may be over another day: until then what is known of the source has to do."""
        return self.retry

    @classmethod
    def of(
        cls,
        source: str,
        cause: str,
        *,
        errno: int = errno.EIO,
        retry: bool = False,
        after: float | None = None,
    ) -> Self:
        """The error for `source`, which is redacted here so that no caller can forget it."""
        return cls(errno, f"{redact(source)}: {cause}", retry=retry, after=after, cause=cause)


class HostDown(OriginError):
    """A server has not answered for so long that it is not asked: reads fail fast."""

    @property
    def temporary(self) -> bool:
        """Servers come back."""
        return True


def check_range(source: str, offset: int, length: int, size: int) -> None:
    """Raise OriginError (EINVAL) unless [offset, offset + length) lies within `size` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        cause = f"{length} bytes at {offset} were asked of {size}"
        raise OriginError.of(source, cause, errno=errno.EINVAL)


class Around(NamedTuple):
    """What comes with a range: [start, end) in bytes, which holds it."""

    start: int
    end: int
    in_order: bool = False
    """Whether what lies before the range has to pass by first: then it is one fetch."""


class Origin(ABC):
    """A blob that never changes. Two methods make one; offsets and lengths are in bytes."""

    instant: bool = False
    """Whether `at_hand` is worth a call."""

    guided: bool = False
    """Whether somebody knows what will be read next: then nobody needs to guess."""

    server: str = ""
    """A name for where the bytes come from: who has the same one shares its link."""

    density: float = 1.0
    """Bytes of it for each byte that comes from `server`."""

    decodes: bool = False
    """Whether its bytes are made of others: how fast those come is measured where they are read."""

    @abstractmethod
    async def size(self) -> int:
        """The blob's size in bytes; OSError when it cannot be had."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, or OSError. Never fewer, never others."""

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        """The bytes of `read` in pieces, in order, as they arrive; OSError when they stop early.

        A caller that leaves before the end closes the iterator (`contextlib.aclosing`).
        """
        end = offset + length
        while offset < end:
            piece = await self.read(offset, min(STREAM_PIECE, end - offset))
            offset += len(piece)
            yield piece

    def at_hand(self, offset: int, view: memoryview) -> bool:
        """Fill `view` with the bytes from `offset` on, if that takes no waiting; False if not.

        Called in any thread, and only while `instant`. An OSError is as good as False: whoever
        reads instead will meet it again.
        """
        return False

    def __str__(self) -> str:
        """What errors and the log call it; without passwords."""
        return type(self).__name__

    def forget(self) -> bool:
        """Something that this gave was wrong: what is asked again is to come from its source.

        Returns whether somebody else will be asked than whoever gave it.
        """
        return False

    def prepare(self) -> None:
        """More will be asked for soon: what that needs may be made ready, without a wait."""
        return None

    async def around(self, start: int, end: int) -> Around:
        """What is at hand once [start, end) is.

        Where bytes come in units, as compressed ones do, all of a unit is best taken at once.
        """
        return Around(start, end)

    async def close(self) -> None:
        """Give back what the origin holds. Twice is fine; other calls are over by then."""
        return None
