"""Identities: keys, what is stored, what may be shown, and what importing them costs."""

import asyncio
import hashlib
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.origins import Identity, OriginError, open_origin, redact, resolve

texts = st.text(st.characters(codec=None), max_size=20)  # with surrogates: paths that are not UTF-8
identities = st.builds(
    Identity,
    source=texts,
    size=st.integers(1, 1 << 63),
    etag=st.none() | texts,
    last_modified=st.none() | texts,
)


@given(identities)
def test_dump_and_load_give_the_same(identity: Identity) -> None:
    assert Identity.load(identity.dump()) == identity


@given(identities, identities)
def test_keys_are_equal_exactly_when_identities_are(one: Identity, other: Identity) -> None:
    assert len(one.key()) == 64
    assert set(one.key()) <= set(b"0123456789abcdef")
    assert (one.key() == other.key()) == (one == other)


def test_key_is_the_same_in_every_run_and_release() -> None:
    # A cache on disk is found by these keys: whoever changes this empties everybody's cache.
    identity = Identity(source="http://h/x", size=3, etag='"1"', last_modified=None)
    canonical = b'["pagein identity 1", "http://h/x", 3, "\\"1\\"", null]'
    assert identity.key().decode() == hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize("field", ["etag", "last_modified"])
def test_none_and_empty_differ(field: str) -> None:
    without = Identity(source="/x", size=1)
    empty = Identity.load(
        without.dump().replace(f'"{field}": null'.encode(), b'"%s": ""' % field.encode())
    )
    assert without.key() != empty.key()


def test_key_depends_on_the_user_and_not_on_the_password() -> None:
    def key(userinfo: str) -> bytes:
        return Identity(source=f"http://{userinfo}host:80/x?y=a:b@c", size=1).key()

    assert key("ann:one@") == key("ann:two@") == key("ann:t@wo@")
    assert len({key("ann:one@"), key("bob:one@"), key("")}) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"source": "/x"}',
        b'{"source": "/x", "size": "1"}',
        b'{"source": "/x", "size": 0}',
        b'{"source": 1, "size": 1}',
    ],
)
def test_load_refuses_what_dump_never_wrote(data: bytes) -> None:
    with pytest.raises(ValueError):
        Identity.load(data)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("http://ann:pw@host:1/a@b", "http://host:1/a@b"),
        ("https://ann:p@w@host/", "https://host/"),
        ("http://token@host/x", "http://host/x"),
        ("http://host/x?X-Amz-Signature=abc&part=1", "http://host/x?X-Amz-Signature=***&part=1"),
        ("http://host/x?a=1&sig=abc#f", "http://host/x?a=1&sig=***#f"),
        ("/srv/a@b?token=1", "/srv/a@b?token=1"),
        ("http://host/a:b@c", "http://host/a:b@c"),
    ],
)
def test_redact(source: str, shown: str) -> None:
    assert redact(source) == shown


def test_repr_and_error_show_no_password() -> None:
    source = "http://ann:hush@host/x"
    assert "hush" not in repr(Identity(source=source, size=1))
    error = OriginError.of(source, "gone", retry=True)
    assert str(error) == "http://host/x: gone"
    assert "hush" not in repr(error)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(OriginError.of("/x", "gone", errno=2, retry=True)))
    assert (error.errno, str(error), error.retry) == (2, "/x: gone", True)


@pytest.mark.parametrize("source", ["ftp://host/x", "file:///etc/passwd", "s3://bucket/x"])
def test_other_schemes_are_refused(source: str) -> None:
    with pytest.raises(OriginError, match="only http:// and https:// URLs and paths"):
        asyncio.run(resolve(source, timeout=5))
    with pytest.raises(OriginError):
        open_origin(Identity(source=source, size=1), timeout=5)


def test_importing_origins_does_not_import_aiohttp() -> None:
    code = (
        "import sys, pagein.origins, pagein.origins.file, pagein.testing.webserver;"
        "pagein.origins.open_origin(pagein.origins.Identity(source='/x', size=1), timeout=1);"
        "sys.exit('aiohttp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=200).returncode == 0
