"""The `debug` mask: what the kernel half says of its inner life in its log.

The bits are those of the kernel's fs/cachefiles/internal.h, and so is the form of the lines:

  1  KENTER  `==> name(arguments)`   a system call of the daemon's begins, or a netfs asks
  2  KLEAVE  `<== name() = result`   it ends
  4  KDEBUG  `    text`              a state changes: of the device, an object or a request

The mask is set by the command `debug MASK` on the device, or by `pagein debug MASK`; as in the
kernel it is one for all, and outlives the open that set it (facts cachefiles-kernel 2.1). It is 0
to begin with, and then nothing is computed.
"""

from __future__ import annotations

import logging
from typing import Final

log: Final = logging.getLogger("pagein.cachefiles.debug")

KENTER: Final = 1
KLEAVE: Final = 2
KDEBUG: Final = 4


class Debug:
    """The mask, and the lines."""

    def __init__(self) -> None:
        self.mask = 0
        """Looked at before each line."""

    def set(self, mask: int) -> None:
        """Change what is said from now on; bits that mean nothing are kept, and say nothing."""
        self.mask = mask
        if mask:
            log.setLevel(logging.DEBUG)

    def enter(self, name: str, *arguments: object) -> None:
        """A call begins."""
        if self.mask & KENTER:
            log.info("==> %s(%s)", name, ",".join(map(_text, arguments)))

    def leave(self, name: str, result: object = "") -> None:
        """A call ends."""
        if self.mask & KLEAVE:
            log.info("<== %s() = %s", name, _text(result))

    def say(self, text: str) -> None:
        """A state changes."""
        if self.mask & KDEBUG:
            log.info("    %s", text)


def _text(value: object) -> str:
    if isinstance(value, BaseException):
        number = getattr(value, "errno", None)
        return f"-{number}" if number else type(value).__name__
    if isinstance(value, bytes):
        return value.decode("ascii", errors="backslashreplace")
    return str(value)


debug: Final = Debug()
"""Of this process: as in the kernel, there is one."""
