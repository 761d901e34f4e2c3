"""Names of images: what they mean, and what is said of those that are none."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.images.reference import (
    LayoutReference,
    Reference,
    RegistryReference,
    parse_reference,
)
from pagein.origins.base import OriginError

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("docker://busybox", "docker://docker.io/library/busybox:latest"),
        ("docker://busybox:1", "docker://docker.io/library/busybox:1"),
        ("docker://a/b", "docker://docker.io/a/b:latest"),
        ("docker://docker.io/a", "docker://docker.io/library/a:latest"),
        ("docker://index.docker.io/a/b", "docker://docker.io/a/b:latest"),
        ("docker://localhost/a", "docker://localhost/a:latest"),
        ("docker://127.0.0.1:5000/py:v1", "docker://127.0.0.1:5000/py:v1"),
        ("docker://[::1]:5000/py", "docker://[::1]:5000/py:latest"),
        ("docker://h:5/a/b__c/d-e.f_g:T_1.x-y", "docker://h:5/a/b__c/d-e.f_g:T_1.x-y"),
        (f"docker://h.x/a@{DIGEST}", f"docker://h.x/a@{DIGEST}"),
        (f"docker://h.x/a:t@{DIGEST}", f"docker://h.x/a:t@{DIGEST}"),
        (f"docker://h.x/a@sha512:{HEX}{HEX}", f"docker://h.x/a@sha512:{HEX}{HEX}"),
        ("oci:dir", "oci:dir"),
        ("oci:/a b/c:v1", "oci:/a b/c:v1"),
        ("oci:dir:reg.io/x:v1", "oci:dir:reg.io/x:v1"),
        (f"oci:dir@{DIGEST}", f"oci:dir@{DIGEST}"),
        (f"oci:dir:v1@{DIGEST}", f"oci:dir:v1@{DIGEST}"),
        ("oci:a@b", "oci:a@b"),
    ],
)
def test_full_names(text: str, full: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == full
    assert parse_reference(full) == reference


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "name an image as"),
        ("busybox", "name an image as"),
        ("https://h/x", "name an image as"),
        ("docker://", "names no repository"),
        ("docker://h.x/", "names no repository"),
        ("docker://h:0/a", "no host"),
        ("docker://h:99999/a", "no host"),
        ("docker://h:x/a", "no host"),
        ("docker://u:p@h/a", "goes a digest"),
        ("docker://-h.x/a", "no host"),
        ("docker://[::1/a", "no host"),
        ("docker://[1.2]/a", "no IPv6"),
        ("docker://Busybox", "capital letters"),
        ("docker://h.x/a//b", "no repository name"),
        ("docker://h.x/../b", "no repository name"),
        ("docker://h.x/a?b", "no repository name"),
        ("docker://h.x/a\nb", "no repository name"),
        ("docker://h.x/a:", "no tag"),
        ("docker://h.x/a:" + "x" * 129, "no tag"),
        ("docker://h.x/" + "a" * 255, "longer than 255"),
        ("docker://h.x/a@sha256:12", "goes a digest"),
        ("docker://h.x/a@sha256:" + "A" * 64, "goes a digest"),
        ("docker://h.x/a@md5:" + "a" * 32, "goes a digest"),
        ("oci:", "no directory"),
        ("oci::v1", "no directory"),
        ("oci:a\0b", "no directory"),
        ("oci:a:", "no tag"),
        ("oci:a:b c", "no tag"),
    ],
)
def test_what_is_no_name(text: str, cause: str) -> None:
    with pytest.raises(OriginError) as caught:
        parse_reference(text)
    assert caught.value.errno == errno.EINVAL
    assert cause in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("127.9.9.9:1", True),
        ("[::1]:5000", True),
        ("[fe80::1]:5000", False),
        ("10.0.0.1:5000", False),
        ("localhost.evil:5000", False),
        ("127.0.0.1.evil:5000", False),
    ],
)
def test_registries_on_this_machine(name: str, local: bool) -> None:
    reference = parse_reference(f"docker://{name}/a")
    assert isinstance(reference, RegistryReference)
    assert reference.is_local is local


def test_what_is_asked_of_whom() -> None:
    hub = parse_reference("docker://busybox")
    assert isinstance(hub, RegistryReference)
    assert (hub.server, hub.wanted) == ("registry-1.docker.io", "latest")
    other = parse_reference(f"docker://h.x/a:t@{DIGEST}")
    assert isinstance(other, RegistryReference)
    assert (other.server, other.wanted) == ("h.x", DIGEST)


component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
digests = st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
registries = st.builds(
    RegistryReference,
    st.sampled_from(["docker.io", "h.x", "localhost", "h:80", "[2001:db8::1]:443", "A-b.C"]),
    st.lists(component, min_size=2, max_size=4).map("/".join),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digests,
)
layouts = st.builds(
    LayoutReference,
    st.text(st.characters(exclude_characters=":\0@", codec="utf-8"), min_size=1, max_size=20),
    st.none() | st.from_regex(r"[A-Za-z0-9]{1,5}([-._:@+/][A-Za-z0-9]{1,5}){0,3}", fullmatch=True),
    digests,
)


@given(registries | layouts)
def test_a_full_name_means_what_it_was_made_of(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.sampled_from(["docker://", "oci:", ""]), st.text() | st.text("a/:@[].-_0"))
def test_any_text_is_a_name_or_an_error(scheme: str, text: str) -> None:
    try:
        reference = parse_reference(scheme + text)
    except OriginError as error:
        assert error.errno == errno.EINVAL
    else:
        assert parse_reference(str(reference)) == reference
