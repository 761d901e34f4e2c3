"""The requests of the distribution specification, for one repository (spec.md 1.1, "Endpoints")."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from pagein.images.manifest import ACCEPT, OCI_INDEX, Descriptor
from pagein.images.protocol import Request


def referrers_tag(digest: str) -> str:
    """The tag under which a registry without the referrers API has them (spec.md, "Referrers Tag
    Schema")."""
    return digest.replace(":", "-")[:128]


@dataclass(frozen=True, slots=True)
class Repository:
    """Makes requests; `base` is `https://HOST[:PORT]` of the registry, or of a mirror of it."""

    base: str
    name: str
    api: str = "/v2"
    """The path of the API there."""
    registry: str = ""
    """The registry that a mirror is asked for, which it may be for many (containerd: `ns`)."""

    def scope(self, *actions: str) -> str:
        """What a token has to allow (distribution, docs/spec/auth/scope.md)."""
        return f"repository:{self.name}:{','.join(actions)}"

    def url(self, rest: str) -> str:
        """The URL of something in the repository."""
        url = f"{self.base}{self.api}/{self.name}/{rest}"
        if not self.registry:
            return url
        return f"{url}{'&' if '?' in rest else '?'}ns={quote(self.registry, safe=':')}"

    def manifest(self, reference: str, *, optional: bool = False) -> Request:
        """GET a manifest by tag or digest; `optional`: 404 is an answer too."""
        return Request(
            f"manifest {reference}",
            "GET",
            self.url(f"manifests/{reference}"),
            {"Accept": ACCEPT},
            expect=frozenset({200, 404} if optional else {200}),
        )

    def blob(self, digest: str) -> Request:
        """GET a blob, whole."""
        return Request(f"blob {digest}", "GET", self.url(f"blobs/{digest}"))

    def blob_range(self, digest: str, offset: int, length: int) -> Request:
        """GET a part of a blob; all that ranges are answered with is looked at later."""
        return Request(
            f"blob {digest}",
            "GET",
            self.url(f"blobs/{digest}"),
            {"Range": f"bytes={offset}-{offset + length - 1}"},
            expect=frozenset({200, 206, 416}),
        )

    def has_blob(self, digest: str) -> Request:
        """HEAD a blob: 404 if it is not there.

        A redirect to storage says that it is; the link is often signed for GET alone.
        """
        url = self.url(f"blobs/{digest}")
        return Request(f"blob {digest}", "HEAD", url, expect=frozenset({200, 302, 307, 404}))

    def referrers(self, digest: str, artifact_type: str) -> Request:
        """GET the first page of the referrers of a digest; 404 where there is no such API."""
        query = f"?artifactType={quote(artifact_type, safe='')}"
        return self.referrers_page(digest, self.url(f"referrers/{digest}{query}"))

    def referrers_page(self, digest: str, url: str) -> Request:
        """GET a page by its URL."""
        # 404 is what the specification wants; 400, 405, 406 and 501 are seen as well.
        known = frozenset({200, 400, 404, 405, 406, 501})
        return Request(f"referrers of {digest}", "GET", url, {"Accept": OCI_INDEX}, expect=known)

    def start_upload(self, digest: str) -> Request:
        """POST: 202 with a Location to PUT the blob to."""
        return Request(
            f"upload of blob {digest}",
            "POST",
            self.url("blobs/uploads/"),
            expect=frozenset({202}),
        )

    def upload(self, location: str, digest: str, data: bytes) -> Request:
        """PUT a whole blob to the resolved `location` of its upload."""
        joint = "&" if "?" in location else "?"
        return Request(
            f"upload of blob {digest}",
            "PUT",
            f"{location}{joint}digest={quote(digest, safe='')}",
            {"Content-Type": "application/octet-stream"},
            data,
            expect=frozenset({201}),
        )

    def put_manifest(self, reference: str, descriptor: Descriptor, data: bytes) -> Request:
        """PUT a manifest under a tag or its digest."""
        return Request(
            f"manifest {reference}",
            "PUT",
            self.url(f"manifests/{reference}"),
            {"Content-Type": descriptor.media_type},
            data,
            expect=frozenset({201}),
        )
