"""The conversation between a kernel half and a daemon, as text."""

from __future__ import annotations

import errno
from collections.abc import Callable

from pagein.protocol.messages import Close, Message, Open, Read


class Recorder:
    """Lines of text, one for each thing that somebody did, with the time in seconds.

    Two runs in which the same happens give the same text: it may be compared with a stored one.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` says the time of what is recorded."""
        self.lines: list[str] = []
        self.on = True
        self._clock = clock

    def say(self, who: str, what: str) -> None:
        """Add a line."""
        if self.on:
            self.lines.append(f"{self._clock():10.3f}  {who:6}  {what}")

    @property
    def text(self) -> str:
        """All lines, each with a newline."""
        return "".join(f"{line}\n" for line in self.lines)

    def __str__(self) -> str:
        return self.text


def outcome(problem: BaseException) -> str:
    """How a call that failed is shown: the name of its errno, or of its exception."""
    number = getattr(problem, "errno", None)
    return errno.errorcode.get(number, str(number)) if number else type(problem).__name__


def shown(message: Message) -> str:
    """A message in one line."""
    words = [f"{type(message).__name__.upper()} msg_id={message.msg_id}"]
    words.append(f"object_id={message.object_id}")
    if isinstance(message, Open):
        words.append(f"volume={_text(message.volume_key)} cookie={_text(message.cookie_key)}")
    elif isinstance(message, Read):
        words.append(f"off={message.off} len={message.len}")
    else:
        assert isinstance(message, Close)
    return " ".join(words)


def _text(key: bytes) -> str:
    return key.decode("ascii", errors="backslashreplace")
