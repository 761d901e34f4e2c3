"""The protocol's core: what is next after each answer. No sockets, all branches."""

import errno
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pagein.images.auth import Challenge
from pagein.images.protocol import (
    MAX_PAUSE,
    MAX_REDIRECTS,
    Action,
    Answer,
    Authorize,
    Deliver,
    Exchange,
    Request,
    Send,
    Wait,
    next_link,
    origin_of,
    registry_errors,
    resolve_url,
)
from pagein.origins.base import OriginError
from pagein.origins.retry import ATTEMPTS, retry_after

URL = "https://r.example/v2/app/blobs/sha256:00"
SOURCE = "docker://r.example/app:v1"
WANTED = Request("blob x", "GET", URL, {"Range": "bytes=0-1"}, expect=frozenset({200, 206}))
BEARER = {"www-authenticate": 'Bearer realm="https://auth.example/token"'}


def exchange(authorization: str | None = None, *, attempts: int = ATTEMPTS) -> Exchange:
    return Exchange(SOURCE, WANTED, authorization, attempts=attempts)


def answer(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
    return Answer(status, headers or {}, body)


def moved(location: str, status: int = 307) -> Answer:
    return answer(status, {"location": location})


def sent(action: Action) -> Request:
    assert isinstance(action, Send | Wait)
    return action.request


def refusal(it: Exchange, last: Answer) -> OriginError:
    with pytest.raises(OriginError) as caught:
        it.answered(last)
    assert str(caught.value).startswith(f"{SOURCE}: ")
    assert str(caught.value).isprintable()
    return caught.value


# ---- the plain cases ----------------------------------------------------------------------------


def test_what_is_expected_is_delivered() -> None:
    it = exchange()
    request = sent(it.start())
    assert (request.url, request.headers) == (URL, WANTED.headers)
    assert it.answered(answer(206)) == Deliver(URL, away=False)


@pytest.mark.parametrize(
    ("status", "number", "retry"),
    [
        (204, errno.EIO, False),
        (304, errno.EIO, False),
        (400, errno.EIO, False),
        (403, errno.EACCES, False),
        (404, errno.ENOENT, False),
        (410, errno.ENOENT, False),
        (418, errno.EIO, False),
        (501, errno.EIO, False),
    ],
)
def test_what_is_not_is_an_error(status: int, number: int, retry: bool) -> None:
    error = refusal(exchange(), answer(status, body=b'{"errors":[{"code":"C","message":"m"}]}'))
    assert (error.errno, error.retry) == (number, retry)
    assert f"blob x: {status} (C: m)" in str(error)


# ---- authorization ------------------------------------------------------------------------------


def test_a_challenge_is_answered_once() -> None:
    it = exchange()
    action = it.answered(answer(401, BEARER))
    challenge = Challenge("bearer", {"realm": "https://auth.example/token"})
    assert action == Authorize(challenge, None)
    request = sent(it.authorized("Bearer new", fresh=True))
    assert request.headers == {**WANTED.headers, "Authorization": "Bearer new"}
    error = refusal(it, answer(401, BEARER))
    assert (error.errno, error.retry) == (errno.EACCES, False)
    assert "docker login r.example" in str(error)


@pytest.mark.parametrize("status", [401, 403])
def test_a_kept_token_that_is_refused_is_replaced(status: int) -> None:
    it = exchange("Bearer old")
    assert it.answered(answer(status)) == Authorize(None, "Bearer old")
    # Somebody else had renewed it, and that one has ended as well.
    it.authorized("Bearer second", fresh=False)
    assert it.answered(answer(status)) == Authorize(None, "Bearer second")
    it.authorized("Bearer third", fresh=True)
    assert refusal(it, answer(status)).errno == errno.EACCES


def test_403_without_an_authorization_is_final() -> None:
    assert refusal(exchange(), answer(403, BEARER)).errno == errno.EACCES


def test_the_same_authorization_is_not_sent_again() -> None:
    it = exchange("Basic x")
    it.answered(answer(401))
    with pytest.raises(OriginError, match="the credentials were refused"):
        it.authorized("Basic x", fresh=True)


# ---- redirects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_another_server_never_sees_the_authorization(status: int) -> None:
    it = exchange("Bearer t")
    link = "https://s3.example/x?sig=%2F%3d&a=b"
    request = sent(it.answered(moved(link, status)))
    assert (request.url, request.headers) == (link, WANTED.headers)
    # Not even on the way back: who redirects there chose what would be asked with our name.
    request = sent(it.answered(moved(URL)))
    assert (request.url, request.headers) == (URL, WANTED.headers)
    assert it.answered(answer(200)) == Deliver(URL, away=True)


def test_headers_of_the_registry_are_as_little_for_another_server() -> None:
    it = Exchange(SOURCE, WANTED, None, own={"X-Key": "secret"})
    assert sent(it.start()).headers == {**WANTED.headers, "X-Key": "secret"}
    assert sent(it.answered(moved("https://s3.example/x"))).headers == WANTED.headers
    assert sent(it.answered(moved(URL))).headers == WANTED.headers


@pytest.mark.parametrize(
    "elsewhere", ["https://r.example:444/x", "https://r.example.evil/x", "//other/x"]
)
def test_what_is_another_server(elsewhere: str) -> None:
    assert "Authorization" not in sent(exchange("Bearer t").answered(moved(elsewhere))).headers


@pytest.mark.parametrize("here", ["/other/path", "https://R.example:443/x", "?x"])
def test_what_is_the_same_server(here: str) -> None:
    it = exchange("Bearer t")
    assert sent(it.answered(moved(here))).headers["Authorization"] == "Bearer t"
    assert isinstance(it.answered(answer(401)), Authorize)


def test_a_loop_of_redirects_ends() -> None:
    it = exchange()
    for _ in range(MAX_REDIRECTS):
        it.answered(moved(URL))
    assert refusal(it, moved(URL)).errno == errno.ELOOP


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://s3.example/",
        "ftp://s3.example/",
        "https://:80/",
        "https://u:p@s3.example/",
        "https://s3.example:0/",
        "https://s3.example:99999/",
        "https://[::1/",
        "https://s3.example/\x7f",
        "https://s3.example/\u00e9",
    ],
)
def test_a_location_that_is_not_followed(location: str) -> None:
    error = refusal(exchange(), moved(location))
    assert (error.errno, error.retry) == (errno.EPROTO, False)


