"""The one error of the reader."""

from __future__ import annotations

import errno
import os


class ErofsError(OSError):
    """An image that is damaged (EUCLEAN) or of a kind that is not read (EOPNOTSUPP).

    `str()` is one line that says where. What a path may lack (ENOENT, ENOTDIR, ELOOP) is the
    OSError that the kernel would give.
    """

    def __init__(self, message: str, number: int = errno.EUCLEAN) -> None:
        super().__init__(number, message)

    def __str__(self) -> str:
        return str(self.args[1])

    @classmethod
    def at(cls, path: bytes, message: object, number: int = errno.EUCLEAN) -> ErofsError:
        """The error for the file at `path` within the image."""
        return cls(f"{os.fsdecode(path) or '/'}: {message}", number)
