"""A 9p server of one file: `python -m tests.scenarios.ninep FD LOG VERSION SIZE`.

9P2000.L as far as a client needs it that mounts, looks `data` up and reads. Each read that it is
asked for becomes a line of LOG; page N of the file is full of `image.letter(N)`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from tests.scenarios import image

_HEADER = struct.Struct("<IBH")
_LERROR = 7
_ROOT, _FILE = 1, 2
FILE = "data"


def content(offset: int, length: int, size: int) -> bytes:
    """The bytes of the file."""
    end = min(offset + length, size)
    first = offset // image.PAGE
    pages = b"".join(
        image.letter(number) * image.PAGE for number in range(first, -(-end // image.PAGE))
    )
    return pages[offset - first * image.PAGE :][: max(0, end - offset)]


class Server:
    """One connection."""

    def __init__(self, sock: socket.socket, log: int, version: int, size: int) -> None:
        self._sock = sock
        self._log = log
        self._version = version
        self._size = size
        self._fids: dict[int, int] = {}
        self._do: dict[int, Callable[[bytes], bytes]] = {
            8: lambda _: struct.pack("<IIQQQQQQI", 0x01021997, 4096, *[1] * 5, 0, 255),
            12: lambda body: self._qid(self._fid(body)) + struct.pack("<I", 0),
            24: self._getattr,
            100: lambda body: struct.pack("<I", 65536) + body[4:],
            104: self._attach,
            108: lambda _: b"",
            110: self._walk,
            116: self._read,
            120: self._clunk,
        }

    def serve(self) -> None:
        """Until the client is gone."""
        with self._sock.makefile("rb") as stream:
            while len(head := stream.read(_HEADER.size)) == _HEADER.size:
                size, kind, tag = _HEADER.unpack(head)
                body = stream.read(size - _HEADER.size)
                try:
                    kind, answer = kind + 1, self._do[kind](body)
                except KeyError:
                    kind, answer = _LERROR, struct.pack("<I", errno.EOPNOTSUPP)
                except OSError as problem:
                    kind, answer = _LERROR, struct.pack("<I", problem.errno or errno.EIO)
                self._sock.sendall(_HEADER.pack(_HEADER.size + len(answer), kind, tag) + answer)

    def _fid(self, body: bytes) -> int:
        return self._fids[struct.unpack_from("<I", body)[0]]

    def _qid(self, node: int) -> bytes:
        return struct.pack("<BIQ", 0x80 if node == _ROOT else 0, self._version, node)

    def _attach(self, body: bytes) -> bytes:
        self._fids[struct.unpack_from("<I", body)[0]] = _ROOT
        return self._qid(_ROOT)

    def _walk(self, body: bytes) -> bytes:
        fid, new, count = struct.unpack_from("<IIH", body)
        node, found, at = self._fids[fid], b"", 10
        for _ in range(count):
            (length,) = struct.unpack_from("<H", body, at)
            if body[at + 2 : at + 2 + length] != FILE.encode():
                raise FileNotFoundError(errno.ENOENT, "no such file")
            node, at = _FILE, at + 2 + length
            found += self._qid(node)
        self._fids[new] = node
        return struct.pack("<H", count) + found

    def _getattr(self, body: bytes) -> bytes:
        node = self._fid(body)
        mode, size = (0o40755, 0) if node == _ROOT else (0o100644, self._size)
        head = struct.pack("<Q", 0x7FF) + self._qid(node) + struct.pack("<III", mode, 0, 0)
        return head + struct.pack("<QQQQQ", 1, 0, size, 4096, size // 512) + bytes(80)

    def _read(self, body: bytes) -> bytes:
        _, offset, count = struct.unpack_from("<IQI", body)
        data = content(offset, count, self._size)
        os.write(self._log, b"%d+%d\n" % (offset, len(data)))
        return struct.pack("<I", len(data)) + data

    def _clunk(self, body: bytes) -> bytes:
        self._fids.pop(struct.unpack_from("<I", body)[0], None)
        return b""


def main() -> None:
    """Serve the socket of the command line."""
    log = os.open(Path(sys.argv[2]), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        Server(sock, log, int(sys.argv[3]), int(sys.argv[4])).serve()


if __name__ == "__main__":
    main()
