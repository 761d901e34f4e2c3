"""The one error of layers that cannot be used."""

from __future__ import annotations


class LayerError(ValueError):
    """A layer or its index is not what it should be; `str()` is one line that says where and why.

    Offsets in it are in bytes: of the tar for archives, of the compressed layer for gzip and zstd,
    of the index for indexes.
    """


def show(name: bytes) -> str:
    """`name` for an error message: on one line, whatever it holds, and not endless."""
    text = name.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return repr(text if len(text) <= 200 else f"{text[:200]}...").replace("\\\\", "\\")
