"""The names of images: `docker://HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, `oci:DIR[:TAG][@DIGEST]`.

The grammar is that of the distribution project's package `reference`; what leaves it out means
what it means to docker: no host is docker.io, one word there is library/WORD, no tag is `latest`.
"""

from __future__ import annotations

import errno
import ipaddress
import re
from dataclasses import dataclass
from typing import NoReturn

from pagein.origins.base import OriginError

MAX_REPOSITORY = 255
"""Characters of a repository's name with its host (distribution/reference)."""

DIGEST = r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
"""The digests that can be verified here (image-spec, descriptor.md, "Registered Algorithms")."""

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{{1,5}}))?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# What `org.opencontainers.image.ref.name` may hold (image-spec, annotations.md).
_LAYOUT_TAG = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+|/[A-Za-z0-9]+)*")
_AT_DIGEST = re.compile(rf"(.*)@({DIGEST})", re.DOTALL)

_HUB = "docker.io"
_HUB_NAMES = frozenset({_HUB, "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image, or a digest, in a registry; `str()` is its full name."""

    host: str
    """With the port if one was named; `docker.io` for Docker Hub."""
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"docker://{self.host}/{self.repository}{tag}{digest}"

    @property
    def wanted(self) -> str:
        """What is asked of the registry: the digest if there is one, else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def server(self) -> str:
        """The host that answers: Docker Hub's registry has another name than Docker Hub."""
        return "registry-1.docker.io" if self.host == _HUB else self.host

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine: docker speaks plain HTTP to such ones."""
        name = self.host if self.host.endswith("]") else self.host.partition(":")[0]
        if self.host.startswith("["):
            name = self.host[1:].partition("]")[0]
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name.lower() == "localhost"


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An image in a directory of the OCI layout (image-spec, image-layout.md)."""

    directory: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"oci:{self.directory}{tag}{digest}"


Reference = RegistryReference | LayoutReference


def parse_reference(text: str) -> Reference:
    """The image that `text` names; OriginError (EINVAL) that says what is wrong with it."""
    if text.startswith("docker://"):
        return _parse_registry(text, text.removeprefix("docker://"))
    if text.startswith("oci:"):
        return _parse_layout(text, text.removeprefix("oci:"))
    _fail(text, "name an image as docker://HOST/NAME:TAG or oci:DIR:TAG")


def _parse_registry(text: str, rest: str) -> RegistryReference:
    rest, digest = _split_digest(text, rest)
    first, slash, path = rest.partition("/")
    if slash and (set(first) & set(".:[") or first == "localhost"):
        host = _check_host(text, first)
    else:
        host, path = _HUB, rest
    name, colon, tag = path.partition(":")
    if host == _HUB and name and "/" not in name:
        name = f"library/{name}"
    _check_repository(text, host, name)
    if colon and not _TAG.fullmatch(tag):
        _fail(text, f"{tag!r} is no tag: letters, digits, `_`, `.`, `-`, at most 128 of them")
    if not colon and digest is None:
        tag = "latest"
    return RegistryReference(host, name, tag or None, digest)


def _split_digest(text: str, rest: str) -> tuple[str, str | None]:
    match = _AT_DIGEST.fullmatch(rest)
    if match is not None:
        return match[1], match[2]
    if "@" in rest:
        _fail(text, "after `@` goes a digest: sha256: and 64 digits 0-9a-f, or sha512: and 128")
    return rest, None


def _check_host(text: str, host: str) -> str:
    match = _HOST.fullmatch(host)
    if match is None or not 0 < int(match[1] or 1) < 65536:
        _fail(text, f"{host!r} is no host with an optional port")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:].partition("]")[0])
        except ValueError:
            _fail(text, f"{host!r} is no IPv6 address in brackets")
    return _HUB if host in _HUB_NAMES else host


def _check_repository(text: str, host: str, name: str) -> None:
    if not name:
        _fail(text, "names no repository")
    if not _REPOSITORY.fullmatch(name):
        why = " (capital letters are not allowed)" if name != name.lower() else ""
        _fail(text, f"{name!r} is no repository name{why}")
    if len(host) + 1 + len(name) > MAX_REPOSITORY:
        _fail(text, f"host and repository are longer than {MAX_REPOSITORY} characters")


def _parse_layout(text: str, rest: str) -> LayoutReference:
    match = _AT_DIGEST.fullmatch(rest)
    rest, digest = (match[1], match[2]) if match else (rest, None)
    # As skopeo has it: the directory ends at the first colon.
    directory, colon, tag = rest.partition(":")
    if not directory or "\0" in directory:
        _fail(text, "names no directory")
    if colon and not _LAYOUT_TAG.fullmatch(tag):
        _fail(text, f"{tag!r} is no tag")
    return LayoutReference(directory, tag or None, digest)


def _fail(text: str, cause: str) -> NoReturn:
    shown = text if text.isprintable() else ascii(text)
    raise OriginError.of(shown or "(nothing)", cause, errno=errno.EINVAL)
