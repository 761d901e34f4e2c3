"""Images for the commands: brought here by the user half, mounted as stacks by the kernel half."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import sys
from typing import Any
from urllib.parse import urlsplit

from pagein.cli.halves import Ask, user_half
from pagein.cli.pulling import Shown
from pagein.cli.settings import Settings
from pagein.cli.sources import VOLUME
from pagein.cli.stacks import Layer, Writable, mount_stack
from pagein.control import Answer, Connection, ControlError, NotListening

_SAY = 1.0
"""Seconds for a question to go into a socket's buffer."""

_MAX_HOSTS = 500_000
"""Bytes of what `hosts.toml` says, certificates and all; a trace gets the rest of a question."""

_MAX_PACKED = 900_000
"""Bytes of a packed trace: with the rest of the question less than `control.MAX_LINE`."""


class Wanted:
    """An image as a user named it, brought here by the user half."""

    def __init__(
        self,
        settings: Settings,
        source: str,
        platform: str = "",
        trace: str | None = None,
        prefetch: bool = True,
        run: dict[str, Any] | None = None,
        background: str | None = None,
    ) -> None:
        """`platform` is "" for that of this machine; `trace` is the file of one.

        With None the one beside the image's indexes is taken. `run` is what a container's command
        is made of, beside the image's config. OSError when the trace cannot be used.
        """
        self.source = source
        self._settings = settings
        self._platform = platform
        self._hosts = _hosts(source, settings.hosts_dir)
        room = _MAX_PACKED - len(json.dumps(self._hosts))
        self._trace = _packed(trace, room) if trace is not None and prefetch else ""
        self._prefetch = prefetch
        self._run = run
        self._background = background
        self._asked: Connection | None = None

    def begin(self) -> None:
        """Ask for it, and do not wait; a user half that is just starting will find the question.

        If that fails `bring` says so, or it works then.
        """
        with contextlib.suppress(OSError):
            connection = Connection(self._settings.path("daemon.sock"))
            try:
                connection.say(self._question, timeout=_SAY)
            except BaseException:
                connection.close()
                raise
            self._asked = connection

    def bring(self, *, timeout: float) -> Answer:
        """Ask until it can be mounted, showing how far it is. Raises ControlError, OriginError."""
        with Shown() as shown:
            while True:
                try:
                    answer = self._ask(timeout=timeout + 10)
                except NotListening:
                    text = "the user half does not run: images are served by pagein's own only"
                    raise ControlError(errno.ENOENT, f"{self.source}: {text}") from None
                shown.update(answer["progress"])
                if answer["done"]:
                    return answer

    def _ask(self, *, timeout: float) -> Answer:
        asked, self._asked = self._asked, None
        if asked is not None:
            with contextlib.closing(asked):
                try:
                    return asked.answer(timeout=timeout)
                except ControlError as problem:
                    if problem.errno != errno.ECONNRESET:  # restarted before it answered
                        raise
        return user_half(self._settings, self._question, timeout=timeout)

    @functools.cached_property
    def _question(self) -> dict[str, Any]:
        return {
            "op": "image",
            "source": absolute(self.source),
            "platform": self._platform,
            "trace": self._trace,
            "prefetch": self._prefetch,
            "hosts": self._hosts,
            "auth": _auth(self.source, self._hosts),
            "run": self._run,
            "background": self._background,
        }

    def close(self) -> None:
        """Hang up, if it was begun and not brought."""
        if self._asked is not None:
            self._asked.close()
            self._asked = None


def mount_image(
    ask: Ask,
    wanted: Wanted,
    target: str,
    *,
    writable: Writable | None,
    suid: bool = False,
    loop: str = "auto",
    timeout: float,
) -> dict[str, Any]:
    """Mount an image on `target`; what its config says of containers. Raises OSError."""
    answer = wanted.bring(timeout=timeout)
    if answer["note"]:
        print(f"pagein: {answer['note']}", file=sys.stderr)
    layers = [Layer(each["name"], [_blob(b) for b in each["blobs"]]) for each in answer["layers"]]
    mount_stack(
        ask,
        target,
        layers,
        label=answer["source"],
        writable=writable,
        suid=suid,
        loop=loop,
        timeout=timeout,
    )
    config: dict[str, Any] = answer["config"]
    return config


def absolute(source: str) -> str:
    """The name with the directory of a layout from the root: other processes have another one."""
    if not source.startswith("oci:"):
        return source
    directory, colon, rest = source.removeprefix("oci:").partition(":")
    if not directory:
        return source
    return f"oci:{os.path.abspath(directory)}{colon}{rest}"


def _packed(path: str, room: int) -> str:
    """The trace in a file, looked at here: the user half may not be able to read the file."""
    from pagein.cli.tracefile import load
    from pagein.images.traces.document import pack

    packed = pack(load(path).dump())
    if len(packed) > room:
        raise ControlError(errno.EFBIG, f"{path}: too much for a trace: {len(packed)} bytes packed")
    return packed


def _hosts(source: str, directory: str) -> dict[str, Any]:
    """What containerd has of mirrors of the registry of `source`, certificates and all.

    Raises OriginError that names file and key.
    """
    if not source.startswith("docker://"):
        return {}
    from pagein.images.reference import RegistryReference, parse_reference

    reference = parse_reference(source)
    assert isinstance(reference, RegistryReference), "by its beginning"
    if not os.path.isdir(directory):
        return {reference.host: []}
    import msgspec

    from pagein.images.hosts import hosts_of

    found = {reference.host: msgspec.to_builtins(hosts_of(directory, reference.host))}
    if (size := len(msgspec.json.encode(found))) > _MAX_HOSTS:
        text = f"{size} bytes of certificates and headers for {reference.host}"
        raise ControlError(errno.EFBIG, f"{directory}: too much: {text}")
    return found


def _auth(source: str, hosts: dict[str, Any]) -> dict[str, Any]:
    """What docker has for the registry of `source` and its mirrors.

    The user half cannot read it there.
    """
    from pagein.images.dockerplace import default_path

    if not source.startswith("docker://") or not os.path.lexists(default_path()):
        return {}
    import asyncio

    import msgspec

    from pagein.images.dockerconfig import DockerConfig
    from pagein.images.reference import RegistryReference, parse_reference

    reference = parse_reference(source)
    assert isinstance(reference, RegistryReference), "by its beginning"
    mirrors = {urlsplit(each["url"]).netloc for each in hosts.get(reference.host, [])} - {""}

    async def look_up() -> dict[str, Any]:
        config = DockerConfig()
        names = [reference.host, *sorted(mirrors - {reference.host})]
        return {name: await config.look_up(name) for name in names}

    found = asyncio.run(look_up())
    return {name: msgspec.to_builtins(each) for name, each in found.items() if each}


def _blob(told: dict[str, Any]) -> dict[str, Any]:
    cookie = told["cookie"].encode()
    return {"volume": VOLUME.hex(), "cookie": cookie.hex(), "label": told["label"]}
