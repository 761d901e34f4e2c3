"""Credentials, tokens and links that end under a mount; registries that die, stall, come back."""

import errno
import json
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE, Pagein, read_errno, wait_for
from tests.images.processes import PASSWORD, USER, Keys, docker_registry, htpasswd
from tests.images.servers import basic_header
from tests.pulled.front import Asked, Front, Reply, Storage, TokenRoute, redirect_layers, status
from tests.pulled.misbehaving import (
    MIDDLE,
    ORDER,
    Mounted,
    Pushed,
    content,
    file_in,
    indexed,
    mount,
    piece,
    plain,
    right,
)
from tests.pulled.rig import good, link_to, log_in, refused

pytestmark = pytest.mark.root

MOST_IN_SEQUENCE = 6 + 2
"""Requests until an indexed image is mounted, with tokens."""


# ---- credentials --------------------------------------------------------------------------------


def test_401_in_the_middle(mounted: Mounted) -> None:
    """An error at once, and nobody is asked again and again, until it is let in again."""
    path, number = mounted.next_file()
    mounted.front.revoked.add(basic_header())
    assert read_errno(path, MIDDLE) == errno.EIO
    assert f"who is logged in (docker login {mounted.front.host})" in mounted.log()
    # What the reader waits for, and what was to be fetched with it.
    assert 1 <= len(mounted.front.layers()) == len(mounted.front.asked) <= 2
    mounted.front.revoked.clear()
    assert wait_for(lambda: piece(path)) == right(number)


