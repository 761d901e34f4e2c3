"""An image in a registry."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from pagein.images.artifacts import (
    NO_ENTRIES,
    Artifact,
    ArtifactBlob,
    make_artifact,
    of_type,
    with_entry,
)
from pagein.images.blob import BlobOrigin
from pagein.images.client import RegistryClient
from pagein.images.connections import Connections
from pagein.images.hosts import NAME, Host
from pagein.images.manifest import (
    MAX_MANIFEST,
    OCI_INDEX,
    Descriptor,
    Index,
    check_digest,
    digest_of,
    is_digest,
    manifest_type,
    parse_manifest,
)
from pagein.images.parallel import each
from pagein.images.paths import referrers_tag
from pagein.images.protocol import Answer, next_link, origin_of, resolve_url
from pagein.images.reference import RegistryReference
from pagein.images.source import ImageSource
from pagein.origins.base import Origin, OriginError
from pagein.origins.mirrors import Waits, first_of, in_order, waits_for, worst_of

_MAX_PAGES = 16  # of one answer of the referrers API
_TAG_ATTEMPTS = 5  # to add to an index that others add to as well
_PUSH = ("pull", "push")

T = TypeVar("T")


class NoIndex(OriginError):
    """Where an index of referrers should be is something else."""


class RegistrySource(ImageSource):
    """The image `reference`; see `source.open_source` for the arguments."""

    def __init__(
        self,
        reference: RegistryReference,
        connections: Connections,
        *,
        plain_http: bool | None = None,
    ) -> None:
        self._reference = reference
        hosts: tuple[Host | None, ...] = connections.hosts(reference.host) or (None,)
        self._clients = [
            RegistryClient(reference, connections, host=host, plain_http=plain_http)
            for host in hosts
        ]
        self._timeout = connections.timeout
        self._has_api: dict[str, bool] = {}  # which servers have the referrers API, once known
        self._listing = asyncio.Lock()  # the referrers tag is read, changed and written

    def __str__(self) -> str:
        return str(self._reference)

    # ---- who is asked ---------------------------------------------------------------------------

    def _able(self, capability: str) -> list[RegistryClient]:
        """The servers that may do that, in the order of the configuration; OriginError if none."""
        able = [client for client in self._clients if capability in client.capabilities]
        if not able:
            cause = f"no host that {NAME} has for it may {capability}"
            raise OriginError.of(str(self), cause, errno=errno.EACCES)
        return able

    async def _first(self, capability: str, call: Callable[[RegistryClient], Awaitable[T]]) -> T:
        """What `call` gives with the first server that has it. What it verifies counts too."""

        async def ask(client: RegistryClient, waits: Waits) -> T:
            return await call(client.hasty(waits) if waits.others else client)

        _, found = await first_of(self._able(capability), ask, self._timeout)
        return found

    # ---- reading --------------------------------------------------------------------------------

    async def resolve(self) -> tuple[Descriptor, bytes]:
        """Verified by the digest in the name, else by the one that the registry tells."""

        async def call(client: RegistryClient) -> tuple[Descriptor, bytes]:
            wanted = client.repository.manifest(self._reference.wanted)
            answer = await client.fetch(wanted, MAX_MANIFEST)
            return self._described(answer, self._reference.digest), answer.body

        # Whoever may not say what a tag stands for may still have what a digest does.
        return await self._first("pull" if self._reference.digest else "resolve", call)

    def _described(self, answer: Answer, digest: str | None) -> Descriptor:
        """The descriptor of the manifest in `answer`, which must have `digest` if there is one."""
        name, data = str(self), answer.body
        if digest is None:
            told = answer.headers.get("docker-content-digest", "")
            digest = told if is_digest(told) else digest_of(data)
        check_digest(name, data, digest)
        announced = answer.headers.get("content-type", "").partition(";")[0].strip()
        kind = manifest_type(name, data, announced)
        return Descriptor(media_type=kind, digest=digest, size=len(data))

    async def manifest(self, descriptor: Descriptor) -> bytes:
        """GET by digest, whatever the registry calls it."""
        limit = min(descriptor.size, MAX_MANIFEST)

        async def call(client: RegistryClient) -> bytes:
            answer = await client.fetch(client.repository.manifest(descriptor.digest), limit)
            return descriptor.verify(client.source, answer.body)

        return await self._first("pull", call)

    async def blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """GET in one request."""
        if descriptor.size > limit:
            cause = f"blob {descriptor.digest} has {descriptor.size} bytes, more than {limit}"
            raise OriginError.of(str(self), cause)

        async def call(client: RegistryClient) -> bytes:
            wanted = client.repository.blob(descriptor.digest)
            answer = await client.fetch(wanted, descriptor.size)
            return descriptor.verify(client.source, answer.body)

        return await self._first("pull", call)

    def open_blob(self, descriptor: Descriptor) -> Origin:
        """Ranged GETs."""
        return BlobOrigin(self._able("pull"), descriptor)

    # ---- referrers ------------------------------------------------------------------------------

    async def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        """Of the first server that has some: a mirror may have an image without its referrers.

        Only those are asked that may say what a tag stands for: an index is trusted as a tag is.
        """
        errors: list[OriginError] = []
        order = in_order(self._able("resolve"))
        for number, client in enumerate(order):
            waits = waits_for(client, self._timeout, others=number + 1 < len(order))
            asked = client.hasty(waits) if waits.others else client
            try:
                entries = of_type(
                    await self._referrers(asked, digest, artifact_type), artifact_type
                )
            except OriginError as error:
                errors.append(error)
                continue
            if entries:
                return entries
        if len(errors) == len(order):
            raise worst_of(errors)
        return []

    async def _referrers(
        self, client: RegistryClient, digest: str, artifact_type: str
    ) -> list[Descriptor]:
        """By the referrers API, or by the tag where there is none; the first time both at once."""
        match self._has_api.get(client.server):
            case True:
                return await self._from_api(client, digest, artifact_type) or []
            case False:
                return await self._from_tag(client, digest)
            case None:
                return await self._from_either(client, digest, artifact_type)

    async def _from_either(
        self, client: RegistryClient, digest: str, artifact_type: str
    ) -> list[Descriptor]:
        """What the API says, if there is one: then the tag does not count (spec)."""
        api, tag = await asyncio.gather(
            self._from_api(client, digest, artifact_type),
            self._from_tag(client, digest),
            return_exceptions=True,
        )
        if isinstance(api, BaseException):
            raise api
        self._has_api[client.server] = api is not None
        if api is not None:
            return api
        if isinstance(tag, BaseException):
            raise tag
        return tag

    async def _from_api(
        self, client: RegistryClient, digest: str, artifact_type: str
    ) -> list[Descriptor] | None:
        """All pages of the API's answer; None if the registry has no such API."""
        wanted = client.repository.referrers(digest, artifact_type)
        found: list[Descriptor] = []
        for _ in range(_MAX_PAGES):
            try:
                answer = await client.fetch(wanted, MAX_MANIFEST)
            except OriginError as exc:
                if exc.errno == errno.EACCES:  # Harbor 2.7 answers 401; the tag says what holds
                    return None
                raise
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()
            # A page for people under every path is not the API (spec: the type MUST be this).
            if answer.status != 200 or kind != OCI_INDEX:
                return None
            found += self._entries(answer.body)
            if (link := next_link(answer.headers)) is None:
                return found
            wanted = client.repository.referrers_page(digest, self._own_url(wanted.url, link))
        raise OriginError.of(str(self), f"the referrers of {digest} have no end")

    async def _from_tag(self, client: RegistryClient, digest: str) -> list[Descriptor]:
        """What the tag lists. What is no index lists nothing (spec, "Listing Referrers")."""
        try:
            return self._entries(await self._tagged(client, digest))
        except NoIndex:
            return []

    async def _tagged(self, client: RegistryClient, digest: str) -> bytes:
        """The index under the referrers tag of `digest`; an empty one if there is none."""
        wanted = client.repository.manifest(referrers_tag(digest), optional=True)
        answer = await client.fetch(wanted, MAX_MANIFEST)
        told = answer.headers.get("docker-content-digest", "")
        if answer.status == 200 and is_digest(told):
            check_digest(str(self), answer.body, told)  # what was cut off would list nothing
        # GitLab takes the tag for the digest that it is made of, and answers with the subject.
        itself = digest_of(answer.body, digest.partition(":")[0]) == digest
        return answer.body if answer.status == 200 and not itself else NO_ENTRIES

    def _entries(self, data: bytes) -> list[Descriptor]:
        try:
            index = parse_manifest(str(self), data, OCI_INDEX)
        except OriginError as exc:
            raise NoIndex(exc.errno or errno.EIO, str(exc)) from None
        assert isinstance(index, Index), "announced as one"
        return list(index.manifests or ())

    def _own_url(self, base: str, location: str) -> str:
        """A URL that the registry named for our next request, which will be authorized."""
        url = resolve_url(str(self), base, location)
        if origin_of(url) != origin_of(base):
            raise OriginError.of(str(self), "the registry names another server to go on: refused")
        return url

    # ---- pushing --------------------------------------------------------------------------------

    async def push_artifact(
        self,
        subject: Descriptor,
        artifact_type: str,
        blobs: Sequence[ArtifactBlob],
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Blobs, manifest, and where the registry does not do it itself the referrers tag."""
        client = self._able("push")[0]
        artifact = make_artifact(subject, artifact_type, blobs, annotations)
        await each(self._push_blob(client, of.digest, data) for of, data in artifact.blobs)
        descriptor = artifact.descriptor
        wanted = client.repository.put_manifest(descriptor.digest, descriptor, artifact.manifest)
        answer = await client.fetch(wanted, MAX_MANIFEST, actions=_PUSH)
        # The header says that the registry knows what a subject is (spec, "Pushing Manifests with
        # Subject").
        if answer.headers.get("oci-subject") != subject.digest:
            async with self._listing:
                await self._list(client, subject.digest, artifact)
        return descriptor

    async def _push_blob(self, client: RegistryClient, digest: str, data: bytes) -> None:
        there = await client.fetch(client.repository.has_blob(digest), 0, actions=_PUSH)
        if there.status != 404:
            return
        start = client.repository.start_upload(digest)
        opened = await client.fetch(start, MAX_MANIFEST, actions=_PUSH)
        location = self._own_url(start.url, opened.headers.get("location", ""))
        upload = client.repository.upload(location, digest, data)
        await client.fetch(upload, MAX_MANIFEST, actions=_PUSH)

    async def _list(self, client: RegistryClient, digest: str, artifact: Artifact) -> None:
        """Add to the index under the referrers tag.

        Registries have no compare and swap: another's write between our read and ours is lost, as
        ours may be by another's. So it is read again after it was written.
        """
        tag = referrers_tag(digest)
        for _ in range(_TAG_ATTEMPTS):
            listed = await self._tagged(client, digest)
            self._entries(listed)  # nothing is added to what is no index
            data = with_entry(listed, artifact.descriptor)
            if data is None:
                return
            index = Descriptor(media_type=OCI_INDEX, digest=digest_of(data), size=len(data))
            wanted = client.repository.put_manifest(tag, index, data)
            await client.fetch(wanted, MAX_MANIFEST, actions=_PUSH)
        cause = f"the tag {tag} is written by others all the time: push again later"
        raise OriginError.of(str(self), cause, retry=True)
