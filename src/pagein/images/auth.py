"""What a registry wants to see before it answers: challenges, credentials, tokens. No I/O.

RFC 9110 11 (challenges), RFC 7617 (Basic), RFC 6750 and the distribution project's token
specification (docs/spec/auth/token.md and oauth.md) for Bearer.
"""

from __future__ import annotations

import base64
import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from pagein.origins.base import OriginError

MAX_TOKEN_ANSWER = 1 << 20
"""Bytes of a token server's answer."""

_CLIENT = "pagein"
_SHORTEST_LIFE = 60.0
"""Seconds that a token lives at least, and when the server does not say (token.md)."""
_LONGEST_LIFE = 86400.0
_MARGIN = 0.1
"""The part of a token's life before its end in which a new one is asked for."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:[ \t]+|(?=,)|\Z)")
# An unquoted value may not hold `:` and `/`, and does in the wild: realm=https://...
_PARAM = re.compile(rf'[\s,]*({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))')
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|\Z)")
_QUOTED_PAIR = re.compile(r"\\(.)")
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and password, or an identity token (OAuth 2 refresh token), or a ready Bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; scheme and names of parameters in lower case."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A GET of `url`, or a POST of the form `body` if it has one."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """An Authorization header, and the second of the caller's clock from which it is renewed."""

    header: str = field(repr=False)
    renew_at: float = float("inf")


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header, as far as it can be understood."""
    challenges = []
    position = 0
    while match := _SCHEME.match(header, position):
        parameters: dict[str, str] = {}
        position = match.end()
        if blob := _TOKEN68.match(header, position):
            position = blob.end()
        while parameter := _PARAM.match(header, position):
            position = parameter.end()
            parameters.setdefault(parameter[1].lower(), _value(parameter))
        challenges.append(Challenge(match[1].lower(), parameters))
    return challenges


def _value(parameter: re.Match[str]) -> str:
    quoted, plain = parameter[2], parameter[3]
    return plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)


def choose_challenge(header: str) -> Challenge | None:
    """The challenge to answer: Bearer if there is one, else Basic; None if there is neither."""
    challenges = {challenge.scheme: challenge for challenge in reversed(parse_challenges(header))}
    return challenges.get("bearer") or challenges.get("basic")


def basic(credentials: Credentials) -> str:
    """The Authorization header of RFC 7617."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"


def token_request(
    source: str, challenge: Challenge, scope: str, credentials: Credentials | None, *, secure: bool
) -> TokenRequest:
    """The request for a token of `scope` that answers a Bearer challenge.

    `secure`: the challenge came over TLS; then no password goes to a realm without it. OriginError
    of `source` for a realm that is no URL, or may not be asked.
    """
    realm = challenge.parameters.get("realm", "")
    parts = _check_realm(source, realm, secure=secure)
    query = [("service", service)] if (service := challenge.parameters.get("service")) else []
    scopes = _merge_scopes(f"{scope} {challenge.parameters.get('scope', '')}")
    if credentials is not None and credentials.identity_token:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "client_id": _CLIENT,
            "scope": " ".join(scopes),
            **dict(query),
        }
        content = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest(realm, content, urlencode(form).encode("ascii"))
    asked = parse_qsl(parts.query, keep_blank_values=True) + query
    url = urlunsplit(parts._replace(query=urlencode(asked + [("scope", name) for name in scopes])))
    named = credentials is not None and bool(credentials.username)
    headers = {"Authorization": basic(credentials)} if named and credentials is not None else {}
    return TokenRequest(url, headers)


def _merge_scopes(text: str) -> list[str]:
    """Each resource once, with all its actions: a registry asks for those of one request only, and
    the token is for the requests that follow, too."""
    merged: dict[str, dict[str, None]] = {}
    for scope in text.split():
        resource, _, actions = scope.rpartition(":")
        merged.setdefault(resource, {}).update(dict.fromkeys(actions.split(",")))
    return [f"{resource}:{','.join(actions)}" for resource, actions in merged.items()]


def _check_realm(source: str, realm: str, *, secure: bool) -> Any:
    try:
        parts = urlsplit(realm)
        usable = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    except ValueError:
        parts, usable = None, False
    if not usable or parts is None or not realm.isprintable() or not realm.isascii():
        cause = f"the registry sends its clients to {realm[:80]!a} for a token: not a URL"
        raise OriginError.of(source, cause, errno=errno.EPROTO)
    if secure and parts.scheme != "https":
        cause = "the registry sends its clients to a token server without TLS: refused"
        raise OriginError.of(source, cause, errno=errno.EPROTO)
    return parts


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


def parse_token(source: str, body: bytes, now: float) -> Grant:
    """The grant in a token server's answer, which arrived at `now` (seconds of any steady clock).

    The server's own clock (`issued_at`) is left alone: it may differ from ours. OriginError of
    `source` when there is no usable token.
    """
    try:
        answer = msgspec.json.decode(body[:MAX_TOKEN_ANSWER], type=_TokenAnswer)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        cause = "the token server's answer is not the JSON of the token specification"
        raise OriginError.of(source, cause, errno=errno.EPROTO) from None
    life = min(max(answer.expires_in or 0.0, _SHORTEST_LIFE), _LONGEST_LIFE)
    grant = ready_token(source, answer.token or answer.access_token or "")
    return replace(grant, renew_at=now + life * (1 - _MARGIN))


def ready_token(source: str, token: str) -> Grant:
    """The grant of a Bearer token as it is; OriginError of `source` if it cannot be sent."""
    if not _HEADER_SAFE.fullmatch(token):
        cause = "there is no usable token in what the token server or the helper answered"
        raise OriginError.of(source, cause, errno=errno.EPROTO)
    return Grant(f"Bearer {token}")
