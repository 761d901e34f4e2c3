"""The document: what is written is read, and what cannot be used is refused by name and line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.images.traces.document import (
    MAX_TRACE,
    Touch,
    Trace,
    TraceError,
    pack,
    parse_trace,
    quote,
    unpack,
    unquote,
)

DIFF = "sha256:" + "a1" * 32
NUMBERS = st.integers(0, 1 << 61)


@given(
    st.lists(
        st.builds(
            Touch,
            layer=st.integers(0, 1),
            path=st.binary(min_size=1, max_size=20).map(quote),
            offset=NUMBERS,
            length=st.integers(1, 1 << 61),
            ms=NUMBERS,
        )
    )
)
def test_what_is_written_is_read_in_the_order_of_time(touches: list[Touch]) -> None:
    trace = Trace("docker://a/b:1", (DIFF, DIFF.replace("a", "b")), tuple(touches))
    read = parse_trace("t", unpack(pack(trace.dump())))
    assert read.layers == trace.layers
    assert read.image == trace.image
    assert list(read.touches) == sorted(touches, key=lambda each: each.ms)


@given(st.binary())
def test_a_path_of_any_bytes_is_text_and_back(path: bytes) -> None:
    assert unquote(quote(path)) == path
    json.dumps(quote(path)).encode()


def test_paths_of_people_are_as_they_write_them() -> None:
    assert quote("/usr/lib/naïve 100".encode()) == "/usr/lib/naïve 100"
    assert quote(b"/100%/\xff") == "/100%25/%FF"


HEADER = f'{{"pagein_trace":1,"layers":["{DIFF}"]}}\n'.encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a trace"),
        (b'{"layers":[]}', "not a trace"),
        (b"\x1f\x8b binary", "not a trace"),
        (b'{"pagein_trace":2}', "line 1: a trace of version 2: 1 is known"),
        (b'{"pagein_trace":"x"}', "line 1: Expected `int`"),
        (b'{"pagein_trace":1', "line 1: "),
        (b'{"pagein_trace":1,"layers":["../../etc"]}', "line 1: layers that are not digests"),
        (HEADER + b'[1,"/a",0,1,0]', "line 2: there is no layer 1"),
        (HEADER + b'[-1,"/a",0,1,0]', "line 2: there is no layer -1"),
        (HEADER + b'[0,"/a",0,1,0]\n[0,"/a",0,0,0]', "line 3: an offset, a length"),
        (HEADER + b'[0,"/a",-1,1,0]', "line 2: an offset, a length"),
        (HEADER + b'[0,"/a",0,4611686018427387904,0]', "line 2: an offset, a length"),
        (HEADER + b'[0,"/a",0,1]', "line 2: "),
        (HEADER + b'[0,"/a",0,1,0,9]', "line 2: "),
        (HEADER + b"[0,5,0,1,0]", "line 2: Expected `str`"),
        (HEADER + b'[0,"' + b"../" * 5000 + b'",0,1,0]', "line 2: a path of 15000 characters"),
        (HEADER + b'\n[0,"\xff",0,1,0]', "line 3: "),
        (HEADER + b"[" * 100_000, "line 2: "),
        (HEADER + b"\n" * MAX_TRACE, "bytes, and a trace has at most"),
        (HEADER + b"\n" * 200_000, "lines"),
    ],
)
def test_what_is_no_trace_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(TraceError, match=r"^my\.trace[:,] ") as caught:
        parse_trace("my.trace", data)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_was_not_packed_is_refused() -> None:
    for packed in ("nonsense!", "AAAA", ""):
        with pytest.raises(TraceError):
            parse_trace("t", unpack(packed))
