"""Challenges, credentials and tokens: as values, without a registry."""

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.images.rig import ANN, Keys, failure

from pagein.images.auth import (
    Challenge,
    Credentials,
    TokenRequest,
    basic,
    choose_challenge,
    parse_challenges,
    parse_token,
    token_request,
)
from pagein.images.tokens import Tokens
from pagein.origins.base import OriginError

HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/busybox:pull"'
)
SCOPE = "repository:a/b:pull"


def bearer(**parameters: str) -> Challenge:
    return Challenge("bearer", {"realm": "https://auth.x/token", **parameters})


# ---- challenges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", []),
        ("Basic", [Challenge("basic", {})]),
        ('BASIC Realm="a b"', [Challenge("basic", {"realm": "a b"})]),
        (r'Basic realm="a\"b\\c"', [Challenge("basic", {"realm": 'a"b\\c'})]),
        ("Bearer realm=https://h , x = y", [Challenge("bearer", {"realm": "https://h", "x": "y"})]),
        ('Negotiate, Basic a="x"', [Challenge("negotiate", {}), Challenge("basic", {"a": "x"})]),
        ('Other abc==, Basic a="x"', [Challenge("other", {}), Challenge("basic", {"a": "x"})]),
        ('Bearer a="1",a="2"', [Challenge("bearer", {"a": "1"})]),
        ('Bearer a="1, Basic realm=x', [Challenge("bearer", {})]),
        ("=,=", []),
    ],
)  # fmt: skip
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


def test_bearer_before_basic_and_nothing_else() -> None:
    chosen = choose_challenge(f'Basic realm="x", {HUB}, Digest a=b')
    assert chosen is not None
    assert chosen.scheme == "bearer"
    assert chosen.parameters["scope"] == "repository:library/busybox:pull"
    assert choose_challenge("Digest a=b, Basic") == Challenge("basic", {})
    assert choose_challenge("Digest a=b") is None


names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
values = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
challenges = st.builds(
    Challenge,
    names,
    st.dictionaries(names, values, min_size=1, max_size=4),
)


@given(st.lists(challenges, max_size=4))
def test_what_is_written_as_the_rfc_has_it_is_read_back(wanted: list[Challenge]) -> None:
    written = []
    for challenge in wanted:
        pairs = []
        for name, value in challenge.parameters.items():
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            pairs.append(f'{name}="{quoted}"')
        written.append(f"{challenge.scheme} {', '.join(pairs)}")
    assert parse_challenges(", ".join(written)) == wanted


@given(st.text(max_size=200) | st.text('Bearer realm="=,\\ \t', max_size=200))
def test_any_header_is_read(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme
    choose_challenge(header)


def test_a_long_header_does_not_take_long() -> None:
    # Quadratic would be minutes, which the suite's limit catches.
    for header in ('Bearer a="' + "\\" * 400_000, "Bearer " + "a" * 400_000, "a," * 400_000):
        parse_challenges(header)


# ---- requests for tokens ------------------------------------------------------------------------


def test_a_token_is_asked_for_by_name() -> None:
    challenge = bearer(service="s&x", scope="repository:a/b:push,pull repository:c:pull")
    request = token_request("x", challenge, SCOPE, ANN, secure=True)
    parts = urlsplit(request.url)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == "https://auth.x/token"
    assert parse_qs(parts.query) == {
        "service": ["s&x"],
        # What the next requests want too, and each resource once.
        "scope": ["repository:a/b:pull,push", "repository:c:pull"],
    }
    assert request.headers == {"Authorization": basic(ANN)}
    assert request.body is None
    assert "secret" not in repr(request) + repr(ANN)


def test_a_token_for_anybody_and_a_realm_with_a_query() -> None:
    request = token_request("x", bearer(realm="http://a/t?k=v"), SCOPE, None, secure=False)
    assert parse_qs(urlsplit(request.url).query) == {"k": ["v"], "scope": [SCOPE]}
    assert request.headers == {}


def test_an_identity_token_is_posted() -> None:
    credentials = Credentials(identity_token="refresh me")
    request = token_request("x", bearer(service="s"), SCOPE, credentials, secure=True)
    assert request.url == "https://auth.x/token"
    assert "Authorization" not in request.headers
    assert request.body is not None
    assert parse_qs(request.body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh me"],
        "client_id": ["pagein"],
        "service": ["s"],
        "scope": [SCOPE],
    }


@pytest.mark.parametrize(
    "realm",
    [
        "", "token", "/token", "file:///etc/passwd", "https://", "https://u@h/", "https://[x/",
        "https://h/\n", "https://h/\u00e9", "http://h/no-tls",
    ],
)  # fmt: skip
def test_a_realm_that_gets_no_password(realm: str) -> None:
    with pytest.raises(OriginError) as caught:
        token_request("name", bearer(realm=realm), SCOPE, ANN, secure=True)
    assert caught.value.errno == errno.EPROTO
    assert str(caught.value).startswith("name: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("body", "header", "until"),
    [
        (b'{"token":"abc"}', "Bearer abc", 1054.0),
        (b'{"access_token":"abc","expires_in":600}', "Bearer abc", 1540.0),
        (b'{"token":"","access_token":"abc","expires_in":null}', "Bearer abc", 1054.0),
        (b'{"token":"abc","expires_in":-5,"issued_at":"nonsense"}', "Bearer abc", 1054.0),
        (b'{"token":"abc","expires_in":1e300}', "Bearer abc", 1000 + 86400 * 0.9),
    ],
)
def test_tokens(body: bytes, header: str, until: float) -> None:
    grant = parse_token("x", body, 1000.0)
    assert grant.header == header
    assert grant.renew_at == pytest.approx(until)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"null", b'{"token":5}', b'{"token":"a b"}', b'{"token":"a\\r\\nX: y"}',
        b'{"token":"\xc3\xa9"}', b'{"token":"\xff"}', b"[" * 100_000,
        b'{"token":"a","expires_in":"1"}',
    ],
)  # fmt: skip
def test_what_is_no_token(body: bytes) -> None:
    with pytest.raises(OriginError) as caught:
        parse_token("name", body, 0.0)
    assert caught.value.errno == errno.EPROTO


