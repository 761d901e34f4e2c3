"""Commands: each errno of facts cachefiles-kernel 2, 2.1 and 6 that needs no cache to be found."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.protocol import commands
from pagein.protocol.commands import CommandError, kstrtol, kstrtoul

# Python's own name of number 95 is ENOTSUP.
NAMES = {errno.EINVAL: "EINVAL", errno.ERANGE: "ERANGE", errno.EOPNOTSUPP: "EOPNOTSUPP"}
LONG_MAX, ULONG_MAX = 2**63 - 1, 2**64 - 1


def outcome(function: Callable[[bytes], object], data: bytes) -> object:
    """What the function returns, or the errno it fails with as a string of its name."""
    try:
        return function(data)
    except CommandError as error:
        assert error.errno is not None
        assert error.strerror
        return NAMES[error.errno]


def run(data: bytes) -> object:
    """One write() as far as it can be judged without a cache."""
    verb, args = commands.split(data)
    return verb, commands.VERBS[verb](args)


# Facts 2: taking a write apart.
SPLITS: list[tuple[bytes, object]] = [
    (b"bind", ("bind", b"")),
    (b"bind ondemand", ("bind", b"ondemand")),
    (b"bind  ondemand", ("bind", b"ondemand")),
    (b"bind \t\v\f\r\xa0ondemand", ("bind", b"ondemand")),
    (b"bind\xa0ondemand", ("bind", b"ondemand")),
    (b"bind ", ("bind", b"")),
    (b"dir /a b ", ("dir", b"/a b ")),
    (b"dir /\xc3\xa4\xff", ("dir", b"/\xc3\xa4\xff")),
    (b"tag x\n", ("tag", b"x")),
    (b"tag x\nbind\n\nanything", ("tag", b"x")),
    (b"tag\nx", ("tag", b"")),
    (b"copen 5,5\n", ("copen", b"5,5")),
    (b"restore junk", ("restore", b"junk")),
    (b"dir " + b"x" * 4091, ("dir", b"x" * 4091)),
    (b"dir " + b"x" * 4092, "EOPNOTSUPP"),
    (b"\0" * 4096, "EOPNOTSUPP"),  # the length is looked at before the NULs
    (b"tag x\0", "EINVAL"),
    (b"\0", "EINVAL"),
    (b"tag x\n\0", "EINVAL"),  # a NUL counts even where the text is ignored
    (b" \0", "EINVAL"),
    (b"\n", "EINVAL"),
    (b"\nbind", "EINVAL"),
    (b"", "EOPNOTSUPP"),
    (b" bind", "EOPNOTSUPP"),
    (b"\tbind", "EOPNOTSUPP"),
    (b" \n", "EOPNOTSUPP"),
    (b"Bind", "EOPNOTSUPP"),
    (b"BIND ondemand", "EOPNOTSUPP"),
    (b"bin", "EOPNOTSUPP"),
    (b"bindondemand", "EOPNOTSUPP"),
    (b"\xff\xfe x", "EOPNOTSUPP"),
]

# Facts 2.1, without the rows that depend on what was said before.
RUNS: list[tuple[bytes, object]] = [
    (b"dir /var/cache/x", ("dir", b"/var/cache/x")),
    (b"dir  /x ", ("dir", b"/x ")),
    (b"dir", "EINVAL"),
    (b"dir  ", "EINVAL"),
    (b"tag pagein", ("tag", b"pagein")),
    (b"tag", "EINVAL"),
    (b"bind", ("bind", False)),
    (b"bind\n", ("bind", False)),
    (b"bind ondemand", ("bind", True)),
    (b"bind  ondemand", ("bind", True)),
    (b"bind ondemand ", "EINVAL"),
    (b"bind ondemand x", "EINVAL"),
    (b"bind bogus", "EINVAL"),
    (b"bind Ondemand", "EINVAL"),
    (b"brun 7%", ("brun", 7)),
    (b"fcull 010%", ("fcull", 10)),
    (b"bstop %", ("bstop", 0)),
    (b"bstop 0000000000000005%", ("bstop", 5)),
    (b"frun 999999999%", ("frun", 999999999)),
    (b"frun", "EINVAL"),
    (b"frun 7", "EINVAL"),
    (b"frun 7 %", "EINVAL"),
    (b"frun 7%%", "EINVAL"),
    (b"frun 7% ", "EINVAL"),
    (b"frun -1%", "EINVAL"),
    (b"frun 0x10%", "EINVAL"),
    (b"frun 18446744073709551623%", "EINVAL"),
    (b"cull name ", ("cull", b"name ")),
    (b"cull", ("cull", b"")),
    (b"cull a/b", "EINVAL"),
    (b"inuse ..", ("inuse", b"..")),
    (b"inuse /", "EINVAL"),
    (b"debug", ("debug", 0)),
    (b"debug 0x1F", ("debug", 31)),
    (b"debug 010", ("debug", 8)),
    (b"debug 4294967297", ("debug", 1)),
    (b"debug 08", "EINVAL"),
    (b"debug 0x", "EINVAL"),
    (b"debug 1 ", "EINVAL"),
    (b"debug -1", "EINVAL"),
    (b"secctx a:b", ("secctx", b"a:b")),
    (b"secctx ", "EINVAL"),
    (b"restore", ("restore", None)),
    (b"restore junk", ("restore", None)),
]

# Facts 6, step 1: before a request is looked for.
COPEN_IDS: list[tuple[bytes, object]] = [
    (b"5,4096", (5, b"4096")),
    (b"0,", (0, b"")),
    (b"0x10,1", (16, b"1")),
    (b"0X1f,1", (31, b"1")),
    (b"010,1", (8, b"1")),
    (b"+7,1", (7, b"1")),
    (b"5,6,7", (5, b"6,7")),
    (b"5, 6", (5, b" 6")),
    (b"18446744073709551615,1", (ULONG_MAX, b"1")),
    (b"", "EINVAL"),
    (b"5", "EINVAL"),
    (b"5 6", "EINVAL"),
    (b",1", "EINVAL"),
    (b"-1,1", "EINVAL"),
    (b" 0,1", "EINVAL"),
    (b"0 ,1", "EINVAL"),
    (b"++0,1", "EINVAL"),
    (b"abc,1", "EINVAL"),
    (b"0x,1", "EINVAL"),
    (b"08,1", "EINVAL"),
    (b"18446744073709551616,1", "ERANGE"),
    (b"99999999999999999999x,1", "ERANGE"),
    (b"18446744073709551616", "EINVAL"),  # the comma is looked for before the number
]

# Facts 6, steps 3 and 4: the request is out, the OPEN fails with the same errno.
COPEN_SIZES: list[tuple[bytes, object]] = [
    (b"0", 0),
    (b"4096", 4096),
    (b"5\n", 5),
    (b"+5", 5),
    (b"-0", 0),
    (b"0x1000", 4096),
    (b"010", 8),
    (b"9223372036854775807", LONG_MAX),
    (b"-1", -1),
    (b"-2", -2),
    (b"-0x2", -2),
    (b"-4095", -4095),
    (b"-4096", "EINVAL"),
    (b"-9223372036854775808", "EINVAL"),
    (b"", "EINVAL"),
    (b"+", "EINVAL"),
    (b"-", "EINVAL"),
    (b" 5", "EINVAL"),
    (b"5 ", "EINVAL"),
    (b"5\n\n", "EINVAL"),
    (b"abc", "EINVAL"),
    (b"5,6", "EINVAL"),
    (b"-+5", "EINVAL"),
    (b"+-5", "EINVAL"),
    (b"9223372036854775808", "ERANGE"),
    (b"-9223372036854775809", "ERANGE"),
    (b"18446744073709551615", "ERANGE"),
    (b"-99999999999999999999", "ERANGE"),
]


@pytest.mark.parametrize(("data", "expected"), SPLITS)
def test_split(data: bytes, expected: object) -> None:
    assert outcome(commands.split, data) == expected


@pytest.mark.parametrize(("data", "expected"), RUNS)
def test_command(data: bytes, expected: object) -> None:
    assert outcome(run, data) == expected


@pytest.mark.parametrize(("data", "expected"), COPEN_IDS)
def test_copen_id(data: bytes, expected: object) -> None:
    assert outcome(commands.parse_copen, data) == expected


@pytest.mark.parametrize(("data", "expected"), COPEN_SIZES)
def test_copen_size(data: bytes, expected: object) -> None:
    assert outcome(commands.parse_copen_size, data) == expected


def test_the_verbs() -> None:
    limits = {"brun", "bcull", "bstop", "frun", "fcull", "fstop"}
    others = {"bind", "copen", "cull", "debug", "dir", "inuse", "restore", "secctx", "tag"}
    assert set(commands.VERBS) == limits | others


# ---- numbers, against a digit-by-digit reading of what the kernel documents


def naive(raw: str, signed: bool) -> int | str:
    """kstrtoul and kstrtol in the slowest way."""
    negative = signed and raw.startswith("-")
    text = raw[1:] if negative or raw.startswith("+") else raw
    base = 10
    if text.startswith("0"):
        base = 8
        if text[1:2] in ("x", "X") and text[2:3].lower() in tuple("0123456789abcdef"):
            base, text = 16, text[2:]
    value = used = 0
    for char in text:
        digit = "0123456789abcdef".find(char.lower())
        if not 0 <= digit < base:
            break
        value, used = value * base + digit, used + 1
    if value > ULONG_MAX:
        return "ERANGE"
    if used == 0 or text[used:] not in ("", "\n"):
        return "EINVAL"
    value = -value if negative else value
    return "ERANGE" if signed and not -LONG_MAX - 1 <= value <= LONG_MAX else value


NEARLY_NUMBERS = st.one_of(
    st.text(alphabet="0123789afgxX+- \n", max_size=26),
    st.from_regex(r"[+-]?(0[xX]?)?[0-9a-f]{1,24}\n?", fullmatch=True),
    st.builds(
        "{}{}".format,
        st.sampled_from(["", "+", "-"]),
        st.integers(-3, 3).flatmap(
            lambda near: st.sampled_from([2**63 + near, 2**64 + near]).flatmap(
                lambda n: st.sampled_from([f"{n}", f"{n:#x}", f"0{n:o}", f"00{n:o}"])
            )
        ),
    ),
)


@given(NEARLY_NUMBERS)
def test_kstrtoul(text: str) -> None:
    assert outcome(kstrtoul, text.encode()) == naive(text, signed=False)


@given(NEARLY_NUMBERS)
def test_kstrtol(text: str) -> None:
    assert outcome(kstrtol, text.encode()) == naive(text, signed=True)


@pytest.mark.parametrize(
    "digits", [b"9" * 4301, b"9" * 100_000, b"7" * 22 + b"x", b"0" + b"7" * 23]
)
def test_absurd_numbers_are_out_of_range(digits: bytes) -> None:
    assert outcome(kstrtoul, digits) == "ERANGE"
    assert outcome(kstrtol, b"-" + digits) == "ERANGE"


def test_leading_zeros_are_no_overflow() -> None:
    assert kstrtoul(b"0" * 5000 + b"17") == 0o17
    assert kstrtoul(b"0x" + b"0" * 5000 + b"ff") == 0xFF


# ---- nothing but CommandError, whatever is written


@given(st.one_of(st.binary(max_size=64), st.binary(min_size=4090, max_size=4100)))
def test_random_bytes(data: bytes) -> None:
    for parse in (run, commands.split, commands.parse_copen_size, *commands.VERBS.values()):
        outcome(parse, data)


@given(
    st.sampled_from([*commands.VERBS, "cull", ""]),
    st.sampled_from([" ", "  ", "\t", "", "\n"]),
    st.text(alphabet="0123456789-+x,on demand/\n\0", max_size=20),
)
def test_random_commands(verb: str, blank: str, args: str) -> None:
    outcome(run, f"{verb}{blank}{args}".encode())


# ---- what a daemon writes is what the kernel half reads

SAYABLE = st.binary(min_size=1, max_size=4091).filter(
    lambda text: not set(text) & {0, 10} and text[0] not in b"\t\v\f\r \xa0"
)


@given(SAYABLE)
def test_dir_and_tag_round_trip(text: bytes) -> None:
    assert run(commands.dir_(text)) == ("dir", text)
    assert run(commands.tag(text)) == ("tag", text)


def test_text_is_encoded_as_paths_are() -> None:
    assert commands.dir_("/caf\u00e9/\udcff") == "dir /caf\u00e9/".encode() + b"\xff"
    assert commands.tag("pagein") == b"tag pagein"


def test_the_shortest_bind_is_on_demand() -> None:
    assert run(commands.bind()) == ("bind", True)
    assert run(commands.bind(ondemand=False)) == ("bind", False)


def test_restore() -> None:
    assert run(commands.restore()) == ("restore", None)


@given(st.integers(0, 2**32 - 1), st.integers(-4095, LONG_MAX))
def test_copen_round_trip(msg_id: int, size: int) -> None:
    verb, args = commands.split(commands.copen(msg_id, size))
    assert verb == "copen"
    parsed, raw = commands.parse_copen(args)
    assert (parsed, commands.parse_copen_size(raw)) == (msg_id, size)


@pytest.mark.parametrize("encode", [commands.dir_, commands.tag])
@pytest.mark.parametrize(
    "text", ["", " x", "\tx", b"\xa0x", "a\nb", "a\n", "a\0b", "\ud800", "x" * 4092]
)
def test_text_that_would_be_read_differently_is_refused(
    encode: Callable[[bytes | str], bytes], text: bytes | str
) -> None:
    with pytest.raises(ValueError):
        encode(text)


@pytest.mark.parametrize(
    ("msg_id", "size"), [(-1, 0), (2**32, 0), (0, -4096), (0, LONG_MAX + 1), (0, -LONG_MAX)]
)
def test_copen_of_what_cannot_be_answered_is_refused(msg_id: int, size: int) -> None:
    with pytest.raises(ValueError):
        commands.copen(msg_id, size)


def test_a_command_error_is_an_os_error() -> None:
    with pytest.raises(OSError) as caught:
        commands.split(b"nonsense")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert "nonsense" in str(caught.value)
