"""The registry's protocol without I/O: a request that is wanted, after each answer the next step.

An `Exchange` is one wanted request from its first sending to the answer that counts. On the way
there may be a token to fetch, redirects to follow, a pause to make: each is an `Action`, which
whoever owns the sockets carries out and reports back. Its rules:

* The Authorization header goes to the registry, never to another host, port or scheme, and after
  a redirect has once left the registry not back to it either.
* A refusal (401; 403, which some registries say of an expired token) is answered by one new
  authorization if ours was not new already. What is refused again is an error.
* What may pass (408, 425, 429, 5xx, a lost connection) is tried again a few times, with pauses.
* Redirects are followed for GET and HEAD, a few, and never from TLS to plain HTTP.

Specification: OCI distribution-spec 1.1; statuses and redirects as RFC 9110 has them.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from pagein.images.auth import Challenge, choose_challenge
from pagein.origins.base import OriginError
from pagein.origins.retry import ATTEMPTS, FIRST, retry_after

MAX_REDIRECTS = 5
MAX_REFUSAL = 64 << 10
"""Bytes of the body of a refusal that are looked at."""
MAX_PAUSE = 30.0
"""Seconds that a server may ask to wait (Retry-After) before it is an error instead."""

_MOVED = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted; `what` is how errors call it, `expect` are the statuses that answer it."""

    what: str
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    expect: frozenset[int] = frozenset({200})


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in lower case), and the body as far as it was read."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    """Of a refusal MAX_REFUSAL bytes at most; of what was wanted all, or nothing of a stream."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send `request`, then call `answered` or `lost`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Authorize:
    """Get an Authorization header other than `refused`, then call `authorized`."""

    challenge: Challenge | None
    """What the registry asks for; None when it did not say, and what it said before holds."""
    refused: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait `seconds`, and a random part of `spread` more, then send `request`."""

    seconds: float
    spread: float
    request: Request


@dataclass(frozen=True, slots=True)
class Deliver:
    """This answer is the one: its body is what was wanted."""

    url: str
    """Where it came from."""
    away: bool
    """It came from another server than the registry; nothing is to be authorized there."""


Action = Send | Authorize | Wait | Deliver


class Exchange:
    """One wanted request; `source` names the image in errors, which are OriginErrors."""

    def __init__(
        self,
        source: str,
        wanted: Request,
        authorization: str | None,
        *,
        attempts: int = ATTEMPTS,
        own: Mapping[str, str] | None = None,
    ) -> None:
        """`own`: headers for the registry alone, as the authorization is."""
        self._source = source
        self._wanted = wanted
        self._authorization = authorization
        self._own = own or {}
        self._renewed = False
        self._attempts_left = attempts - 1
        self._pause = FIRST
        self._restart()

    def start(self) -> Send:
        """The first thing to do."""
        return Send(self._request())

    def answered(self, answer: Answer) -> Action:
        """What to do after `answer`; OriginError if that is nothing any more."""
        if answer.status in self._wanted.expect:
            return Deliver(self._url, self._away)
        if answer.status in _MOVED:
            return self._moved(answer)
        if answer.status in _DENIED and not self._away and self._may_renew(answer):
            return Authorize(
                choose_challenge(answer.headers.get("www-authenticate", "")), self._authorization
            )
        if answer.status in _PASSING:
            return self._again(self._refusal(answer))
        raise self._refusal(answer)

    def authorized(self, header: str, *, fresh: bool) -> Send:
        """The request with the Authorization `header`; `fresh`: it was made just for us."""
        if header == self._authorization:
            self._fail(errno.EACCES, self._denied("the credentials were refused"))
        self._authorization = header
        self._renewed = fresh
        self._restart()
        return Send(self._request())

    def lost(self, error: OriginError) -> Wait:
        """What to do when no answer came because of `error`, which is raised if it is final."""
        return self._again(error)

    def _restart(self) -> None:
        """Begin again at the registry itself."""
        self._url = self._wanted.url
        self._redirects = 0
        self._away = False

    def _request(self) -> Request:
        headers = dict(self._wanted.headers)
        if not self._away:
            headers.update(self._own)
        if self._authorization is not None and not self._away:
            headers["Authorization"] = self._authorization
        return replace(self._wanted, url=self._url, headers=headers)

    def _may_renew(self, answer: Answer) -> bool:
        return not self._renewed and (answer.status == 401 or self._authorization is not None)

    def _moved(self, answer: Answer) -> Send:
        if self._wanted.method not in ("GET", "HEAD"):
            self._fail(errno.EPROTO, f"{answer.status}: redirects a {self._wanted.method}")
        self._redirects += 1
        if self._redirects > MAX_REDIRECTS:
            self._fail(errno.ELOOP, f"redirected more than {MAX_REDIRECTS} times")
        url = resolve_url(self._source, self._url, answer.headers.get("location", ""))
        self._away = self._away or origin_of(url) != origin_of(self._wanted.url)
        self._url = url
        return Send(self._request())

    def _again(self, error: OriginError) -> Wait:
        asked = error.after or 0.0
        if not error.retry or self._attempts_left <= 0 or asked > MAX_PAUSE:
            raise error
        self._attempts_left -= 1
        spread, self._pause = self._pause, self._pause * 2
        self._restart()
        return Wait(asked, spread, self._request())

    def _refusal(self, answer: Answer) -> OriginError:
        status = answer.status
        if self._away:
            # A storage server's own text may hold the signed link that was asked.
            host = urlsplit(self._url).hostname
            told, where = "", f" by {host}, where the registry has its content"
        else:
            told, where = registry_errors(answer.body), ""
        cause = f"{status}{where}{f' ({told})' if told else ''}"
        if status in _DENIED:
            number, cause = errno.EACCES, self._denied(cause)
        elif status in (404, 410):
            number, cause = errno.ENOENT, f"{cause}: the registry does not have it"
        elif status in _PASSING:
            number, cause = errno.EIO, f"{cause}: the server cannot answer now, try again later"
        else:
            number = errno.EIO
        passing = status in _PASSING
        after = retry_after(answer.headers) if passing else None
        if after is not None:
            cause += f", it asks to come back in {after:.0f} s"
        return OriginError.of(
            self._source,
            f"{self._wanted.what}: {cause}",
            errno=number,
            retry=passing,
            after=after,
        )

    def _denied(self, cause: str) -> str:
        if self._away:
            return cause
        host = urlsplit(self._wanted.url).netloc
        return f"{cause}: check the name, and who is logged in (docker login {host})"

    def _fail(self, number: int, cause: str) -> NoReturn:
        raise OriginError.of(self._source, f"{self._wanted.what}: {cause}", errno=number)


# ---- what answers say ---------------------------------------------------------------------------


class _Errors(msgspec.Struct):
    """The body of a refusal (distribution-spec, "Error Codes")."""

    errors: list[Any] | None = None


def registry_errors(body: bytes) -> str:
    """The first error in a registry's JSON, as one short printable line; "" if there is none."""
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ""
    first = errors[0] if errors else None
    if not isinstance(first, dict):
        return ""
    words = [str(first[key]) for key in ("code", "message") if first.get(key)]
    return re.sub(r"[^ -~]+", " ", ": ".join(words))[:200]


