"""The decoder: python-zstandard's, or Python's own `compression.zstd`, whichever is here.

Nothing else of this package knows which. Both are libzstd; what is used of it are dictionaries,
frames decoded at once, and frames decoded as they come.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Final, Protocol

from pagein.images.layers.errors import LayerError

MAX_WINDOW: Final = 128 << 20
"""Bytes: frames with a larger window are refused. It is the largest that `zstd` itself accepts."""

_WINDOW_LOG: Final = 27


class Damaged(Exception):
    """What was given cannot be decoded."""


class Stream(Protocol):
    """Decodes one frame as it comes."""

    def decompress(self, data: bytes) -> bytes:
        """What has become known by `data`; `Damaged`."""

    @property
    def eof(self) -> bool:
        """Whether the frame has ended."""


class Library(Protocol):
    """One way to get at libzstd."""

    def dictionary(self, content: bytearray) -> Any:
        """A formatted dictionary (RFC 8878 5), to be used in any number of threads."""

    def decode(self, frame: bytes, dictionary: Any) -> bytes:
        """A whole frame, whose header says its size; `Damaged`."""

    def stream(self, dictionary: Any) -> Stream:
        """A decoder for one frame; the dictionary may be None."""


@functools.cache
def library() -> Library:
    """The one that is here; LayerError if there is none."""
    for name, kind in (
        ("zstandard", _Zstandard),
        ("compression.zstd", _Standard),
        ("backports.zstd", _Standard),
    ):
        try:
            return kind(importlib.import_module(name))
        except ImportError:
            continue
    raise LayerError("zstd layers need zstandard: pip install 'pagein[oci]'")


class _Zstandard:
    """python-zstandard."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def dictionary(self, content: bytearray) -> Any:
        return self._module.ZstdCompressionDict(content, dict_type=self._module.DICT_TYPE_FULLDICT)

    def decode(self, frame: bytes, dictionary: Any) -> bytes:
        try:
            output: bytes = self._decompressor(dictionary).decompress(frame)
        except self._module.ZstdError as error:
            raise Damaged(str(error)) from None
        return output

    def stream(self, dictionary: Any) -> Stream:
        return _Converted(self._decompressor(dictionary).decompressobj(), self._module.ZstdError)

    def _decompressor(self, dictionary: Any) -> Any:
        given = {} if dictionary is None else {"dict_data": dictionary}
        try:
            return self._module.ZstdDecompressor(max_window_size=MAX_WINDOW, **given)
        except self._module.ZstdError as error:
            raise Damaged(str(error)) from None


class _Standard:
    """Python's own, from 3.14 on, or its backport."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def dictionary(self, content: bytearray) -> Any:
        return self._module.ZstdDict(content)

    def decode(self, frame: bytes, dictionary: Any) -> bytes:
        decoder = self._decompressor(dictionary)
        try:
            output: bytes = decoder.decompress(frame)
        except self._module.ZstdError as error:
            raise Damaged(str(error)) from None
        if not decoder.eof:
            raise Damaged("the frame has no end")
        return output

    def stream(self, dictionary: Any) -> Stream:
        return _Converted(self._decompressor(dictionary), self._module.ZstdError)

    def _decompressor(self, dictionary: Any) -> Any:
        options = {self._module.DecompressionParameter.window_log_max: _WINDOW_LOG}
        try:
            return self._module.ZstdDecompressor(zstd_dict=dictionary, options=options)
        except self._module.ZstdError as error:
            raise Damaged(str(error)) from None


class _Converted:
    """A stream of either, with our error."""

    def __init__(self, decoder: Any, error: type[Exception]) -> None:
        self._decoder = decoder
        self._error = error

    def decompress(self, data: bytes) -> bytes:
        try:
            output: bytes = self._decoder.decompress(data)
        except self._error as error:
            raise Damaged(str(error)) from None
        return output

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)
