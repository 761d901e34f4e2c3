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
VOLUME_COHERENCY = bytes(4)
"""Value on a volume's directory: be32 0 and no coherency data, as EROFS has none."""


class Unusable(OSError):
    """The attribute is missing or over-long: the object fails until its file is removed."""


@dataclass(frozen=True, slots=True)
class ObjectXattr:
    """be64 object size in bytes, be64 zero point, u8 type, u8 content."""

    object_size: int
    zero_point: int = 0
    type: int = _TYPE_DATA
    content: int = 0

    def encode(self) -> bytes:
        return _OBJECT.pack(self.object_size, self.zero_point, self.type, self.content)

    def matches(self, object_size: int) -> bool:
        """Whether the file's content may be used for an object of this size (facts 7.3)."""
        return (
            self.object_size == object_size
            and self.type == _TYPE_DATA
            and self.content != _CONTENT_DIRTY
        )


def set_object(fd: int, object_size: int) -> None:
    """Write the attribute of an object of `object_size` bytes to its open file."""
    os.setxattr(fd, NAME, ObjectXattr(object_size).encode())


def get_object(fd: int) -> ObjectXattr | None:
    """The attribute of an open file; None when it is too short (then the file is stale).

    Raises Unusable when it is missing (ENODATA) or longer than 18 bytes (ERANGE), which fails
    the lookup every time (facts 7.3).
    """
    try:
        value = os.getxattr(fd, NAME)
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise Unusable(errno.ENODATA, "cache file without its extended attribute") from None
        raise
    if len(value) > _OBJECT.size:
        raise Unusable(errno.ERANGE, f"extended attribute of {len(value)} bytes")
    if len(value) < _OBJECT.size:
        return None
    return ObjectXattr(*_OBJECT.unpack(value))
