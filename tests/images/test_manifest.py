"""Manifests, indexes, configs: what is believed of them, and that the rest is an error."""

import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.images.documents import build, dumps, index_of

from pagein.images.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_LAYERS,
    MAX_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    digest_of,
    parse_config,
    parse_manifest,
)
from pagein.images.platforms import Platform, choose, host_platform, parse_platform, suits
from pagein.images.source import choose_manifest
from pagein.origins.base import OriginError

IMAGE = build(b"manifest")
INDEX = index_of({"linux/amd64": IMAGE, "linux/arm64/v8": build(b"arm", architecture="arm64")})
DOCUMENT = json.loads(IMAGE.manifest)


def refused(data: bytes, media_type: str = OCI_MANIFEST) -> str:
    with pytest.raises(OriginError) as caught:
        parse_manifest("name", data, media_type)
    assert str(caught.value).startswith("name: ")
    assert str(caught.value).isprintable()
    return str(caught.value)


def changed(**members: Any) -> bytes:
    kept = {key: value for key, value in {**DOCUMENT, **members}.items() if value is not ...}
    return dumps(kept)


# ---- good ones ----------------------------------------------------------------------------------


def test_a_manifest_in_all_the_ways_it_is_announced() -> None:
    for data, announced in [
        (IMAGE.manifest, OCI_MANIFEST),
        (IMAGE.manifest, ""),
        (IMAGE.manifest, "text/plain"),
        (changed(mediaType=...), OCI_MANIFEST),
        (changed(mediaType=None), OCI_MANIFEST),
        (changed(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST),
        (changed(manifests=None, unknown={"a": 1}), OCI_MANIFEST),
    ]:
        manifest = parse_manifest("name", data, announced)
        assert isinstance(manifest, Manifest)
        assert [layer.size for layer in manifest.layers] == [len(data) for data in IMAGE.layers]
        assert manifest.config.digest in IMAGE.blobs


def test_a_config() -> None:
    manifest = parse_manifest("name", IMAGE.manifest, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    config = parse_config("name", IMAGE.blobs[manifest.config.digest], manifest)
    assert str(config.platform) == "linux/amd64"
    assert config.run.env == ("A=b",)
    assert config.run.working_dir == "/"


def test_an_index_and_what_go_writes_for_an_empty_one() -> None:
    index = parse_manifest("name", INDEX, OCI_INDEX)
    assert isinstance(index, Index)
    assert index.manifests is not None
    assert [str(entry.platform) for entry in index.manifests] == ["linux/amd64", "linux/arm64/v8"]
    data = b'{"schemaVersion":2,"manifests":null}'
    assert isinstance(parse_manifest("name", data, DOCKER_LIST), Index)


# ---- others -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "announced", "cause"),
    [
        (b"", "", "not a valid manifest"),
        (b"\xff", "", "not a valid manifest"),
        (b"[" * 100_000, "", "not a valid manifest"),
        (b" " * (MAX_MANIFEST + 1), "", "more than"),
        (changed(schemaVersion=1), "", "schema 1"),
        (
            changed(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"),
            "",
            "schema 1",
        ),
        (changed(schemaVersion=3), "", "not a valid manifest"),
        (changed(schemaVersion="2"), "", "not a valid manifest"),
        (IMAGE.manifest, OCI_INDEX, "calls itself"),
        (IMAGE.manifest, DOCKER_MANIFEST, "calls itself"),
        (changed(mediaType=...), "text/html", "known type"),
        (changed(mediaType=...), "", "known type"),
        (changed(manifests=[]), "", None),
        (changed(manifests=[{}]), "", "members of the other kind"),
        (changed(mediaType=..., manifests=[]), OCI_INDEX, "members of the other kind"),
        (changed(layers=...), "", "not a valid manifest"),
        (changed(layers=None), "", "not a valid manifest"),
        (changed(config=None), "", "not a valid manifest"),
        (changed(layers=[DOCUMENT["config"]] * (MAX_LAYERS + 1)), "", "not a valid manifest"),
        (changed(config={**DOCUMENT["config"], "size": -1}), "", "not a valid manifest"),
        (changed(config={**DOCUMENT["config"], "size": 1 << 63}), "", "not a valid manifest"),
        (changed(config={**DOCUMENT["config"], "size": 1.5}), "", "not a valid manifest"),
        (changed(config={**DOCUMENT["config"], "digest": "md5:0"}), "", "no sha256 or sha512"),
        (changed(config={**DOCUMENT["config"], "digest": "sha256:../../x"}), "", "no sha256"),
    ],
)
def test_what_is_no_manifest(data: bytes, announced: str, cause: str | None) -> None:
    if cause is None:
        assert isinstance(parse_manifest("name", data, announced), Manifest)
    else:
        assert cause in refused(data, announced)


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ({"rootfs": {"type": "layers", "diff_ids": None}}, "names 0 layers, the manifest 3"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, "no sha256"),
        ({"rootfs": None}, "not a valid image config"),
        ({"os": 5}, "not a valid image config"),
        ({"config": {"Env": "A=b"}}, "not a valid image config"),
        ({"config": {"Cmd": [None]}}, "not a valid image config"),
    ],
)
def test_what_is_no_config(members: dict[str, Any], cause: str) -> None:
    manifest = parse_manifest("name", IMAGE.manifest, "")
    assert isinstance(manifest, Manifest)
    document = json.loads(IMAGE.blobs[manifest.config.digest])
    with pytest.raises(OriginError, match=cause):
        parse_config("name", dumps({**document, **members}), manifest)


