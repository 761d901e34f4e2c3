"""How far layers are, on standard error: a line that changes on a terminal, else one at a time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from pagein.cli.units import human


class Shown:
    """Shows what is told by `update` until the end of the block; nothing if nothing is pulled."""

    def __init__(self, kept: str = "data and indexes are kept") -> None:
        """`kept`: what becomes of what is pulled."""
        self._kept = kept
        self._terminal = sys.stderr.isatty()
        self._said: set[str] = set()
        self._line = ""

    def __enter__(self) -> Shown:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._line:
            self._write("\r\x1b[K")

    def update(self, layers: Sequence[dict[str, Any]]) -> None:
        """The layers as they are now (`pull.Progress` as dictionaries)."""
        pulled = [each for each in layers if each["pulled"]]
        if not pulled:
            return
        done, size = (sum(each[name] for each in pulled) for name in ("done", "size"))
        if not self._said:
            text = (
                f"{len(pulled)} of {len(layers)} layers have no index: pulling {human(size)} once"
            )
            self._say("begin", f"pagein: {text}; {self._kept}")
        if self._terminal:
            ready = sum(each["state"] == "here" for each in pulled)
            self._line = f"{human(done)} of {human(size)}, {ready} of {len(pulled)} layers done"
            self._write(f"\r\x1b[K{self._line}")
            return
        for each in pulled:
            if each["state"] == "here":
                self._say(each["layer"], f"pagein: {each['layer'][:19]}: {human(each['size'])}")

    def _say(self, key: str, line: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody looks any more
            sys.stderr.write(text)
            sys.stderr.flush()
