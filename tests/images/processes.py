"""A real docker-registry, what it wants for authorization, and skopeo."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.ports import quiet_port

USER, PASSWORD = "ann", "secret"
# bcrypt, the only kind that docker-registry takes: crypt(PASSWORD, "$2y$05$abcdefghijklmnopqrstuu")
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
ISSUER, SERVICE = "pagein-test-issuer", "pagein-test-registry"


def need(program: str) -> str:
    """The path of a program that scripts/test installs."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"needs {program}")
    return path


@contextlib.contextmanager
def docker_registry(
    directory: Path,
    auth: dict[str, Any] | None = None,
    tls: "Keys | None" = None,
    port: int | None = None,
) -> Iterator[str]:
    """HOST:PORT of a docker-registry with its content below `directory`; killed at the end."""
    program = need("docker-registry")
    port = port or quiet_port()
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "x"},
    }
    if auth is not None:
        config["auth"] = auth
    if tls is not None:
        config["http"]["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    path = directory / "registry.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(path)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_ready(port, process, directory / "registry.log")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(timeout=100)


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        time.sleep(0.02)


def htpasswd(directory: Path) -> dict[str, Any]:
    """docker-registry's configuration for Basic auth."""
    path = directory / "htpasswd"
    path.write_text(HTPASSWD)
    return {"htpasswd": {"realm": "pagein test", "path": str(path)}}


class Keys:
    """A private key with a self-signed certificate for 127.0.0.1, made by openssl."""

    def __init__(self, directory: Path) -> None:
        self.key, self.certificate = directory / "key.pem", directory / "cert.pem"
        command = [
            *(need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=pagein test", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(self.key), "-out", str(self.certificate)),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=200)

    def token(self, access: list[dict[str, Any]], *, expires: float = 300.0) -> str:
        """A JWT as docker-registry takes it (docs/spec/auth/jwt.md); `expires`: seconds from now.

        docker-registry grants a minute more than a token says.
        """
        pem = self.certificate.read_text().split("-----")[2]
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(pem.split())]}
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": USER,
            "jti": os.urandom(8).hex(),
            "iat": now,
            "nbf": now - 600,
            "exp": now + int(expires),
            "access": access,
        }
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            [need("openssl"), "dgst", "-sha256", "-sign", str(self.key)],
            input=signed,
            check=True,
            capture_output=True,
            timeout=200,
        ).stdout
        return (signed + b"." + _base64url(signature)).decode()

    def for_scope(self, scope: str, *, expires: float = 300.0) -> str:
        """A token of a scope as it is asked for: all that it names."""
        access = []
        for one in scope.split():
            kind, name, actions = one.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        return self.token(access, expires=expires)

    def auth(self, realm: str) -> dict[str, Any]:
        """docker-registry's configuration for our tokens."""
        bundle = str(self.certificate)
        return {
            "token": {
                "realm": realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": bundle,
            }
        }


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def skopeo_copy(source: str, target: str, *options: str) -> None:
    """`skopeo copy`, with our credentials, without TLS."""
    done = subprocess.run(
        [
            *(need("skopeo"), "--insecure-policy", "copy", "--dest-tls-verify=false"),
            *("--dest-creds", f"{USER}:{PASSWORD}", *options, source, target),
        ],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
