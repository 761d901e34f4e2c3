"""A file system of fsspec that says what was asked of it, and misbehaves on request."""

import time
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class CountingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory, with the ranges that were read of them."""

    protocol: ClassVar[str] = "counting"
    asked: ClassVar[list[tuple[int, int]]] = []
    lie: ClassVar[str] = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("counting://"))
        return stripped

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        self.asked.append((start, end))
        if self.lie == "slow":
            time.sleep(3.0)
        if self.lie == "broken":
            raise RuntimeError("the bucket has a hole")
        data: bytes = super().cat_file(path, start, end)
        return data[:-1] if self.lie == "short" else data
