"""Servers that do what real ones do and docker-registry does not: tokens, redirects, lies.

All of them count: requests, what they carried, and how many had to be made one after the other.
"""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tests.images.documents import Built, describe, dumps
from tests.images.processes import PASSWORD, USER

from pagein.images.manifest import OCI_INDEX, OCI_MANIFEST, digest_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Rounds:
    """How many requests had to be made in sequence: each is one later than all it could see."""

    deepest: int = 0
    pause: float = 0.0
    """Seconds before each answer: requests that do not wait for each other meet in them."""

    def wrap(self, handler: Handler) -> Handler:
        async def counted(request: web.Request) -> web.StreamResponse:
            depth = self.deepest + 1
            await asyncio.sleep(self.pause)
            self.deepest = max(self.deepest, depth)
            return await handler(request)

        return counted


@contextlib.asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[str]:
    """HOST:PORT of a server whose every request `handler` answers."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class TokenServer:
    """Gives tokens to who names USER and PASSWORD, or to anybody (`anonymous`)."""

    anonymous: bool = True
    make: Callable[[str], str] | None = None
    expires_in: float | None = None
    status: int = 200
    identity_token: str | None = None
    rounds: Rounds = field(default_factory=Rounds)
    asked: list[str] = field(default_factory=list)
    """The scopes that were asked for."""
    valid: set[str] = field(default_factory=set)
    gate: asyncio.Event | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        values = request.query if request.method == "GET" else await request.post()
        scope = str(values.get("scope", ""))
        self.asked.append(scope)
        if self.gate is not None:
            await self.gate.wait()
        if self.status != 200:
            return web.Response(status=self.status)
        if not self._knows(request, values):
            return web.json_response({"errors": [{"code": "DENIED"}]}, status=401)
        token = self.make(scope) if self.make else os.urandom(8).hex()
        self.valid.add(token)
        body: dict[str, Any] = {"token": token}
        if self.expires_in is not None:
            body["expires_in"] = self.expires_in
        return web.json_response(body)

    def _knows(self, request: web.Request, values: Any) -> bool:
        if request.method == "POST":
            return bool(values.get("refresh_token") == self.identity_token is not None)
        return self.anonymous or request.headers.get("Authorization") == basic_header()


def basic_header() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass
class Storage:
    """Where blobs are redirected to: by links that count down and expire."""

    blobs: dict[str, bytes]
    uses: int = 1 << 30
    """How often a link may be used."""
    refusal: int = 403
    host: str = ""
    links: dict[str, int] = field(default_factory=dict)
    requests: list[web.Request] = field(default_factory=list)

    def link(self, digest: str) -> str:
        key = os.urandom(6).hex()
        self.links[key] = self.uses
        return f"http://{self.host}/{digest}?X-Signature={key}%2F%3d"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        key = request.query.get("X-Signature", "").removesuffix("/=")
        if "%2F%3d" not in request.raw_path or self.links.get(key, 0) <= 0:
            return web.Response(status=self.refusal, text="<Error>expired</Error>")
        self.links[key] -= 1
        return ranged(request, self.blobs[request.path.removeprefix("/")])


def ranged(request: web.Request, data: bytes) -> web.Response:
    """A GET of bytes, with a single range or without."""
    if "Range" not in request.headers:
        return web.Response(body=data)
    wanted = request.http_range
    start, stop = wanted.start or 0, min(wanted.stop or len(data), len(data))
    span = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    return web.Response(status=206, body=data[start:stop], headers=span)


Fault = Callable[[web.Request], web.StreamResponse | None]


@dataclass
class FakeRegistry:
    """A registry of one repository, `app`, in memory."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tokens: TokenServer | None = None
    realm: str = ""
    basic: bool = False
    denial: int = 401
    storage: Storage | None = None
    api: bool = False
    page: int = 1000
    forgetful: bool = False
    """Others write the referrers tag at the same time, and always win."""
    fault: Fault | None = None
    rounds: Rounds = field(default_factory=Rounds)
    requests: list[web.Request] = field(default_factory=list)

    def add(self, tag: str, image: Built) -> None:
        self.blobs |= image.blobs
        self.put(tag, image.descriptor.media_type, image.manifest)

    def put(self, reference: str, media_type: str, data: bytes) -> None:
        self.manifests[reference] = self.manifests[digest_of(data)] = (media_type, data)

    def paths(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if (refused := self._refuse(request)) is not None:
            return refused
        if self.fault is not None and (lie := self.fault(request)) is not None:
            return lie
        kind, _, name = request.path.removeprefix("/v2/app/").partition("/")
        answers = {
            "manifests": self._manifest,
            "blobs": self._blob,
            "referrers": self._referrers,
        }
        return await answers[kind](request, name)

    def _refuse(self, request: web.Request) -> web.Response | None:
        sent = request.headers.get("Authorization", "")
        if self.tokens is not None:
            if sent.startswith("Bearer ") and sent[7:] in self.tokens.valid:
                return None
            challenge = f'Bearer realm="{self.realm}",service="fake"'
            if self.denial != 401 and sent:
                return web.Response(status=self.denial)
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if self.basic and sent != basic_header():
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="fake"'})
        return None

    async def _manifest(self, request: web.Request, name: str) -> web.Response:
        if request.method == "PUT":
            data = await request.read()
            self.put(name, request.headers["Content-Type"], data)
            return web.Response(status=201, headers=self._index_subject(data))
        if name not in self.manifests:
            error = {"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}
            return web.json_response({"errors": [error]}, status=404)
        media_type, data = self.manifests[name]
        told = {"Docker-Content-Digest": digest_of(data), "Content-Type": media_type}
        return web.Response(body=data, headers=told)

    def _index_subject(self, data: bytes) -> dict[str, str]:
        """What a registry with the API does itself with a manifest that has a subject."""
        document = json.loads(data)
        if self.forgetful and "subject" not in document:
            del self.manifests[next(name for name in self.manifests if name.startswith("sha256-"))]
        if not self.api or "subject" not in document:
            return {}
        subject = document["subject"]["digest"]
        _, known = self.manifests.get(subject.replace(":", "-"), ("", b'{"manifests": []}'))
        members = {"artifactType": document["artifactType"]}
        if "annotations" in document:
            members["annotations"] = document["annotations"]
        entries = json.loads(known)["manifests"] + [describe(data, OCI_MANIFEST, **members)]
        index = dumps({"schemaVersion": 2, "manifests": entries})
        self.put(subject.replace(":", "-"), OCI_INDEX, index)
        return {"OCI-Subject": subject}

    async def _blob(self, request: web.Request, name: str) -> web.Response:
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": "/v2/app/blobs/uploads/1?x=y"})
        if request.method == "PUT":
            data = await request.read()
            assert request.query["digest"] == digest_of(data)
            assert request.query["x"] == "y"
            self.blobs[digest_of(data)] = data
            return web.Response(status=201)
        if name not in self.blobs:
            return web.Response(status=404)
        if self.storage is not None:
            return web.Response(status=307, headers={"Location": self.storage.link(name)})
        return ranged(request, self.blobs[name])

    async def _referrers(self, request: web.Request, name: str) -> web.Response:
        if not self.api:
            return web.Response(status=404, text="404 page not found\n")
        tag = name.replace(":", "-")
        _, data = self.manifests.get(tag, ("", b'{"manifests": []}'))
        entries = json.loads(data)["manifests"]
        first = int(request.query.get("from", "0"))
        shown = entries[first : first + self.page]
        headers = {"Content-Type": OCI_INDEX}
        if first + self.page < len(entries):
            headers["Link"] = f'<{request.path}?from={first + self.page}>; rel="next"'
        return web.Response(body=dumps({"schemaVersion": 2, "manifests": shown}), headers=headers)


@contextlib.asynccontextmanager
async def running(registry: FakeRegistry) -> AsyncIterator[str]:
    """HOST:PORT of the registry, with its token server and its storage."""
    async with contextlib.AsyncExitStack() as stack:
        if registry.tokens is not None:
            registry.tokens.rounds = registry.rounds
            handler = registry.rounds.wrap(registry.tokens.handle)
            registry.realm = f"http://{await stack.enter_async_context(serve(handler))}/token"
        if registry.storage is not None:
            handler = registry.rounds.wrap(registry.storage.handle)
            registry.storage.host = await stack.enter_async_context(serve(handler))
        yield await stack.enter_async_context(serve(registry.rounds.wrap(registry.handle)))
