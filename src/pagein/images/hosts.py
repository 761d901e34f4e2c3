"""Which servers are asked for the images of a registry: containerd's `hosts.toml`.

As containerd reads it (containerd, docs/hosts.md and core/remotes/docker/config): the hosts in the
order of the file, then the server. What containerd only logs is an error here, and names the file
and the key. Certificates are read together with it: who fetches may not be able to.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import ssl
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from pagein.origins.base import OriginError

DEFAULT_DIRECTORY: Final = "/etc/containerd/certs.d"
NAME: Final = "hosts.toml"
CAPABILITIES: Final = ("pull", "resolve", "push")
_MAX_FILE = 1 << 20

_KEYS = {"capabilities", "ca", "client", "skip_verify", "header", "override_path"}
_KEYS |= {"dial_timeout", "proxy"}
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

Read = Callable[[str], str]
"""The text of a file, by its path; OSError when it cannot be read."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A server, and how it is spoken to."""

    url: str = ""
    """Scheme, host and port; "" for the registry itself."""
    api: str = "/v2"
    """The path before `/NAME/manifests/...`."""
    capabilities: tuple[str, ...] = CAPABILITIES
    skip_verify: bool = False
    ca: tuple[str, ...] = ()
    """Certificates as PEM."""
    client: tuple[tuple[str, str], ...] = ()
    """Certificate and key as PEM; the key is "" if it is with the certificate."""
    header: tuple[tuple[str, str], ...] = ()
    dial_timeout: float | None = None
    """Seconds."""
    proxy: str | None = None

    def __repr__(self) -> str:
        return f"Host({self.url!r})"  # neither keys nor headers

    def tls(self) -> ssl.SSLContext | None:
        """How TLS is made sure of, None as always. Raises ssl.SSLError. Blocks, shortly."""
        if not (self.skip_verify or self.ca or self.client):
            return None
        context = ssl.create_default_context()
        if self.ca:
            context.load_verify_locations(cadata="\n".join(self.ca))
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for certificate, key in self.client:
            _load(context, f"{certificate}\n{key}".encode())
        return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Python takes a key from files only; this one is on no disk."""
    fd = os.memfd_create("pagein-client", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


# ---- finding and reading ------------------------------------------------------------------------


def hosts_of(directory: str, registry: str) -> tuple[Host, ...]:
    """The hosts for `registry` (HOST[:PORT]) that `directory` has; none if it says nothing of it.

    Blocks. Raises OriginError in one line, which names the file, and line or key.
    """
    for name in _names(registry):
        place = os.path.join(directory, name)
        if os.path.isdir(place):
            return _load_directory(place)
    return ()


def _names(registry: str) -> Iterator[str]:
    host, colon, port = registry.rpartition(":")
    if colon and port.isdigit():
        yield f"{host}_{port}_"
    yield registry
    yield "_default"


def _load_directory(place: str) -> tuple[Host, ...]:
    path = os.path.join(place, NAME)
    try:
        text = _read(path)
    except FileNotFoundError:
        text = ""
    except (OSError, ValueError) as problem:
        _refuse(path, f"cannot be read: {_reason(problem)}")
    if text.strip():
        return parse_hosts(path, text, _read)
    return _docker_style(place)


def _docker_style(place: str) -> tuple[Host, ...]:
    """Without a file: docker's certificates of a registry, `*.crt`, and `*.cert` with `*.key`."""
    found = sorted(Path(place).iterdir())
    authorities = [str(path) for path in found if path.suffix == ".crt"]
    pairs = [[str(path), str(path.with_suffix(".key"))] for path in found if path.suffix == ".cert"]
    if not authorities and not pairs:
        return ()
    table = {"ca": authorities, "client": pairs}
    return (_Table(place, "", table, _read).host(""),)


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(_MAX_FILE).decode()


# ---- what it says -------------------------------------------------------------------------------


