"""What the test web server answers, right or wrong. No I/O but reading files to spoil them."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Literal

FaultKind = Literal[
    "status",  # answers `code` instead
    "ignore_range",  # 200 and the whole file
    "short_body",  # closes the connection after `after` bytes (default: half) of the body
    "short_length",  # Content-Length and body end early, Content-Range says otherwise
    "long_body",  # more bytes than Content-Range says, Content-Length counts them
    "wrong_content_range",  # another range than asked for, header and bytes
    "wrong_total",  # Content-Range with another size, and other bytes
    "hang",  # goes silent: before the headers, or after `after` bytes of the body
    "reset",  # RST: before the headers, or after `after` bytes of the body
    "change_etag",  # another ETag, and other bytes
    "extra_encoding",  # gzip, although identity was asked for
]


@dataclass(frozen=True, slots=True)
class Fault:
    """What one answer does wrong. `after`: bytes of the body sent before it happens.

    `retry_after`: seconds, or a date, that a `status` asks for.
    """

    kind: FaultKind
    code: int = 500
    after: int | None = None
    retry_after: str | None = None


@dataclass(slots=True)
class Answer:
    """One answer: the head, and [start, end) of `content` as its body, in bytes.

    With an `ending` the connection ends or hangs: after `stop_after` bytes of the body, or before
    the head when that is None.
    """

    status: int
    headers: dict[str, str]
    content: bytes | Path = b""
    start: int = 0
    end: int = 0
    stop_after: int | None = None
    ending: FaultKind | None = None
    head_only: bool = False


def refusal(status: int, headers: dict[str, str] | None = None) -> Answer:
    """An answer without a body. A method with one we do not read: so the connection ends there."""
    answer = Answer(status, {**(headers or {}), "Content-Length": "0"})
    if status == 405:
        answer.headers["Connection"] = "close"
        answer.ending, answer.stop_after = "short_body", 0
    return answer


def whole(content: bytes | Path, size: int, validators: dict[str, str]) -> Answer:
    """200 with all of a file."""
    headers = {**validators, "Accept-Ranges": "bytes", "Content-Length": str(size)}
    headers["Content-Type"] = "application/octet-stream"
    return Answer(200, headers, content, 0, size)


def narrow(answer: Answer, start: int, end: int, size: int) -> None:
    """Make 206 of a 200, or 416 (RFC 9110 15.3.7, 15.5.17)."""
    if start >= size:
        answer.status, answer.content, answer.end = 416, b"", 0
        answer.headers.update({"Content-Range": f"bytes */{size}", "Content-Length": "0"})
        return
    answer.status, answer.start, answer.end = 206, start, end
    answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    answer.headers["Content-Length"] = str(end - start)


def authorized(headers: dict[str, str], credentials: tuple[str, str]) -> bool:
    """Whether the request brings `credentials` (RFC 7617)."""
    token = base64.b64encode(":".join(credentials).encode()).decode("ascii")
    return headers.get("authorization") == f"Basic {token}"


def parse_range(
    headers: dict[str, str], size: int, validators: dict[str, str]
) -> tuple[int, int] | None:
    """[start, end) of a single range; None where the header is to be ignored (RFC 9110 14.2).

    A start that is not below `size` means that the range cannot be satisfied.
    """
    if_range = headers.get("if-range")
    if if_range is not None and if_range not in validators.values():
        return None
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""), re.ASCII)
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start = int(first)
    end = min(size, int(last) + 1) if last else size
    if last and int(last) < start:
        return None
    return start, end


def spoil(answer: Answer, fault: Fault, size: int) -> None:
    """Turn a right answer for a file of `size` bytes into the wrong one of `fault`."""
    _SPOILERS[fault.kind](answer, fault, size)


def _body(answer: Answer) -> bytes:
    if isinstance(answer.content, bytes):
        return answer.content[answer.start : answer.end]
    with answer.content.open("rb") as file:
        file.seek(answer.start)
        return file.read(answer.end - answer.start)


def _set_body(answer: Answer, body: bytes) -> None:
    answer.content, answer.start, answer.end = body, 0, len(body)
    answer.headers["Content-Length"] = str(len(body))


_INVERTED = bytes(255 - value for value in range(256))


def _other_bytes(answer: Answer) -> None:
    _set_body(answer, _body(answer).translate(_INVERTED))


def _status(answer: Answer, fault: Fault, size: int) -> None:
    answer.status, answer.headers, answer.end = fault.code, {"Content-Length": "0"}, answer.start
    if fault.retry_after is not None:
        answer.headers |= {"Retry-After": fault.retry_after, "Date": formatdate(usegmt=True)}


def _ignore_range(answer: Answer, fault: Fault, size: int) -> None:
    answer.status, answer.start, answer.end = 200, 0, size
    answer.headers["Content-Length"] = str(size)
    answer.headers.pop("Content-Range", None)


def _end_early(answer: Answer, fault: Fault, size: int) -> None:
    length = answer.end - answer.start
    after = length // 2 if fault.after is None and fault.kind == "short_body" else fault.after
    answer.ending = fault.kind
    # Never after the last byte: that would be a right answer, and the next one's fault.
    answer.stop_after = None if after is None else min(after, length - 1)


def _short_length(answer: Answer, fault: Fault, size: int) -> None:
    answer.end = answer.start + (answer.end - answer.start) // 2
    answer.headers["Content-Length"] = str(answer.end - answer.start)


def _long_body(answer: Answer, fault: Fault, size: int) -> None:
    _set_body(answer, _body(answer) + b"and more")


def _wrong_content_range(answer: Answer, fault: Fault, size: int) -> None:
    _other_bytes(answer)
    # Also for a file of one byte, and for all of a file: no honest server can mean this range.
    length = answer.end
    answer.headers["Content-Range"] = f"bytes {size}-{size + length - 1}/{size}"


def _wrong_total(answer: Answer, fault: Fault, size: int) -> None:
    _other_bytes(answer)
    honest = answer.headers.get("Content-Range", f"bytes 0-{size - 1}/{size}")
    answer.headers["Content-Range"] = f"{honest.partition('/')[0]}/{size + 1}"


def _change_etag(answer: Answer, fault: Fault, size: int) -> None:
    _other_bytes(answer)
    answer.headers["ETag"] = '"another"'


def _extra_encoding(answer: Answer, fault: Fault, size: int) -> None:
    _set_body(answer, gzip.compress(_body(answer)))
    answer.headers["Content-Encoding"] = "gzip"


_SPOILERS: dict[FaultKind, Callable[[Answer, Fault, int], None]] = {
    "status": _status,
    "ignore_range": _ignore_range,
    "short_body": _end_early,
    "short_length": _short_length,
    "long_body": _long_body,
    "wrong_content_range": _wrong_content_range,
    "wrong_total": _wrong_total,
    "hang": _end_early,
    "reset": _end_early,
    "change_etag": _change_etag,
    "extra_encoding": _extra_encoding,
}
