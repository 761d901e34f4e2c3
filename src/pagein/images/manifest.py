"""The documents of an image: descriptors, manifests, indexes, configs (OCI image-spec 1.1, docker).

They come from the network and are believed only as far as a digest reaches. Everything here is
a value: bytes in, checked structures out, or an OriginError that names where the bytes came from.
A document may be read as one kind only (CVE-2021-41190): what it calls itself, what it was
called by and what it holds have to agree.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, TypeVar

import msgspec

from pagein.images.platforms import Platform
from pagein.images.reference import DIGEST
from pagein.origins.base import OriginError

MAX_MANIFEST = 4 << 20
"""Bytes of a manifest or an index (distribution-spec 1.1, "Pushing Manifests")."""
MAX_CONFIG = 8 << 20
"""Bytes of an image config; those of real images have some thousand."""
MAX_LAYERS = 4096
"""Layers of an image. overlayfs takes 500."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
ACCEPT = ", ".join([OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST])
"""The Accept header of a request for a manifest."""

_IS_DIGEST = re.compile(DIGEST)
_SCHEMA_1 = re.compile(r"application/(vnd\.docker\.distribution\.manifest\.v1\+|json$)")

T = TypeVar("T")
Strings = dict[str, str]


def is_digest(text: str) -> bool:
    """Whether `text` is a digest that can be verified here."""
    return _IS_DIGEST.fullmatch(text) is not None


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of `data`; `algorithm` is sha256 or sha512."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a document says of another one: type, digest and size in bytes (descriptor.md)."""

    media_type: str
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    annotations: Strings | None = None
    platform: Platform | None = None
    artifact_type: str | None = None

    def __post_init__(self) -> None:
        if not is_digest(self.digest):
            raise ValueError(f"{self.digest[:80]!r} is no sha256 or sha512 digest")

    def verify(self, source: str, data: bytes) -> bytes:
        """`data`, if it is what the descriptor names; else OriginError of `source`."""
        if len(data) != self.size:
            cause = f"{self.digest} has {len(data)} bytes, its descriptor says {self.size}"
            raise OriginError.of(source, cause)
        check_digest(source, data, self.digest)
        return data


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An image manifest, or an artifact's (manifest.md)."""

    schema_version: Annotated[int, msgspec.Meta(ge=2, le=2)]
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], msgspec.Meta(max_length=MAX_LAYERS)]
    media_type: str | None = None
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: Strings | None = None


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An image index or a manifest list (image-index.md); Go writes an empty one as null."""

    schema_version: Annotated[int, msgspec.Meta(ge=2, le=2)]
    manifests: tuple[Descriptor, ...] | None
    media_type: str | None = None
    artifact_type: str | None = None
    annotations: Strings | None = None


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The member `config` of an image config: how a container of the image is started."""

    user: str | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    labels: Strings | None = None


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    """The digests of the layers' uncompressed tars, lowest first."""

    type: str
    diff_ids: tuple[str, ...] | None

    def __post_init__(self) -> None:
        for digest in self.diff_ids or ():
            if not is_digest(digest):
                raise ValueError(f"{digest[:80]!r} is no sha256 or sha512 digest")


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An image config (config.md)."""

    architecture: str
    os: str
    rootfs: RootFs
    variant: str | None = None
    config: RunConfig | None = None

    @property
    def platform(self) -> Platform:
        """What the image runs on."""
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)

    @property
    def run(self) -> RunConfig:
        """How a container is started; empty when the image does not say."""
        return self.config or RunConfig()


def check_digest(source: str, data: bytes, digest: str) -> None:
    """Raise OriginError of `source` unless `digest` is that of `data`."""
    found = digest_of(data, digest.partition(":")[0])
    if found != digest:
        raise OriginError.of(source, f"the content of {digest} is wrong: its digest is {found}")


def parse_manifest(source: str, data: bytes, media_type: str) -> Manifest | Index:
    """The document in `data`, which was announced as `media_type` ("" if it was not).

    OriginError of `source` if it is none, or not the kind it was announced as.
    """
    if len(data) > MAX_MANIFEST:
        raise OriginError.of(source, f"a manifest of more than {MAX_MANIFEST} bytes")
    kind = manifest_type(source, data, media_type)
    wanted: type[Manifest | Index] = Manifest if kind in MANIFEST_TYPES else Index
    return _decode(source, data, wanted, "manifest")


def manifest_type(source: str, data: bytes, announced: str) -> str:
    """The media type of the manifest in `data`: OriginError where it says one and is another."""
    look = _decode(source, data, _Look, "manifest")
    if look.schema_version == 1 or _SCHEMA_1.match(look.media_type or ""):
        cause = "is of docker's schema 1, which is not supported: push it with a current tool"
        raise OriginError.of(source, cause)
    kinds = MANIFEST_TYPES | INDEX_TYPES
    claims = [claim for claim in (look.media_type, announced) if claim in kinds]
    if len(set(claims)) > 1:
        cause = f"the manifest calls itself {claims[0]}, and was announced as {claims[1]}"
        raise OriginError.of(source, cause)
    if not claims:
        shown = look.media_type or announced or "nothing"
        cause = f"not a manifest of a known type (it is called {shown[:80]!r})"
        raise OriginError.of(source, cause)
    is_index = claims[0] in INDEX_TYPES
    if (look.config or look.layers) if is_index else look.manifests:
        raise OriginError.of(source, f"a {claims[0]} with members of the other kind: refused")
    return claims[0]


def parse_config(source: str, data: bytes, manifest: Manifest) -> ImageConfig:
    """The image config of `manifest`; OriginError of `source` if it is none, or another's."""
    if manifest.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        cause = f"not a container image: its config is a {manifest.config.media_type[:80]!r}"
        raise OriginError.of(source, cause)
    config = _decode(source, data, ImageConfig, "image config")
    named = len(config.rootfs.diff_ids or ())
    if named != len(manifest.layers):
        cause = f"the image config names {named} layers, the manifest {len(manifest.layers)}"
        raise OriginError.of(source, cause)
    return config


class _Look(msgspec.Struct, rename="camel"):
    """What tells the kinds of documents apart."""

    schema_version: int
    media_type: str | None = None
    config: Any = None
    layers: Any = None
    manifests: Any = None


def _decode(source: str, data: bytes, wanted: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=wanted)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        detail = " ".join(str(exc).split())[:200]
        raise OriginError.of(source, f"not a valid {what}: {detail}") from None
