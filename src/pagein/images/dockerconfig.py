"""Credentials as docker keeps them: `config.json`, and the helper programs that it names.

The file's members `auths`, `credHelpers` and `credsStore` (docker/cli, cli/config/configfile), and
the helpers' protocol (docker/docker-credential-helpers). It is read at each look-up: a login or a
rotated password counts without a restart.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from typing import Any

import msgspec

from pagein.images.auth import Credentials
from pagein.images.dockerplace import default_path
from pagein.origins.base import OriginError

HELPER_TIMEOUT = 30.0
"""Seconds that a credential helper may take."""

_MAX_FILE = 4 << 20
_REAP = 5.0
_HUB = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_IDENTITY_TOKEN = "<token>"  # the user name that says the secret is one
_NOT_FOUND = b"credentials not found"  # docker-credential-helpers, credentials/error.go


class _Auth(msgspec.Struct, rename=lambda name: name.replace("_", "")):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identity_token: str | None = None
    registry_token: str | None = None


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, Any] | None = None
    cred_helpers: dict[str, str] | None = None
    creds_store: str | None = None


class _Secret(msgspec.Struct, rename="pascal"):
    username: str
    secret: str


class DockerConfig:
    """The credentials in `path`, by default the user's own `config.json`; it need not exist."""

    def __init__(self, path: str | None = None, *, helper_timeout: float = HELPER_TIMEOUT) -> None:
        self.path = path or default_path()
        self._helper_timeout = helper_timeout

    async def look_up(self, host: str) -> Credentials | None:
        """The credentials for the registry `host` (with its port), or None.

        OriginError if the file or a helper's answer cannot be understood; it names neither
        passwords nor the content of the file.
        """
        config = await asyncio.to_thread(self._read)
        helper = _find(config.cred_helpers or {}, host) or config.creds_store
        if helper:
            found = await self._ask_helper(helper, _server_name(host))
            if found is not None:
                return found
        entry = _find(config.auths or {}, host)
        return self._decode(entry, host) if entry else None

    def _read(self) -> _File:
        try:
            with open(self.path, "rb") as file:
                data = file.read(_MAX_FILE)
        except (FileNotFoundError, NotADirectoryError):
            return _File()
        except OSError as exc:
            cause = f"cannot be read: {os.strerror(exc.errno or errno.EIO).lower()}"
            raise OriginError.of(self.path, cause, errno=exc.errno or errno.EIO) from None
        try:
            return msgspec.json.decode(data, type=_File)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            cause = "is no docker configuration (JSON): mend it, or log in again"
            raise OriginError.of(self.path, cause, errno=errno.EINVAL) from None

    def _decode(self, entry: Any, host: str) -> Credentials | None:
        try:
            auth = msgspec.convert(entry, _Auth)
            pair = base64.b64decode(auth.auth or "", validate=True).decode()
        except (msgspec.MsgspecError, binascii.Error, UnicodeDecodeError):
            cause = f"the entry for {host} is not as docker writes it: log in again"
            raise OriginError.of(self.path, cause, errno=errno.EINVAL) from None
        username, _, password = pair.partition(":")
        found = Credentials(
            username=auth.username or username,
            # docker pads with NUL bytes what an old version of it wrote
            password=auth.password or password.rstrip("\0"),
            identity_token=auth.identity_token or "",
            registry_token=auth.registry_token or "",
        )
        return None if found == Credentials() else found

    async def _ask_helper(self, helper: str, server: str) -> Credentials | None:
        program = f"docker-credential-{helper}"
        if not _HELPER.fullmatch(helper):
            cause = f"names a credential helper {helper[:80]!a}: not a program's name"
            raise OriginError.of(self.path, cause, errno=errno.EINVAL)
        code, output = await self._run(program, server)
        if code != 0:
            if _NOT_FOUND in output:
                return None
            raise self._helper_failed(program, f"failed with exit code {code}")
        try:
            secret = msgspec.json.decode(output, type=_Secret)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise self._helper_failed(program, "did not answer as such helpers do") from None
        if secret.username == _IDENTITY_TOKEN:
            return Credentials(identity_token=secret.secret)
        return Credentials(username=secret.username, password=secret.secret)

    async def _run(self, program: str, server: str) -> tuple[int, bytes]:
        """Exit code and output of `program get`."""
        try:
            process = await asyncio.create_subprocess_exec(
                program, "get", stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
        except OSError as exc:
            why = os.strerror(exc.errno or errno.EIO).lower()
            raise self._helper_failed(program, f"cannot be run: {why}") from None
        try:
            async with asyncio.timeout(self._helper_timeout):
                output, _ = await process.communicate(server.encode())
        except TimeoutError:
            cause = f"did not answer within {self._helper_timeout:g} s"
            raise self._helper_failed(program, cause, retry=True) from None
        finally:
            await _end(process)
        return process.returncode or 0, output

    def _helper_failed(self, program: str, cause: str, *, retry: bool = False) -> OriginError:
        return OriginError.of(self.path, f"{program} {cause}", errno=errno.EACCES, retry=retry)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the helper, and what it started, if it still runs; and reap it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):  # something it started holds its pipes, in another session
            async with asyncio.timeout(_REAP):
                await process.wait()


def _server_name(host: str) -> str:
    return _HUB if host in _HUB_NAMES else host


def _find(entries: dict[str, Any], host: str) -> Any:
    """The entry for `host`: named exactly, or by a URL of it as older versions of docker wrote."""
    names = _HUB_NAMES if host in _HUB_NAMES else {host}
    if host in _HUB_NAMES and _HUB in entries:
        return entries[_HUB]
    if host in entries:
        return entries[host]
    for key, entry in entries.items():
        if key.partition("://")[2].partition("/")[0] in names or key.partition("/")[0] in names:
            return entry
    return None
