"""Artifacts that refer to an image, as documents (image-spec 1.1, "Guidelines for Artifact Usage").

An artifact is a manifest with a `subject`; its blobs are its `layers`, its config is the empty
object. Where a registry has no referrers API, an index under a tag made of the subject's digest
lists them (distribution-spec 1.1, "Referrers Tag Schema").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pagein.images.manifest import (
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    digest_of,
)

NO_ENTRIES = msgspec.json.encode(Index(schema_version=2, media_type=OCI_INDEX, manifests=()))
"""An index of nothing."""
EMPTY = b"{}"
"""The config of an artifact that needs none."""


@dataclass(frozen=True, slots=True)
class ArtifactBlob:
    """A blob to push."""

    media_type: str
    data: bytes = field(repr=False)
    annotations: Mapping[str, str] | None = None

    @property
    def descriptor(self) -> Descriptor:
        """What the artifact's manifest says of it."""
        return Descriptor(
            media_type=self.media_type,
            digest=digest_of(self.data),
            size=len(self.data),
            annotations=dict(self.annotations) if self.annotations else None,
        )


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact ready to push: the same bytes for the same input."""

    descriptor: Descriptor
    """As indexes list it: with artifact type and annotations."""
    manifest: bytes = field(repr=False)
    blobs: tuple[tuple[Descriptor, bytes], ...] = field(repr=False)
    """All that has to be there before the manifest, the config too."""


def make_artifact(
    subject: Descriptor,
    artifact_type: str,
    blobs: Sequence[ArtifactBlob],
    annotations: Mapping[str, str] | None,
) -> Artifact:
    """The artifact of `blobs` that refers to `subject`."""
    config = ArtifactBlob(OCI_EMPTY, EMPTY)
    noted = dict(sorted(annotations.items())) if annotations else None
    document = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=artifact_type,
        config=config.descriptor,
        layers=tuple(blob.descriptor for blob in blobs),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations=noted,
    )
    data = msgspec.json.encode(document)
    descriptor = Descriptor(
        media_type=OCI_MANIFEST,
        digest=digest_of(data),
        size=len(data),
        annotations=noted,
        artifact_type=artifact_type,
    )
    needed = {blob.descriptor.digest: (blob.descriptor, blob.data) for blob in (config, *blobs)}
    return Artifact(descriptor, data, tuple(needed.values()))


def with_entry(data: bytes, added: Descriptor) -> bytes | None:
    """The index in `data`, which was parsed before, with `added`; None if it is listed already.

    What we do not know of the other entries stays in them.
    """
    document = msgspec.json.decode(data)
    listed = document["manifests"] or []
    if any(entry["digest"] == added.digest for entry in listed):
        return None
    document["manifests"] = [*listed, msgspec.to_builtins(added)]
    return msgspec.json.encode(document)


def of_type(entries: Sequence[Descriptor], artifact_type: str) -> list[Descriptor]:
    """The entries of that type, each digest once."""
    found = {entry.digest: entry for entry in entries if entry.artifact_type == artifact_type}
    return list(found.values())
