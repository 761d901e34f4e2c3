"""Certificates that are read beside the imports."""

import ssl
import subprocess
from pathlib import Path

import pytest
from tests.images.processes import need

from pagein.daemon.certificates import read_beside


def test_all_are_there_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    argv = [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
    argv += ["-keyout", str(key), "-out", str(pem)]
    subprocess.run(argv, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    with read_beside():
        verifies = ssl.create_default_context()
        careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        careless.check_hostname = False
        careless.verify_mode = ssl.CERT_NONE
        careless.set_default_verify_paths()
    assert [cert["serialNumber"] for cert in verifies.get_ca_certs()]
    assert careless.get_ca_certs() == []
    assert len(ssl.create_default_context().get_ca_certs()) == 1
