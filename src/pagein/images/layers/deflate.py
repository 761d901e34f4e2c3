"""Decompressors for reading: zlib-ng's, which are twice as fast, where its wheel is installed."""

from __future__ import annotations

import contextlib
import importlib
import zlib
from typing import Any

_library: Any = zlib
with contextlib.suppress(ImportError):  # it is of the extra `oci`
    _library = importlib.import_module("zlib_ng.zlib_ng")

ERRORS: tuple[type[Exception], ...] = (zlib.error, _library.error)
"""What a decompressor raises for damaged data."""


def decompressor(wbits: int, window: bytes = b"") -> zlib._Decompress:
    """As zlib.decompressobj; `window` is what lies before."""
    given = {"zdict": window} if window else {}
    made: zlib._Decompress = _library.decompressobj(wbits, **given)
    return made
