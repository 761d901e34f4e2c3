"""The extended attribute that ties a cache file to its object (facts cachefiles-kernel 12, 7.3)."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

NAME = "user.CacheFiles.cache"
_OBJECT = struct.Struct(">QQBB")
_TYPE_DATA = 1
_CONTENT_DIRTY = 4


def volume_coherency(data: bytes = b"") -> bytes:
    """Value on a volume's directory: be32 0 and the netfs's data, of which EROFS has none."""
    return bytes(4) + data


class Unusable(OSError):
    """The attribute is missing or over-long: the object fails until its file is removed."""


@dataclass(frozen=True, slots=True)
class ObjectXattr:
    """be64 object size in bytes, be64 zero point, u8 type, u8 content, the netfs's data."""

    object_size: int
    zero_point: int = 0
    type: int = _TYPE_DATA
    content: int = 0
    aux: bytes = b""
    """By which the netfs knows its file again: a version, a time of change; none of EROFS."""

    def encode(self) -> bytes:
        head = _OBJECT.pack(self.object_size, self.zero_point, self.type, self.content)
        return head + self.aux

    def matches(self, wanted: ObjectXattr) -> bool:
        """Whether the file's content may be used for an object like that (facts 7.3)."""
        return (
            self.object_size == wanted.object_size
            and self.type == _TYPE_DATA
            and self.aux == wanted.aux
            and self.content != _CONTENT_DIRTY
        )


def set_object(fd: int, value: ObjectXattr) -> None:
    """Write the attribute of an object to its open file."""
    os.setxattr(fd, NAME, value.encode())


def get_object(fd: int, aux_size: int = 0) -> ObjectXattr | None:
    """The attribute of an open file; None when it is too short (then the file is stale).

    Raises Unusable when it is missing (ENODATA) or longer than 18 bytes and `aux_size` (ERANGE),
    which fails the lookup every time (facts 7.3).
    """
    try:
        value = os.getxattr(fd, NAME)
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise Unusable(errno.ENODATA, "cache file without its extended attribute") from None
        raise
    size = _OBJECT.size + aux_size
    if len(value) > size:
        raise Unusable(errno.ERANGE, f"extended attribute of {len(value)} bytes, not {size}")
    if len(value) < size:
        return None
    size, zero_point, kind, content = _OBJECT.unpack_from(value)
    return ObjectXattr(size, zero_point, kind, content, value[_OBJECT.size :])
