"""Where images are: what a registry and an OCI layout have in common.

All bytes that come out are verified against the digest they were asked by, but for those of
`open_blob`: a digest is of a whole blob, and who reads parts needs digests of parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagein.images.artifacts import ArtifactBlob
from pagein.images.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_CONFIG,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_manifest,
)
from pagein.images.parallel import both, each
from pagein.images.platforms import Platform, choose, suits
from pagein.images.reference import RegistryReference, parse_reference
from pagein.origins.base import Origin, OriginError

if TYPE_CHECKING:
    from pagein.images.connections import Connections

_MAX_DEPTH = 3  # indexes within indexes


@dataclass(frozen=True, slots=True)
class Image:
    """An image for one platform, and the artifacts of one type that refer to it."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    config_bytes: bytes = field(repr=False)
    artifacts: tuple[tuple[Descriptor, Manifest], ...] = ()
    manifest_bytes: bytes = field(default=b"", repr=False)


class ImageSource(ABC):
    """One image, by tag or digest. Failures are OriginErrors that name the source."""

    @abstractmethod
    async def resolve(self) -> tuple[Descriptor, bytes]:
        """The manifest or index that the name stands for now, and its descriptor."""

    @abstractmethod
    async def manifest(self, descriptor: Descriptor) -> bytes:
        """The manifest or index that `descriptor` names."""

    @abstractmethod
    async def blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """The blob that `descriptor` names, whole; an error if it has more than `limit` bytes."""

    @abstractmethod
    def open_blob(self, descriptor: Descriptor) -> Origin:
        """The blob as an origin of ranges that are not verified; nothing is asked yet.

        It is used and closed before the source is.
        """

    @abstractmethod
    async def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        """The artifacts of that type whose subject is the manifest `digest`; perhaps none."""

    @abstractmethod
    async def push_artifact(
        self,
        subject: Descriptor,
        artifact_type: str,
        blobs: Sequence[ArtifactBlob],
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Store an artifact that refers to `subject`; what is there already is not sent again."""

    async def close(self) -> None:
        """Give back what the source holds itself; twice is fine."""
        return None

    @abstractmethod
    def __str__(self) -> str:
        """The full name, as in errors."""


def open_source(
    name: str, connections: Connections, *, plain_http: bool | None = None
) -> ImageSource:
    """The source of `docker://...` or `oci:...`; OriginError (EINVAL) for other names.

    Nothing is asked yet, and there is nothing to close but the `connections`, which may serve many
    sources. `plain_http`: see `client.RegistryClient`.
    """
    reference = parse_reference(name)
    if isinstance(reference, RegistryReference):
        from pagein.images.registry import RegistrySource

        return RegistrySource(reference, connections, plain_http=plain_http)
    from pagein.images.layout import LayoutSource

    return LayoutSource(reference, timeout=connections.timeout)


async def load_image(
    source: ImageSource,
    platform: Platform,
    artifact_type: str | None = None,
    *,
    known: Image | None = None,
) -> Image:
    """The image for `platform`, its config, and its artifacts of `artifact_type` if one is given.

    In at most four round trips whatever the number of layers: index; manifest; config and
    referrers; the artifacts' manifests. A token takes two more, an index within an index one.
    `known` is what the image was before: if it is so still, which the first answer says, that is
    the last one, and `known` is returned.
    """
    found = await _manifest_for(source, platform, known)
    if isinstance(found, Image):
        return found
    descriptor, manifest, raw = found
    (config, data), artifacts = await both(
        _config(source, manifest, platform), _artifacts(source, descriptor, artifact_type)
    )
    return Image(descriptor, manifest, config, data, artifacts, raw)


async def _manifest_for(
    source: ImageSource, platform: Platform, known: Image | None
) -> tuple[Descriptor, Manifest, bytes] | Image:
    descriptor, data = await source.resolve()
    if known is not None and descriptor.digest == known.descriptor.digest:
        return known
    for _ in range(_MAX_DEPTH):
        document = parse_manifest(str(source), data, descriptor.media_type)
        if isinstance(document, Manifest):
            return descriptor, document, data
        descriptor = choose_manifest(str(source), document, platform)
        if known is not None and descriptor.digest == known.descriptor.digest:
            return known
        data = await source.manifest(descriptor)
    raise OriginError.of(str(source), f"indexes within indexes, more than {_MAX_DEPTH} deep")


def choose_manifest(source: str, index: Index, platform: Platform) -> Descriptor:
    """The entry of `index` for `platform`; OriginError of `source` that lists what there is."""
    entries = [
        (entry.platform, entry)
        for entry in index.manifests or ()
        if entry.media_type in MANIFEST_TYPES | INDEX_TYPES
    ]
    if (found := choose(entries, platform)) is not None:
        return found
    named = sorted({str(of) for of, _ in entries if of is not None and of.os != "unknown"})
    there = f"there is {', '.join(named)[:200]}" if named else "it names no platforms"
    raise OriginError.of(source, f"has no image for {platform}: {there}")


async def _config(
    source: ImageSource, manifest: Manifest, platform: Platform
) -> tuple[ImageConfig, bytes]:
    data = await source.blob(manifest.config, MAX_CONFIG)
    config = parse_config(str(source), data, manifest)
    check_platform(str(source), config, platform)
    return config, data


def check_platform(source: str, config: ImageConfig, platform: Platform) -> None:
    """Raise OriginError of `source` unless `platform` runs the image of `config`."""
    if suits(config.platform, platform) is None:
        cause = f"is an image for {config.platform}, not for {platform}"
        raise OriginError.of(source, cause)


async def _artifacts(
    source: ImageSource, subject: Descriptor, artifact_type: str | None
) -> tuple[tuple[Descriptor, Manifest], ...]:
    if artifact_type is None:
        return ()
    entries = await source.referrers(subject.digest, artifact_type)
    return tuple(await each(_artifact(source, subject, entry) for entry in entries))


async def _artifact(
    source: ImageSource, subject: Descriptor, entry: Descriptor
) -> tuple[Descriptor, Manifest]:
    document = parse_manifest(str(source), await source.manifest(entry), entry.media_type)
    named = document.subject if isinstance(document, Manifest) else None
    if not isinstance(document, Manifest) or named is None or named.digest != subject.digest:
        cause = f"the artifact {entry.digest} is listed for {subject.digest}, and is not for it"
        raise OriginError.of(str(source), cause)
    return entry, document