def next_link(headers: Mapping[str, str]) -> str | None:
    """The target of the first Link with rel="next" (RFC 8288), as the referrers API pages."""
    for match in re.finditer(r"<([^<>]*)>([^,<>]*)", headers.get("link", "")):
        if re.search(r';\s*rel="?next"?\s*(;|\Z)', match[2]):
            return match[1]
    return None


# ---- URLs ---------------------------------------------------------------------------------------


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454): what has to be equal for credentials to be sent."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return parts.scheme, parts.hostname or "", port


def resolve_url(source: str, base: str, location: str) -> str:
    """The URL that a Location names, seen from `base`; OriginError of `source` if it is refused.

    It is kept as it was written: a signed link does not survive being normalised.
    """
    try:
        url = urljoin(base, location)
        parts = urlsplit(url)
        usable = location and _is_usable(parts)
    except ValueError:
        parts, url, usable = urlsplit(base), "", False
    if not usable or not (url.isascii() and url.isprintable()):
        cause = f"redirected to {location[:40]!a}: not a usable URL"
        raise OriginError.of(source, cause, errno=errno.EPROTO)
    if urlsplit(base).scheme == "https" and parts.scheme != "https":
        cause = f"redirected from TLS to plain HTTP at {parts.hostname}: refused"
        raise OriginError.of(source, cause, errno=errno.EPROTO)
    return url.partition("#")[0]


def _is_usable(parts: SplitResult) -> bool:
    """Whether a URL may be asked at all; ValueError for a port that is none."""
    named = bool(parts.hostname) and parts.port != 0
    return parts.scheme in ("http", "https") and named and "@" not in parts.netloc
