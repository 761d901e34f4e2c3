"""Credentials as docker keeps them: the file, and the programs that it names."""

import asyncio
import base64
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.images.auth import Credentials
from pagein.images.dockerconfig import DockerConfig
from pagein.images.dockerplace import default_path
from pagein.origins.base import OriginError

ANN = Credentials("ann", "se:cret")
AUTH = base64.b64encode(b"ann:se:cret").decode()


def look_up(path: Path, host: str, **options: float) -> Credentials | None:
    return asyncio.run(DockerConfig(str(path), **options).look_up(host))


def refused(path: Path, host: str, **options: float) -> OriginError:
    with pytest.raises(OriginError) as caught:
        look_up(path, host, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    return caught.value


def write(directory: Path, document: Any) -> Path:
    path = directory / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker-credential-test: what is written to this path is its shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "docker-credential-test"
    path.touch(mode=0o755)
    return path


# ---- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auths", "host", "found"),
    [
        ({"h:5000": {"auth": AUTH}}, "h:5000", ANN),
        ({"https://h": {"auth": AUTH}}, "h", ANN),
        ({"https://h/v1/": {"auth": AUTH}}, "h", ANN),
        ({"h/v2": {"auth": AUTH}}, "h", ANN),
        ({"h": {"auth": AUTH}}, "h:5000", None),
        ({"h.x": {"auth": AUTH}}, "h", None),
        ({"https://index.docker.io/v1/": {"auth": AUTH}}, "docker.io", ANN),
        ({"docker.io": {"auth": AUTH}}, "docker.io", ANN),
        ({"registry-1.docker.io": {"auth": AUTH}}, "docker.io", ANN),
        ({"h": {"username": "ann", "password": "se:cret"}}, "h", ANN),
        ({"h": {"auth": base64.b64encode(b"ann:se:cret\0\0").decode()}}, "h", ANN),
        ({"h": {"identitytoken": "t"}}, "h", Credentials(identity_token="t")),
        ({"h": {"registrytoken": "t"}}, "h", Credentials(registry_token="t")),
        ({"h": {"auth": ""}}, "h", None),
        ({"h": {}}, "h", None),
        ({"h": None}, "h", None),
        (None, "h", None),
    ],
)
def test_entries(tmp_path: Path, auths: Any, host: str, found: Credentials | None) -> None:
    assert look_up(write(tmp_path, {"auths": auths, "other": 1}), host) == found


def test_no_file_is_nobody_and_a_new_login_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert default_path() == str(tmp_path / "config.json")
    keychain = DockerConfig()
    assert asyncio.run(keychain.look_up("h")) is None
    write(tmp_path, {"auths": {"h": {"auth": AUTH}}})
    assert asyncio.run(keychain.look_up("h")) == ANN
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", "/some")
    assert default_path() == "/some/.docker/config.json"


@pytest.mark.parametrize(
    "document",
    [
        "", "{", "[]", "\\ud800", "[" * 100_000, {"auths": []}, {"auths": {"h": "x"}},
        {"auths": {"h": {"auth": "?"}}}, {"auths": {"h": {"auth": "/w=="}}},
        {"credHelpers": {"h": 1}}, {"credsStore": "../x"}, {"credsStore": "a b"},
    ],
)  # fmt: skip
def test_a_file_that_is_not_dockers(tmp_path: Path, document: Any) -> None:
    assert refused(write(tmp_path, document), "h").errno == errno.EINVAL


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert refused(tmp_path / "config.json", "h").errno == errno.EISDIR


@given(
    st.dictionaries(
        st.sampled_from(["auths", "credHelpers"]),
        st.dictionaries(st.sampled_from(["h", "https://h"]), st.none() | st.text(max_size=4))
        | st.just({"h": {"auth": "x"}}),
    )
)
def test_any_file_is_an_answer_or_an_error_without_its_content(
    tmp_path_factory: pytest.TempPathFactory, document: Any
) -> None:
    path = write(tmp_path_factory.getbasetemp(), document)
    try:
        look_up(path, "h")
    except OriginError as error:
        assert str(error).isprintable()


# ---- helpers ------------------------------------------------------------------------------------

PRINT = """#!/bin/sh
read -r server
echo "$1 $server" >>"$0.asked"
"""


@pytest.mark.parametrize(
    ("config", "host", "server"),
    [
        ({"credsStore": "test"}, "h:5000", "h:5000"),
        ({"credHelpers": {"h:5000": "test"}, "credsStore": "none"}, "h:5000", "h:5000"),
        ({"credsStore": "test"}, "docker.io", "https://index.docker.io/v1/"),
    ],
)
def test_a_helper_is_asked(
    tmp_path: Path, helper: Path, config: dict[str, Any], host: str, server: str
) -> None:
    answer = json.dumps({"ServerURL": "x", "Username": "ann", "Secret": "se:cret"})
    helper.write_text(f"{PRINT}echo '{answer}'\n")
    assert look_up(write(tmp_path, config), host) == ANN
    assert Path(f"{helper}.asked").read_text() == f"get {server}\n"


def test_what_a_helper_answers(tmp_path: Path, helper: Path) -> None:
    path = write(tmp_path, {"credsStore": "test", "auths": {"h": {"auth": AUTH}, "g": {}}})
    helper.write_text('#!/bin/sh\necho \'{"Username":"<token>","Secret":"t"}\'\n')
    assert look_up(path, "h") == Credentials(identity_token="t")
    helper.write_text("#!/bin/sh\necho credentials not found in native keychain\nexit 1\n")
    assert look_up(path, "g") is None
    assert look_up(path, "h") == ANN  # from the file
    helper.write_text("#!/bin/sh\necho secret thing\nexit 3\n")
    error = refused(path, "h")
    assert "docker-credential-test failed with exit code 3" in str(error)
    assert "secret" not in str(error)
    helper.write_text("#!/bin/sh\necho nonsense\n")
    assert "did not answer as such helpers do" in str(refused(path, "h"))
    helper.unlink()
    assert "docker-credential-test cannot be run: no such file" in str(refused(path, "h"))


def test_a_helper_that_hangs_is_ended_with_what_it_started(tmp_path: Path, helper: Path) -> None:
    helper.write_text('#!/bin/sh\nsleep 1000 &\necho $! >"$0.child"\nwait\n')
    path = write(tmp_path, {"credsStore": "test"})
    error = refused(path, "h", helper_timeout=3.0)
    assert "did not answer within 3 s" in str(error)
    assert error.retry
    # The suite fails if the child is left.