def test_an_artifact_is_no_image() -> None:
    config = {**DOCUMENT["config"], "mediaType": "application/vnd.oci.empty.v1+json"}
    manifest = parse_manifest("name", changed(config=config), "")
    assert isinstance(manifest, Manifest)
    with pytest.raises(OriginError, match="not a container image"):
        parse_config("name", b"{}", manifest)


def test_content_is_held_against_its_descriptor() -> None:
    for algorithm in ("sha256", "sha512"):
        descriptor = Descriptor(media_type="x", digest=digest_of(b"abc", algorithm), size=3)
        assert descriptor.verify("name", b"abc") == b"abc"
        for data, cause in [(b"abd", "is wrong"), (b"ab", "2 bytes"), (b"abcd", "4 bytes")]:
            with pytest.raises(OriginError, match=cause):
                descriptor.verify("name", data)


# ---- fuzzed -------------------------------------------------------------------------------------

CORPUS = [IMAGE.manifest, INDEX, next(iter(IMAGE.blobs.values()))]
PIECES = [b"null", b"{}", b"[]", b"-1", b"1e999", b'"\\ud800"', b"\xff", b"{", b'"', b"9" * 30]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes changed, cut out, doubled, or replaced by what is JSON elsewhere."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([0, 1, 2, 8, 60]))
        middle = chance.choice([b"", bytes([chance.randrange(256)]), chance.choice(PIECES)])
        data = data[:start] + middle + chance.choice([b"", data[start:end]]) + data[end:]
    return data


def check(data: bytes, announced: str) -> None:
    """It is a document with what was promised of it, or an OriginError."""
    try:
        document = parse_manifest("name", data, announced)
    except OriginError as error:
        assert str(error).isprintable()
        return
    if isinstance(document, Index):
        entries = document.manifests or ()
    else:
        entries = (document.config, *document.layers)
        try:
            parse_config("name", data, document)
        except OriginError as error:
            assert str(error).isprintable()
    for entry in entries:
        assert 0 <= entry.size < 1 << 63
        assert entry.digest.startswith(("sha256:", "sha512:"))
        assert entry.digest.partition(":")[2].isalnum()


def test_fuzzed_documents_are_errors_and_no_crash() -> None:
    chance = random.Random(20261120)
    good = 0
    for number in range(10_000):
        data = mutated(CORPUS[number % len(CORPUS)], chance)
        check(data, chance.choice([OCI_MANIFEST, OCI_INDEX, "", DOCKER_LIST]))
        try:
            manifest = parse_manifest("name", CORPUS[0], "")
            assert isinstance(manifest, Manifest)
            parse_config("name", data, manifest)
            good += 1
        except OriginError as error:
            assert str(error).isprintable()
    assert good > 100, "the fuzzer breaks everything at once: it reaches nothing"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
members = st.dictionaries(
    st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "subject"]),
    json_values | st.just([DOCUMENT["config"]]) | st.just(DOCUMENT["config"]) | st.just(2),
)


@given(members, st.sampled_from([OCI_MANIFEST, OCI_INDEX, ""]))
@settings(max_examples=300)
@example({"schemaVersion": 2, "manifests": [DOCUMENT["config"]]}, OCI_INDEX)
def test_any_members_are_a_document_or_an_error(document: dict[str, Any], announced: str) -> None:
    check(dumps(document), announced)
    check(dumps({**DOCUMENT, **document}), announced)


# ---- platforms ----------------------------------------------------------------------------------


def of(text: str) -> Platform:
    return parse_platform(text)


@pytest.mark.parametrize(
    ("found", "wanted", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64/v1", "linux/amd64", 0),
        ("linux/amd64/v2", "linux/amd64", None),
        ("linux/amd64", "linux/amd64/v3", 2),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm64/v8", "linux/arm64", 0),
        ("linux/arm64/v9", "linux/arm64", None),
        ("linux/arm/v6", "linux/arm/v7", 1),
        ("linux/arm", "linux/arm/v6", None),
        ("linux/riscv64", "linux/riscv64", 0),
        ("linux/riscv64/rva22", "linux/riscv64", None),
        ("linux/riscv64/rva22", "linux/riscv64/rva22", 0),
        ("windows/amd64", "linux/amd64", None),
        ("linux/386", "linux/amd64", None),
    ],
)
def test_what_runs_where(found: str, wanted: str, rank: int | None) -> None:
    assert suits(of(found), of(wanted)) == rank


def test_the_best_is_chosen() -> None:
    entries = [(of(f"linux/arm/{v}"), v) for v in ("v5", "v7", "v6", "v8")] + [(None, "silent")]
    assert choose(entries, of("linux/arm/v7")) == "v7"
    assert choose(entries, of("linux/arm/v6")) == "v6"
    assert choose(entries, of("linux/amd64")) == "silent"  # its config tells
    assert choose([*entries, (None, "other")], of("linux/amd64")) is None
    assert choose([], of("linux/amd64")) is None


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/a b", "l/\n"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(OriginError, match="no platform"):
        parse_platform(text)


def test_platforms_by_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(of("Linux/X86_64")) == "linux/amd64"
    for machine, platform in [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"),
                              ("armv7l", "linux/arm/v7"), ("s390x", "linux/s390x")]:  # fmt: skip
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert str(host_platform()) == platform


def test_an_index_says_what_it_has() -> None:
    index = parse_manifest("name", INDEX, "")
    assert isinstance(index, Index)
    assert choose_manifest("name", index, of("linux/amd64")).digest == IMAGE.descriptor.digest
    with pytest.raises(OriginError, match="for linux/s390x: there is linux/amd64, linux/arm64/v8"):
        choose_manifest("name", index, of("linux/s390x"))