def test_a_helper_whose_password_changes(
    front: Front, pagein: Pagein, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon has what the command gave it; the next command gives it what holds now."""
    helper = tmp_path / "bin/docker-credential-test"
    helper.parent.mkdir()
    (tmp_path / "docker/config.json").write_text(json.dumps({"credHelpers": {front.host: "test"}}))
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")

    def answer(password: str) -> None:
        said = json.dumps({"ServerURL": front.host, "Username": USER, "Secret": password})
        helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{said}'\n")
        helper.chmod(0o755)

    answer("wrong")
    assert f"docker login {front.host}" in refused(pagein.run("mount", indexed(front), "/mnt"))
    assert not pagein.leftovers()
    answer(PASSWORD)
    mount(pagein, indexed(front))
    front.revoked.add(basic_header())
    assert read_errno(file_in(pagein, 1), MIDDLE) == errno.EIO
    front.revoked.clear()
    good(pagein.run("mount", indexed(front), pagein.dir("other")))
    assert wait_for(lambda: piece(file_in(pagein, 1))) == right(1)
    pagein.umount(pagein.dir("other"))
    pagein.umount()


def test_tokens(
    pushed: Pushed, pagein: Pagein, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few requests in sequence; one that ends under many readers is renewed once."""
    keys = Keys(tmp_path)
    front = Front()
    tokens = TokenRoute(basic_header(), keys.for_scope)
    front.routes["/token"] = tokens
    # The same content, and nothing but tokens.
    shutil.copytree(pushed.directory / "data", tmp_path / "data")
    with front.running(), link_to(front.host) as link:
        host = f"127.0.0.1:{link.port}"
        with docker_registry(tmp_path, keys.auth(f"http://{host}/token")) as front.upstream:
            log_in(tmp_path / "docker", host, monkeypatch)
            mount(pagein, f"docker://{host}/indexed:v1")
            counted = link.ask("counters")
            assert 2 < counted["sequence"] <= MOST_IN_SEQUENCE, counted
            assert tokens.asked == ["repository:indexed:pull"]
            first, *others, last = *ORDER[:9], ORDER[-1]
            assert piece(file_in(pagein, first)) == right(first)
            # As if it had expired: docker-registry itself says what it wants instead.
            front.revoked |= front.authorizations()
            with ThreadPoolExecutor(4) as readers:
                paths = [file_in(pagein, number) for number in others]
                assert list(readers.map(piece, paths)) == [right(n) for n in others]
            assert len(tokens.asked) == 2
            # A token server that refuses is an error that says so.
            front.revoked |= front.authorizations()
            tokens.authorization = "nobody's"
            assert read_errno(file_in(pagein, last), MIDDLE) == errno.EIO
            assert "were refused: docker login again" in pagein.log()
            tokens.authorization = basic_header()
            assert wait_for(lambda: piece(file_in(pagein, last))) == right(last)
            pagein.umount()
    assert pushed.check(pagein)


def test_links_that_expire(mounted: Mounted, pushed: Pushed) -> None:
    """The registry is asked for another one, once; nothing of it is in the log."""
    with Storage(pushed.host, basic_header()).running() as storage:
        mounted.front.lie = redirect_layers(storage)
        for links in (1, 1, 2, 2):
            path, number = mounted.next_file()
            if links > storage.links:
                storage.expire()
            assert (piece(path), storage.links) == (right(number), links)
        # Links that are refused as soon as they are given.
        storage.lie = status(403)
        path, number = mounted.next_file()
        assert read_errno(path, MIDDLE) == errno.EIO
        assert "where the registry has its content" in mounted.log()
        assert "X-Signature=s" not in mounted.log()
        storage.lie = None
        assert wait_for(lambda: piece(path)) == right(number)


# ---- registries that die, or stall --------------------------------------------------------------


def hang(asked: Asked, reply: Reply) -> Reply | None:
    """Say some of a layer's bytes, and then nothing."""
    if not asked.is_layer:
        return None
    return Reply(reply.status, reply.headers, reply.body, stop_after=100, ending="hang")


def test_a_registry_that_dies_during_a_read_and_comes_back(
    pushed: Pushed, pagein: Pagein, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the deadline the reader does not notice."""
    shutil.copytree(pushed.directory / "data", tmp_path / "data")
    asking = threading.Event()

    def lie(asked: Asked, reply: Reply) -> Reply | None:
        if asked.is_layer:
            asking.set()
        return hang(asked, reply)

    with Front().running() as front, ThreadPoolExecutor(1) as reader:
        log_in(tmp_path / "docker", front.host, monkeypatch)
        with docker_registry(tmp_path, htpasswd(tmp_path)) as front.upstream:
            mount(pagein, indexed(front))
            front.lie = lie
            read = reader.submit(file_in(pagein, 3).read_bytes)
            assert asking.wait(DEADLINE)
        # It is dead now, in the middle of an answer, and refuses for a while.
        front.lie = None
        front.drop()
        wait_for(lambda: "502" in pagein.log())
        assert not read.done()
        with docker_registry(tmp_path, htpasswd(tmp_path)) as front.upstream:
            assert read.result(DEADLINE) == content(3)
            pagein.umount()
    assert pushed.check(pagein)


def test_a_registry_that_stalls(mounted: Mounted) -> None:
    path, number = mounted.next_file()
    mounted.front.lie = hang
    assert read_errno(path, MIDDLE) == errno.EIO
    assert "no data for" in mounted.log()
    mounted.front.lie = None
    assert wait_for(lambda: piece(path)) == right(number)


@pytest.mark.long
def test_a_registry_that_stalls_in_the_middle_of_a_command(
    front: Front, pagein: Pagein, pushed: Pushed
) -> None:
    front.lie = hang
    line = refused(pagein.run("mount", "--timeout", "0.1", plain(front), pagein.target))
    assert plain(front) in line
    assert not pagein.leftovers()
    pushed.check(pagein)


# ---- under a container --------------------------------------------------------------------------

READER = "echo ready; read x; cat /data/3 >/dev/null; echo status $?; exit 9"


def test_a_container_whose_registry_dies_while_it_runs(
    front: Front, pagein: Pagein, pushed: Pushed
) -> None:
    words = ["--timeout", "5", indexed(front), "--", "/bin/busybox", "sh", "-c", READER]
    with subprocess.Popen(
        pagein.argv("run", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            front.lie = lambda asked, reply: Reply(502)
            out, err = process.communicate("go\n", timeout=DEADLINE)
        finally:
            process.kill()
    assert (process.returncode, out) == (9, "status 1\n"), err
    assert "Input/output error" in err
    assert not list((pagein.cache / "containers").iterdir())
    wait_for(lambda: not pagein.leftovers())
    pushed.check(pagein)