def test_only_reading_is_redirected() -> None:
    it = Exchange(SOURCE, Request("upload", "PUT", URL, body=b"x"), None)
    assert "redirects a PUT" in str(refusal(it, moved("/x")))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_storage_refuses_is_not_authorized_and_not_quoted(status: int) -> None:
    it = exchange("Bearer t")
    it.answered(moved("https://s3.example/x?secret=1"))
    error = refusal(it, answer(status, BEARER, b'{"errors":[{"code":"?secret=1"}]}'))
    assert f"{status} by s3.example" in str(error)
    assert "secret" not in str(error)
    assert "login" not in str(error)


# ---- what may pass ------------------------------------------------------------------------------


def test_what_may_pass_is_tried_again_with_pauses_from_the_start() -> None:
    it = exchange("Bearer t")
    pauses = []
    for _ in range(ATTEMPTS - 1):
        it.answered(moved("https://s3.example/x"))
        action = it.answered(answer(503))
        assert isinstance(action, Wait)
        assert action.request.url == URL
        assert action.request.headers["Authorization"] == "Bearer t"
        assert action.seconds == 0
        pauses.append(action.spread)
    assert pauses == sorted(set(pauses))
    error = refusal(it, answer(503))
    assert (error.errno, error.retry) == (errno.EIO, True)


def test_a_lost_connection_is_tried_again() -> None:
    lost = OriginError.of("x", "lost", retry=True)
    it = exchange(attempts=2)
    assert sent(it.lost(lost)).url == URL
    with pytest.raises(OriginError) as caught:
        it.lost(lost)
    assert caught.value is lost
    final = OriginError.of("x", "certificate")
    with pytest.raises(OriginError) as caught:
        exchange().lost(final)
    assert caught.value is final


