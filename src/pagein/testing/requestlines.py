"""Counting the HTTP/1 requests in a stream of bytes: request lines, headers, bodies skipped."""

from __future__ import annotations

import re
from typing import Final

_REQUEST: Final = re.compile(rb"[A-Z]+ \S+ HTTP/1\.[01]\r?")
_MAX_LINE: Final = 64 << 10


class RequestLines:
    """Fed with what a client sends; says how many requests have had all of their headers."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._skip = 0
        """Bytes of a body, or of a chunk, still to come."""
        self._state = self._request_line
        self._length = 0
        self._chunked = False
        self.opaque = False
        """Whether it is something else than HTTP/1, TLS for instance."""

    def feed(self, data: bytes) -> int:
        """Take the next bytes; how many requests were complete with them, but for their bodies."""
        began, at = 0, 0
        while at < len(data) and not self.opaque:
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            end = data.find(b"\n", at)
            self._line += data[at : end if end >= 0 else len(data)]
            at = end + 1 if end >= 0 else len(data)
            if len(self._line) > _MAX_LINE:
                self.opaque = True
            elif end >= 0:
                line = bytes(self._line).rstrip(b"\r")
                self._line.clear()
                began += self._state(line)
        return began

    def _request_line(self, line: bytes) -> bool:
        if not line:  # allowed between requests (RFC 9112 2.2)
            return False
        if not _REQUEST.fullmatch(line):
            self.opaque = True
            return False
        self._length, self._chunked = 0, False
        self._state = self._header
        return False

    def _header(self, line: bytes) -> bool:
        if line:
            name, _, value = line.lower().partition(b":")
            if name == b"content-length" and value.strip().isdigit():
                self._length = int(value)
            elif name == b"transfer-encoding" and b"chunked" in value:
                self._chunked = True
            return False
        self._skip = 0 if self._chunked else self._length
        self._state = self._chunk if self._chunked else self._request_line
        return True

    def _chunk(self, line: bytes) -> bool:
        size = line.partition(b";")[0].strip()
        try:
            length = int(size, 16)
        except ValueError:
            self.opaque = True
            return False
        if length:
            self._skip = length + 2  # with its line end
        else:
            self._state = self._trailer
        return False

    def _trailer(self, line: bytes) -> bool:
        if not line:
            self._state = self._request_line
        return False
