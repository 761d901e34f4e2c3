"""containerd's hosts.toml: what it says, and one line for what it cannot say."""

import errno
from pathlib import Path

import pytest
from tests.images.processes import Keys as Certificates

from pagein.images.hosts import CAPABILITIES, Host, hosts_of, parse_hosts
from pagein.origins.base import OriginError

PATH = "/etc/certs.d/r.example/hosts.toml"
PEM = "-----BEGIN CERTIFICATE-----\n"


def parsed(text: str) -> tuple[Host, ...]:
    return parse_hosts(PATH, text, lambda path: f"{PEM}{path}")


def test_hosts_in_their_order_and_the_server_last() -> None:
    found = parsed(
        """
        server = "https://registry-1.docker.io"
        [host."https://b.example"]
          capabilities = ["pull"]
        [host."http://a.example:5000/prefix"]
          capabilities = ["pull", "Resolve"]
        """
    )
    assert [(each.url, each.api, each.capabilities) for each in found] == [
        ("https://b.example", "/v2", ("pull",)),
        ("http://a.example:5000", "/prefix/v2", ("pull", "resolve")),
        ("https://registry-1.docker.io", "/v2", CAPABILITIES),
    ]


def test_docker_hub_is_where_its_api_is() -> None:
    (server,) = parsed('server = "https://docker.io"')
    assert server.url == "https://registry-1.docker.io"


def test_without_a_server_the_registry_itself_comes_last() -> None:
    assert [each.url for each in parsed('[host."m.example"]\n')] == ["https://m.example", ""]


@pytest.mark.parametrize(
    ("url", "override", "api"),
    [
        ("https://h", False, "/v2"),
        ("https://h/", False, "/v2"),
        ("https://h/v2", False, "/v2"),
        ("https://h/v2/", False, "/v2"),
        ("https://h/a/../b/", False, "/b/v2"),
        ("https://h/v2/proxy", True, "/v2/proxy"),
        ("https://h", True, ""),
    ],
)
def test_where_the_api_is(url: str, override: bool, api: str) -> None:
    text = f'[host."{url}"]\noverride_path = {str(override).lower()}\n'
    assert parsed(text)[0].api == api


def test_all_that_a_host_may_say() -> None:
    host, _ = parsed(
        """
        [host."https://m.example"]
          ca = ["ca.crt", "/abs/ca.crt"]
          client = [["c.cert", "c.key"], ["both.pem", ""], "alone.pem"]
          skip_verify = true
          dial_timeout = "1m0.5s"
          proxy = "http://proxy.example:8080"
          [host."https://m.example".header]
            x-one = "1"
            x-two = ["a", "b"]
        """
    )
    at = f"{PEM}/etc/certs.d/r.example/"
    assert host.ca == (f"{at}ca.crt", f"{PEM}/abs/ca.crt")
    assert host.client == (
        (f"{at}c.cert", f"{at}c.key"),
        (f"{at}both.pem", ""),
        (f"{at}alone.pem", ""),
    )
    assert host.skip_verify
    assert host.dial_timeout == 60.5
    assert host.proxy == "http://proxy.example:8080"
    assert host.header == (("x-one", "1"), ("x-two", "a, b"))
    assert "x-one" not in repr(host)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("server = \n", "not TOML: Invalid value (at line 1, column"),
        ("\n[host.x\n", "(at line 2, column"),
        ("server = 5", "server: expected a string"),
        ('server = "ftp://h"', "server: 'ftp://h' is not the URL of a server"),
        ('server = "https://h:0"', "server: 'https://h:0' is not"),
        ('server = "https://u:p@h"', "server: 'https://u:p@h' is not"),
        ("host = 5", 'host: expected tables [host."https://..."]'),
        ("[host]\nx = 5", 'host."x": expected a table'),
        ('[host."https://"]', "host.\"https://\": 'https://' is not the URL of a server"),
        ('capabilities = ["pul"]', "capabilities: 'pul' is none of pull, resolve, push"),
        ("capabilities = 5", "capabilities: expected a string, or an array of strings"),
        ('[host."https://m"]\nskip_verify = 1', 'host."https://m".skip_verify: expected true'),
        ('[host."https://m"]\nskip_verfiy = true', "skip_verfiy: an unknown key"),
        ("ca = [5]", "ca: expected a string"),
        ("client = 5", "client: expected a path"),
        ("client = [5]", "client: expected a path"),
        ('client = [["a", "b", "c"]]', "client: expected a path"),
        ("header = 5", "header: expected a table"),
        ("[header]\nx = 5", "header.x: expected a string"),
        ('[header]\nx = "a\\nb"', "header.x: cannot be sent as a header"),
        ('[header]\n"x y" = "a"', "header.x y: cannot be sent as a header"),
        ('dial_timeout = "soon"', "dial_timeout: expected a time above zero"),
        ('dial_timeout = "0s"', "dial_timeout: expected a time above zero"),
        ("dial_timeout = 5", "dial_timeout: expected a time above zero"),
        ('proxy = "socks5://p"', "proxy: expected the URL of an http or https proxy"),
    ],
)
def test_what_it_cannot_say(text: str, where: str) -> None:
    with pytest.raises(OriginError) as caught:
        parsed(text)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value).startswith(f"{PATH}: ")
    assert where in str(caught.value)
    assert str(caught.value).isprintable()


# ---- directories --------------------------------------------------------------------------------


def put(directory: Path, name: str, text: str) -> Path:
    (directory / name).mkdir()
    (directory / name / "hosts.toml").write_text(text)
    return directory / name


def test_which_directory_counts(tmp_path: Path) -> None:
    def first(registry: str) -> str:
        return next((each.url for each in hosts_of(str(tmp_path), registry)), "nobody")

    assert first("r.example:5000") == "nobody"
    for name in ("_default", "r.example:5000", "r.example_5000_"):
        put(tmp_path, name, f'[host."https://{name.strip("_").replace(":", ".")}"]')
    assert first("r.example:5000") == "https://r.example_5000"
    assert first("r.example") == "https://default"
    assert hosts_of(str(tmp_path / "missing"), "r.example") == ()


def test_certificates_in_docker_s_way(tmp_path: Path) -> None:
    place = tmp_path / "r.example"
    place.mkdir()
    assert hosts_of(str(tmp_path), "r.example") == ()
    for name in ("ca.crt", "c.cert", "c.key"):
        (place / name).write_text(f"{PEM}{name}")
    (host,) = hosts_of(str(tmp_path), "r.example")
    assert (host.url, host.ca) == ("", (f"{PEM}ca.crt",))
    assert host.client == ((f"{PEM}c.cert", f"{PEM}c.key"),)


@pytest.mark.parametrize("content", [None, b"\xff", b"no certificate"])
def test_a_certificate_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    place = put(tmp_path, "r.example", 'ca = "ca.crt"')
    if content is not None:
        (place / "ca.crt").write_bytes(content)
    with pytest.raises(OriginError, match=f"{place}/hosts.toml: ca: {place}/ca.crt"):
        hosts_of(str(tmp_path), "r.example")


def test_a_client_s_key_is_loaded_from_no_disk(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    pair = made.certificate.read_text(), made.key.read_text()
    host = Host(ca=(pair[0],), client=(pair, ("".join(pair), "")))
    context = host.tls()
    assert context is not None
    assert context.check_hostname
    assert Host(skip_verify=True).tls() is not None
    assert Host().tls() is None