def parse_hosts(path: str, text: str, read: Read) -> tuple[Host, ...]:
    """The hosts of a file `path` with `text`, the server last; `read` is for certificates.

    OriginError (EINVAL) in one line that names the file, and line or key.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        _refuse(path, f"not TOML: {problem}")
    hosts = document.pop("host", {})
    if not isinstance(hosts, dict):
        _refuse(path, 'host: expected tables [host."https://..."]')
    server = document.pop("server", "")
    if not isinstance(server, str):
        _refuse(path, "server: expected a string")
    found = []
    for url, table in hosts.items():
        name = f'host."{url}"'
        if not isinstance(table, dict):
            _refuse(path, f"{name}: expected a table")
        found.append(_Table(path, name, table, read).host(url))
    return (*found, _Table(path, "", document, read).host(server))


class _Table:
    """One table of a file; errors say where they are."""

    def __init__(self, path: str, name: str, table: dict[str, Any], read: Read) -> None:
        self._path = path
        self._name = name
        self._table = table
        self._read_file = read
        if unknown := sorted(set(table) - _KEYS):
            self._refuse(unknown[0], "an unknown key")

    def host(self, url: str) -> Host:
        base, path = self._url(url) if url else ("", "")
        if not self._flag("override_path"):
            path = path if path.endswith("/v2") else f"{path}/v2"
        return Host(
            url=base,
            api=path,
            capabilities=self._capabilities(),
            skip_verify=self._flag("skip_verify"),
            ca=tuple(self._pem("ca", each) for each in self._strings("ca")),
            client=tuple(self._clients()),
            header=tuple(self._headers()),
            dial_timeout=self._duration("dial_timeout"),
            proxy=self._proxy(),
        )

    def _url(self, url: str) -> tuple[str, str]:
        key = "server" if not self._name else ""
        whole = url if "://" in url else f"https://{url}"
        try:
            parts = urlsplit(whole)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            parts, usable = urlsplit(""), False
        if not usable or "@" in parts.netloc or parts.query or parts.fragment:
            self._refuse(key, f"{url!r} is not the URL of a server")
        path = posixpath.normpath(parts.path) if parts.path.strip("/") else ""
        # As in containerd's own example; the API is not there.
        netloc = "registry-1.docker.io" if parts.netloc == "docker.io" else parts.netloc
        return f"{parts.scheme}://{netloc}", path

    def _capabilities(self) -> tuple[str, ...]:
        given = [each.lower() for each in self._strings("capabilities")]
        for each in given:
            if each not in CAPABILITIES:
                known = ", ".join(CAPABILITIES)
                self._refuse("capabilities", f"{each!r} is none of {known}")
        return tuple(given) or CAPABILITIES

    def _flag(self, key: str) -> bool:
        value = self._table.get(key, False)
        if not isinstance(value, bool):
            self._refuse(key, "expected true or false")
        return value

    def _strings(self, key: str) -> list[str]:
        value = self._table.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self._refuse(key, "expected a string, or an array of strings")
        return value

    def _clients(self) -> Iterator[tuple[str, str]]:
        value = self._table.get("client", [])
        for each in value if isinstance(value, list) else [value]:
            match each:
                case str():
                    yield self._pem("client", each), ""
                case [str(certificate), str(key)]:
                    yield self._pem("client", certificate), self._pem("client", key) if key else ""
                case _:
                    self._refuse("client", "expected a path, or an array of paths or pairs of them")

    def _pem(self, key: str, path: str) -> str:
        path = os.path.join(os.path.dirname(self._path), path)
        try:
            text = self._read_file(path)
        except (OSError, ValueError) as problem:
            self._refuse(key, f"{path} cannot be read: {_reason(problem)}")
        if "-----BEGIN " not in text:
            self._refuse(key, f"{path} is not PEM")
        return text

    def _headers(self) -> Iterator[tuple[str, str]]:
        table = self._table.get("header", {})
        if not isinstance(table, dict):
            self._refuse("header", "expected a table")
        for name, value in table.items():
            values = [value] if isinstance(value, str) else value
            if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
                self._refuse(f"header.{name}", "expected a string, or an array of strings")
            # Several are one list (RFC 9110 5.3).
            joined = ", ".join(values)
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(joined):
                self._refuse(f"header.{name}", "cannot be sent as a header")
            yield name, joined

    def _duration(self, key: str) -> float | None:
        value = self._table.get(key)
        if value is None:
            return None
        if isinstance(value, str) and re.fullmatch(rf"(?:{_DURATION.pattern})+", value):
            seconds = sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(value))
            if seconds > 0:
                return seconds
        self._refuse(key, 'expected a time above zero, as "1s"')

    def _proxy(self) -> str | None:
        value = self._table.get("proxy")
        if value is None:
            return None
        parts = urlsplit(value) if isinstance(value, str) else urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            self._refuse("proxy", "expected the URL of an http or https proxy")
        return str(value)

    def _refuse(self, key: str, cause: str) -> NoReturn:
        where = ".".join(part for part in (self._name, key) if part)
        _refuse(self._path, f"{where}: {cause}")


def _reason(problem: Exception) -> str:
    if isinstance(problem, OSError):
        return os.strerror(problem.errno or errno.EIO).lower()
    return "it is not UTF-8"


def _refuse(path: str, cause: str) -> NoReturn:
    raise OriginError.of(path, cause, errno=errno.EINVAL)
