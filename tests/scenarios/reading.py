"""What a reader got, in few words."""

from __future__ import annotations

from tests.scenarios.image import PAGE


def summary(data: bytes | bytearray) -> str:
    """Bytes read, and a letter for each page of them: 0 for zeros, ? for what is mixed."""
    letters = ""
    for at in range(0, len(data), PAGE):
        page = data[at : at + PAGE]
        uniform = page.count(page[:1]) == len(page)
        letters += ("0" if not page[0] else chr(page[0])) if uniform else "?"
    return f"{len(data)} bytes {letters}".rstrip()
