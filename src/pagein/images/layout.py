"""An image in a directory of the OCI layout (image-spec 1.1, image-layout.md).

Disks may be slow, and directories on a network: everything runs in threads, with a deadline.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

import msgspec

from pagein.images.artifacts import Artifact, ArtifactBlob, make_artifact, of_type, with_entry
from pagein.images.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_MANIFEST,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    parse_manifest,
)
from pagein.images.paths import referrers_tag
from pagein.images.reference import LayoutReference
from pagein.images.source import ImageSource
from pagein.origins.base import Origin, OriginError
from pagein.origins.file import FileOrigin
from pagein.origins.identity import Identity

REF_NAME = "org.opencontainers.image.ref.name"
"""The annotation in index.json that is a tag."""

_VERSION = "1.0.0"
_LOCK_PAUSE = 0.05
_MAX_SCANNED = 1024  # manifests of index.json that are looked through for subjects

T = TypeVar("T")


class _Marker(msgspec.Struct, rename="camel"):
    image_layout_version: str


class LayoutSource(ImageSource):
    """The image `reference`; what takes longer than `timeout` seconds is an error."""

    def __init__(self, reference: LayoutReference, *, timeout: float) -> None:
        name = str(reference)
        self._name = name if name.isprintable() else ascii(name)[1:-1]
        self._reference = reference
        self._directory = os.path.abspath(reference.directory)
        self._timeout = timeout

    def __str__(self) -> str:
        return self._name

    async def resolve(self) -> tuple[Descriptor, bytes]:
        """The entry of index.json that the tag or digest names; without both, the only one."""
        return await self._in_thread(self._resolve)

    async def manifest(self, descriptor: Descriptor) -> bytes:
        """Read whole."""
        return await self.blob(descriptor, MAX_MANIFEST)

    async def blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """Read whole."""
        return await self._in_thread(lambda: self._read_blob(descriptor, limit))

    def open_blob(self, descriptor: Descriptor) -> Origin:
        """The blob's file; it may not change while it is used."""
        if descriptor.size == 0:
            self._fail(f"blob {descriptor.digest} is empty: nothing to serve", errno.EINVAL)
        # No validator: the file is named by its digest, and a wrong size is noticed.
        identity = Identity(source=self._blob_path(descriptor.digest), size=descriptor.size)
        return FileOrigin(identity, self._timeout)

    async def referrers(self, digest: str, artifact_type: str) -> list[Descriptor]:
        """Those in index.json, and those in an index there under the referrers tag."""
        return of_type(await self._in_thread(lambda: self._referrers(digest)), artifact_type)

    async def push_artifact(
        self,
        subject: Descriptor,
        artifact_type: str,
        blobs: Sequence[ArtifactBlob],
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Add blobs and manifest, then an entry to index.json; other tools should not add then."""
        artifact = make_artifact(subject, artifact_type, blobs, annotations)
        await self._in_thread(lambda: self._store(artifact))
        return artifact.descriptor

    # ---- in threads -----------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.to_thread(call)
        except OriginError:
            raise
        except TimeoutError:
            cause = f"no data within {self._timeout:g} s"
            raise OriginError.of(self._name, cause, errno=errno.ETIMEDOUT, retry=True) from None
        except OSError as exc:
            raise OriginError.of(self._name, _text(exc), errno=exc.errno or errno.EIO) from None

    def _resolve(self) -> tuple[Descriptor, bytes]:
        entry = self._choose(self._read_index())
        return entry, self._read_blob(entry, MAX_MANIFEST)

    def _choose(self, index: Index) -> Descriptor:
        entries = [
            entry
            for entry in index.manifests or ()
            if entry.media_type in MANIFEST_TYPES | INDEX_TYPES
        ]
        wanted = self._reference
        if wanted.digest is not None:
            found = [entry for entry in entries if entry.digest == wanted.digest]
        elif wanted.tag is not None:
            found = [entry for entry in entries if _tag(entry) == wanted.tag]
        else:
            # What refers to an image is no image that could be meant.
            found = [entry for entry in entries if not _is_referrer(entry)]
        if len({entry.digest for entry in found}) == 1:
            return found[0]
        tags = sorted({tag for entry in entries if (tag := _tag(entry))})
        there = f"tags there: {', '.join(tags)[:200]}" if tags else "there are no tags"
        cause = "holds no such image" if not found else "holds several images: name one"
        self._fail(f"{cause} ({there})", errno.ENOENT if not found else errno.EINVAL)

    def _read_index(self) -> Index:
        marker = self._read("oci-layout", 4096)
        try:
            version = msgspec.json.decode(marker, type=_Marker).image_layout_version
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            version = "unreadable"
        if version != _VERSION:
            self._fail(f"not an OCI layout of version {_VERSION} ({version[:40]!a})")
        data = self._read("index.json", MAX_MANIFEST)
        index = parse_manifest(f"{self._name}: index.json", data, OCI_INDEX)
        assert isinstance(index, Index), "announced as one"
        return index

    def _read_blob(self, descriptor: Descriptor, limit: int) -> bytes:
        if descriptor.size > limit:
            cause = f"blob {descriptor.digest} has {descriptor.size} bytes, more than {limit}"
            self._fail(cause)
        path = os.path.relpath(self._blob_path(descriptor.digest), self._directory)
        return descriptor.verify(self._name, self._read(path, descriptor.size))

    def _blob_path(self, digest: str) -> str:
        algorithm, _, encoded = digest.partition(":")
        return os.path.join(self._directory, "blobs", algorithm, encoded)

    def _read(self, name: str, limit: int) -> bytes:
        """A file of the layout; at most `limit` + 1 bytes of it, so that more is noticed."""
        path = os.path.join(self._directory, name)
        try:
            # Not blocking: a FIFO would wait for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    self._fail(f"{name} is not a regular file")
                return file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            self._fail(f"there is no {name} in it: is it an OCI layout?", errno.ENOENT)

    def _referrers(self, digest: str) -> list[Descriptor]:
        found = []
        for entry in (self._read_index().manifests or ())[:_MAX_SCANNED]:
            if entry.media_type in INDEX_TYPES and _tag(entry) == referrers_tag(digest):
                listed = self._parse(entry)
                found += list(listed.manifests or ()) if isinstance(listed, Index) else []
            elif entry.media_type in MANIFEST_TYPES:
                document = self._parse(entry)
                subject = document.subject if isinstance(document, Manifest) else None
                if subject is not None and subject.digest == digest:
                    kind = entry.artifact_type or getattr(document, "artifact_type", None)
                    found.append(msgspec.structs.replace(entry, artifact_type=kind))
        return found

    def _parse(self, entry: Descriptor) -> Manifest | Index:
        data = self._read_blob(entry, MAX_MANIFEST)
        return parse_manifest(f"{self._name}: {entry.digest}", data, entry.media_type)

    # ---- writing --------------------------------------------------------------------------------

    def _store(self, artifact: Artifact) -> None:
        self._read_index()  # nothing is written into what is no layout
        for descriptor, data in (*artifact.blobs, (artifact.descriptor, artifact.manifest)):
            path = self._blob_path(descriptor.digest)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if not os.path.exists(path):
                _replace(path, data)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock(fd)
            self._add_entry(artifact.descriptor)
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        """Ours take turns by a lock on the directory; no other tool knows of it."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_PAUSE)

    def _add_entry(self, added: Descriptor) -> None:
        self._read_index()
        data = with_entry(self._read("index.json", MAX_MANIFEST), added)
        if data is not None:
            _replace(os.path.join(self._directory, "index.json"), data)

    def _fail(self, cause: str, number: int | None = None) -> NoReturn:
        raise OriginError.of(self._name, cause, errno=number or errno.EIO)


def _tag(entry: Descriptor) -> str | None:
    return (entry.annotations or {}).get(REF_NAME)


def _is_referrer(entry: Descriptor) -> bool:
    return entry.artifact_type is not None or (_tag(entry) or "").startswith(("sha256-", "sha512-"))


def _replace(path: str, data: bytes) -> None:
    """`data` as the file at `path`, at once and on disk, or nothing."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _text(exc: OSError) -> str:
    return os.strerror(exc.errno or errno.EIO).lower()