def test_the_server_says_how_long_to_wait() -> None:
    action = exchange().answered(answer(429, {"retry-after": "7"}))
    assert isinstance(action, Wait)
    assert action.seconds == 7
    error = refusal(exchange(), answer(429, {"retry-after": str(int(MAX_PAUSE) + 1)}))
    assert error.retry
    assert error.after == MAX_PAUSE + 1
    assert "come back in 31 s" in str(error)


DATES = "Fri, 20 Nov 2026 10:00:00 GMT", "Fri, 20 Nov 2026 10:01:30 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1" * 400}, None),
        ({"retry-after": DATES[1], "date": DATES[0]}, 90.0),
        ({"retry-after": DATES[0], "date": DATES[1]}, 0.0),
        ({"retry-after": DATES[0]}, None),
        ({"retry-after": DATES[0], "date": "Fri, 20 Nov 2026 10:00:00 -0000"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


# ---- what answers say ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no\\n\\u0000way"}]}', "DENIED: no way"),
        (b'{"errors":[{"message":5}]}', "5"),
        (b'{"errors":[{}]}', ""),
        (b'{"errors":["x"]}', ""),
        (b'{"errors":[]}', ""),
        (b'{"errors":null}', ""),
        (b"<html>", ""),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
        (b'{"errors":' + b"[" * 5000 + b"]" * 5000 + b"}", ""),
    ],
)
def test_registry_errors(body: bytes, text: str) -> None:
    assert registry_errors(body) == text


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("", None),
        ('</v2/x?n=1>; rel="next"', "/v2/x?n=1"),
        ("</a>; rel=prev, </b>; rel=next", "/b"),
        ("</a>; rel=nextish", None),
    ],
)
def test_next_link(link: str, target: str | None) -> None:
    assert next_link({"link": link} if link else {}) == target


def test_origins_of_urls() -> None:
    assert origin_of("https://H/x") == origin_of("https://h:443/y") == ("https", "h", 443)
    assert origin_of("http://h") == ("http", "h", 80)
    assert resolve_url("s", "http://h/a/b", "c?d#e") == "http://h/a/c?d"


# ---- any sequence -------------------------------------------------------------------------------

locations = st.sampled_from(
    ["", "/x", URL, "https://s3.example/x", "http://s3.example", "https://r.example:1/", "//\x00"]
) | st.text(max_size=30)
answers = st.builds(
    Answer,
    st.sampled_from([200, 206, 204, 301, 307, 400, 401, 403, 404, 429, 500, 503, 999]),
    st.fixed_dictionaries(
        {},
        optional={
            "location": locations,
            "www-authenticate": st.sampled_from(["", "Basic", BEARER["www-authenticate"], "=,"])
            | st.text(max_size=30),
            "retry-after": st.text(max_size=10) | st.just("3"),
            "date": st.text(max_size=30),
        },
    ),
    st.binary(max_size=40) | st.just(b'{"errors":[{"code":"X"}]}'),
)


@given(st.lists(answers, min_size=1, max_size=30), st.booleans(), st.none() | st.just("Bearer 0"))
@example([Answer(307, {"location": "https://s3.example/"}), Answer(200, {})], True, "Bearer 0")
def test_any_sequence_ends_and_gives_the_authorization_to_nobody_else(
    sequence: list[Answer], fresh: bool, authorization: str | None
) -> None:
    it = exchange(authorization)
    action: Action = it.start()
    authorized = sends = 0
    try:
        for number, one in enumerate(sequence * 10):
            if isinstance(action, Authorize):
                assert action.refused is None or action.refused.startswith("Bearer")
                authorized += 1
                action = it.authorized(f"Bearer {number + 1}", fresh=fresh or authorized > 3)
            if isinstance(action, Deliver):
                assert one is not None
                return
            sends += 1
            request = sent(action)
            if origin_of(request.url) != origin_of(URL):
                assert "Authorization" not in request.headers
            action = it.answered(one)
        assert isinstance(action, Deliver | Authorize) or sends < 40, "it has no end"
    except OriginError as error:
        assert str(error).startswith(SOURCE)
