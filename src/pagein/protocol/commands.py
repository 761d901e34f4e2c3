"""Commands of the user half to the kernel half: text <-> values, and the errno of each mistake.

A write() to the device is one command. The order of the checks is part of the interface, because
it decides which errno a daemon sees; it is the order of facts cachefiles-kernel 2, 2.1 and 6. What
needs the state of a cache (EIO when dead, EEXIST, EBUSY, EOPNOTSUPP outside on-demand mode) is
checked by the kernel half, at the places named in the docstrings.

Reading is as lenient as the kernel: `copen 0x10,+5` is fine. The encoders say each thing in one
form, and raise ValueError for what the kernel would read differently from what was meant.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Final

from pagein.protocol.messages import PAGE_SIZE

COMMAND_MAX: Final = PAGE_SIZE - 1
"""Bytes of the longest command, newline included."""

ERRNO_MAX: Final = 4095
"""The highest errno a negative copen can carry (MAX_ERRNO)."""

_LONG_MAX: Final = (1 << 63) - 1
_ULONG_MAX: Final = (1 << 64) - 1
_ULONG_DIGITS: Final = 22  # of ULONG_MAX in octal, the base in which it is longest

# isspace() of the kernel's lib/ctype.c is Latin-1: a no-break space (0xa0) is a blank.
_BLANKS: Final = b"\t\n\v\f\r \xa0"
_BLANK: Final = re.compile(b"[" + re.escape(_BLANKS) + b"]")

# Base 0: 0x and a hexadecimal digit, else 0 for octal, else decimal.
_NUMBER: Final = re.compile(rb"0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*)")
_NUMBER_BASE: Final = (0, 16, 8, 10)  # by the number of the group that matched

# `simple_strtoul` in base 10. It wraps silently, so that 18446744073709551623% is 7%; here more
# digits than a percentage can have are no number.
_PERCENT: Final = re.compile(rb"0*([0-9]{0,9})%")


class CommandError(OSError):
    """A command the kernel half refuses; `errno` is what the write() fails with."""


# ---- numbers


def kstrtoul(raw: bytes) -> int:
    """Return the unsigned number in `raw` as the kernel's kstrtoul(base 0) does on 64-bit hosts.

    A leading `+` and one newline at the end are allowed, blanks and `-` are not.

    Raises:
        CommandError: EINVAL for what is no number, ERANGE from 2**64 on.
    """
    return _parse_number(raw, raw.removeprefix(b"+"))


def kstrtol(raw: bytes) -> int:
    """Return the signed number in `raw` as the kernel's kstrtol(base 0) does on 64-bit hosts.

    Raises:
        CommandError: EINVAL for what is no number, ERANGE outside -2**63..2**63-1.
    """
    value = -_parse_number(raw, raw[1:]) if raw.startswith(b"-") else kstrtoul(raw)
    if not -_LONG_MAX - 1 <= value <= _LONG_MAX:
        raise _out_of_range(raw)
    return value


def _parse_number(raw: bytes, unsigned: bytes) -> int:
    """Return the number in `unsigned`, which is `raw` without its sign."""
    match = _NUMBER.match(unsigned)
    if match is None or match.lastindex is None:
        raise _invalid(f"not a number: {raw!r}")
    digits = match[match.lastindex].lstrip(b"0") or b"0"
    # An overflow is found before what follows the digits is looked at. The length is compared
    # first so that nobody can have us convert thousands of digits.
    if len(digits) > _ULONG_DIGITS:
        raise _out_of_range(raw)
    value = int(digits, _NUMBER_BASE[match.lastindex])
    if value > _ULONG_MAX:
        raise _out_of_range(raw)
    if unsigned[match.end() :] not in (b"", b"\n"):
        raise _invalid(f"not a number: {raw!r}")
    return value


# ---- arguments of each command


def parse_dir(args: bytes) -> bytes:
    """Return the path of `dir PATH`; blanks inside it and at its end belong to it.

    Raises:
        CommandError: EINVAL if it is empty. EEXIST (already set) is the kernel half's, after this.
    """
    if not args:
        raise _invalid("dir: no directory given")
    return args


def parse_tag(args: bytes) -> bytes:
    """Return the name of `tag NAME`.

    Raises:
        CommandError: EINVAL if it is empty. EEXIST (already set) is the kernel half's, after this.
    """
    if not args:
        raise _invalid("tag: no name given")
    return args


def parse_bind(args: bytes) -> bool:
    """Return whether `bind [ondemand]` asks for on-demand mode.

    Raises:
        CommandError: EINVAL for any other argument. Before this the kernel half checks the limits
            (ERANGE), that there is a directory (EINVAL) and that it is not bound (EBUSY).
    """
    if args not in (b"", b"ondemand"):
        raise _invalid(f"bind: unknown argument {args!r}")
    return args == b"ondemand"


def parse_copen(args: bytes) -> tuple[int, bytes]:
    """Return the msg_id of `copen ID,SIZE` and the size as it stands there.

    Two steps, because the kernel half takes the request out between them: with a bad id nothing
    happens, with a bad size (`parse_copen_size`) the OPEN fails as well as the write().

    Raises:
        CommandError: EINVAL if there is nothing, no comma, or no number; ERANGE for an id from
            2**64 on. EOPNOTSUPP (not in on-demand mode) is the kernel half's, before this.
    """
    if not args:
        raise _invalid("copen: no id given")
    msg_id, comma, size = args.partition(b",")
    if not comma:
        raise _invalid(f"copen: no size in {args!r}")
    return kstrtoul(msg_id), size


def parse_copen_size(raw: bytes) -> int:
    """Return the size in bytes of `copen ID,SIZE`, or a negative errno (-1..-4095).

    Raises:
        CommandError: EINVAL for what is no number and below -4095, ERANGE for what no long holds.
            The OPEN then fails with the same errno.
    """
    size = kstrtol(raw)
    if size < -ERRNO_MAX:
        raise _invalid(f"copen: {size} is neither a size nor a negative errno")
    return size


def parse_percent(args: bytes) -> int:
    """Return the number of `brun N%` and its like, decimal; no digits are 0, as in the kernel.

    Raises:
        CommandError: EINVAL for anything else, and for numbers that the kernel would wrap. What
            range is allowed depends on the other limits: `space.Limits.set`, after this.
    """
    match = _PERCENT.fullmatch(args)
    if match is None:
        raise _invalid(f"not a percentage: {args[:64]!r}")
    return int(match[1] or b"0")


def parse_name(args: bytes) -> bytes:
    """Return the name of `cull NAME` and `inuse NAME`, which is in the writer's directory.

    Raises:
        CommandError: EINVAL if it is a path. EIO (not bound, dead; no name, `.` and `..`), ENOTDIR
            and what the file system says are the kernel half's, after this.
    """
    if b"/" in args:
        raise _invalid(f"{args!r} is no name in the working directory")
    return args


def parse_debug(args: bytes) -> int:
    """Return the mask of `debug MASK`, 32 bits: decimal, octal or hexadecimal; nothing is 0.

    Raises:
        CommandError: EINVAL for anything else; a number that is too large wraps.
    """
    match = _NUMBER.match(args)
    if match is None or match.lastindex is None:
        if args:
            raise _invalid(f"debug: not a mask: {args[:64]!r}")
        return 0
    if match.end() != len(args):
        raise _invalid(f"debug: not a mask: {args[:64]!r}")
    # A command is short enough for any number in it to be converted.
    return int(match[match.lastindex], _NUMBER_BASE[match.lastindex]) & 0xFFFFFFFF


def parse_secctx(args: bytes) -> bytes:
    """Return the context of `secctx CONTEXT`.

    Raises:
        CommandError: EINVAL if it is empty. EOPNOTSUPP (no security module) is the kernel half's.
    """
    if not args:
        raise _invalid("secctx: no context given")
    return args


def parse_restore(args: bytes) -> None:
    """Accept any arguments of `restore`, as the kernel does.

    EOPNOTSUPP (not in on-demand mode) is the kernel half's.
    """


VERBS: Final[Mapping[str, Callable[[bytes], object]]] = MappingProxyType(
    {
        **dict.fromkeys(("brun", "bcull", "bstop", "frun", "fcull", "fstop"), parse_percent),
        "cull": parse_name,
        "inuse": parse_name,
        "debug": parse_debug,
        "secctx": parse_secctx,
        "dir": parse_dir,
        "tag": parse_tag,
        "bind": parse_bind,
        "copen": parse_copen,
        "restore": parse_restore,
    }
)
"""The commands there are, each with the function that reads its arguments."""


def split(data: bytes, verbs: Container[str] = VERBS) -> tuple[str, bytes]:
    """Return the verb and the arguments of one write() (facts cachefiles-kernel 2, steps 2 to 6).

    Text from the first newline on is ignored, blanks at the end of the arguments are theirs. A
    write that succeeds reports the whole length of `data`. EIO for a dead cache comes before this.

    Raises:
        CommandError: EOPNOTSUPP for 4096 bytes or more, an empty command, a blank at its start,
            a verb not among `verbs`; EINVAL for a NUL anywhere or a newline at the start.
    """
    if len(data) > COMMAND_MAX:
        raise _unsupported(f"command of {len(data)} bytes, {COMMAND_MAX} at most")
    if b"\0" in data:
        raise _invalid("command with a NUL inside")
    line, newline, _ = data.partition(b"\n")
    if newline and not line:
        raise _invalid("command that begins with a newline")
    blank = _BLANK.search(line)
    end = blank.start() if blank else len(line)
    verb = line[:end].decode("latin-1")  # of any bytes, though every known verb is ASCII
    if verb not in verbs:
        raise _unsupported(f"unknown command {verb!r}")
    return verb, line[end:].lstrip(_BLANKS)


# ---- what a daemon writes


def dir_(path: bytes | str) -> bytes:
    """Return the command that names the cache directory.

    Raises:
        ValueError: the path is empty, begins with a blank, has a newline or NUL, or is too long.
    """
    return _with_text(b"dir ", path)


def tag(name: bytes | str) -> bytes:
    """Return the command that names the cache. Keep one name: facts cachefiles-kernel 7.5.

    Raises:
        ValueError: the name is empty, begins with a blank, has a newline or NUL, or is too long.
    """
    return _with_text(b"tag ", name)


def bind(ondemand: bool = True) -> bytes:
    """Return the command that brings the cache on line (seed: Turn on On-demand Mode)."""
    return b"bind ondemand" if ondemand else b"bind"


def copen(msg_id: int, size_or_negative_errno: int) -> bytes:
    """Return the answer to an OPEN: the object's size in bytes, or a negative errno.

    Raises:
        ValueError: the id is not one of a message, or the number is below -4095 or no long.
    """
    if not 0 <= msg_id < 1 << 32:
        raise ValueError(f"copen: no message has the id {msg_id}")
    if not -ERRNO_MAX <= size_or_negative_errno <= _LONG_MAX:
        raise ValueError(f"copen: {size_or_negative_errno} is neither a size nor a negative errno")
    return b"copen %d,%d" % (msg_id, size_or_negative_errno)


def restore() -> bytes:
    """Return the command that has all pending requests delivered again."""
    return b"restore"


def _with_text(verb: bytes, text: bytes | str) -> bytes:
    raw = os.fsencode(text)
    if not raw or raw[0] in _BLANKS:
        raise ValueError(f"{raw!r} is empty or begins with a blank, which the kernel would skip")
    if b"\n" in raw or b"\0" in raw:
        raise ValueError(f"{raw!r} has a newline or a NUL, which no command can carry")
    command = verb + raw
    if len(command) > COMMAND_MAX:
        raise ValueError(f"command of {len(command)} bytes, {COMMAND_MAX} at most")
    return command


# ---- errors


def _invalid(text: str) -> CommandError:
    return CommandError(errno.EINVAL, text)


def _out_of_range(raw: bytes) -> CommandError:
    return CommandError(errno.ERANGE, f"number out of range: {raw[:64]!r}")


def _unsupported(text: str) -> CommandError:
    return CommandError(errno.EOPNOTSUPP, text)