# ---- one renewal in flight ----------------------------------------------------------------------


class Server:
    """Numbers its tokens, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 0.0
        self.go = asyncio.Event()
        self.error: OriginError | None = None

    async def ask(self, request: TokenRequest) -> bytes:
        self.asked += 1
        number = self.asked
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return b'{"token":"t%d"}' % number

    def tokens(self, keys: Keys | None = None, timeout: float = 60.0) -> Tokens:
        return Tokens(
            "h", keys or Keys(), self.ask,
            secure=True, timeout=timeout, clock=lambda: self.now,
        )  # fmt: skip


def run(test: Callable[[Server], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Server())

    asyncio.run(main())


def test_many_refusals_are_one_renewal() -> None:
    async def test(server: Server) -> None:
        tokens = server.tokens()
        assert tokens.held("s") == (None, True)
        asking = [asyncio.ensure_future(tokens.renew("s", None, bearer())) for _ in range(20)]
        asking.append(asyncio.ensure_future(tokens.renew("other", None, bearer())))
        await asyncio.sleep(0)
        asking[0].cancel()  # one who gives up does not take it from the others
        server.go.set()
        got = await asyncio.gather(*asking[1:])
        assert got == [("Bearer t1", True)] * 19 + [("Bearer t2", True)]
        # Who was refused an older one gets what is there.
        assert await tokens.renew("s", "Bearer t0", None) == ("Bearer t1", False)
        assert await tokens.renew("s", "Bearer t1", None) == ("Bearer t3", True)
        assert server.asked == 3

    run(test)


def test_a_token_ends_before_it_is_refused() -> None:
    async def test(server: Server) -> None:
        server.go.set()
        tokens = server.tokens()
        await tokens.renew("s", None, bearer())
        assert tokens.held("s") == ("Bearer t1", True)
        server.now = 55.0
        assert tokens.held("s") == ("Bearer t1", False)
        assert await tokens.renew("s", "Bearer t0", None) == ("Bearer t2", True)

    run(test)


def test_an_error_is_everybodys_and_the_next_one_tries_again() -> None:
    async def test(server: Server) -> None:
        tokens = server.tokens()
        server.error = OriginError.of("image", "no", retry=True)
        server.go.set()
        calls = [tokens.renew("s", None, bearer()) for _ in range(3)]
        assert await asyncio.gather(*calls, return_exceptions=True) == [server.error] * 3
        assert server.asked == 1
        server.error = None
        assert await tokens.renew("s", None, None) == ("Bearer t2", True)

    run(test)


def test_a_token_server_that_hangs_is_given_up() -> None:
    async def test(server: Server) -> None:
        tokens = server.tokens(timeout=0.01)
        error = await failure(tokens.renew("s", None, bearer()), "h: ")
        assert (error.errno, error.retry) == (errno.ETIMEDOUT, True)

    run(test)


def test_close_ends_a_renewal() -> None:
    async def test(server: Server) -> None:
        tokens = server.tokens()
        asking = asyncio.ensure_future(tokens.renew("s", None, bearer()))
        await asyncio.sleep(0)
        await tokens.close()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with contextlib.suppress(asyncio.CancelledError):
            await tokens.close()

    run(test)


def test_basic_and_ready_tokens_ask_nobody() -> None:
    async def test(server: Server) -> None:
        challenge = Challenge("basic", {})
        assert await server.tokens(Keys(ANN)).renew("s", None, challenge) == (basic(ANN), True)
        for nobody in (None, Credentials(identity_token="x")):
            error = await failure(server.tokens(Keys(nobody)).renew("s", None, challenge))
            assert (error.errno, "docker login h" in str(error)) == (errno.EACCES, True)
        ready = Keys(Credentials(registry_token="abc"))
        assert await server.tokens(ready).renew("s", None, bearer()) == ("Bearer abc", True)
        error = await failure(server.tokens().renew("s", None, None))
        assert "does not say which" in str(error)
        assert server.asked == 0

    run(test)
