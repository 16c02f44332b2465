"""Links: allowed hosts, https and public addresses only, after resolution and redirects."""

from __future__ import annotations

import dataclasses
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from serve.running import SMALL, encoded, running

from siglip2_jax.serve.app import create_app
from siglip2_jax.serve.errors import ApiError
from siglip2_jax.serve.fetch import Fetcher, is_public
from siglip2_jax.serve.settings import Settings

pytestmark = pytest.mark.serve

PUBLIC = "93.184.215.14"
HOSTS = ("images.test", "other.test")


@dataclasses.dataclass
class Web:
    """An HTTPS server on this machine that stands for the open internet.

    Attributes:
      addresses: what each host resolves to; later lists in later look-ups.
      connected: addresses that connections were asked for.
    """

    port: int
    context: ssl.SSLContext
    addresses: dict[str, list[list[str]]]
    connected: list[str]
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None

    def resolve(self, host: str) -> list[str]:
        lookups = self.addresses[host]
        return lookups.pop(0) if len(lookups) > 1 else lookups[0]

    def connect(self, address: str, seconds: float) -> socket.socket:
        self.connected.append(address)
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def fetcher(self, hosts=HOSTS, max_bytes=1000, seconds=5.0) -> Fetcher:
        return Fetcher(
            hosts,
            max_bytes,
            seconds,
            resolve=self.resolve,
            connect=self.connect,
            context=self.context,
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of the hosts that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=test", "-out", files[0], "-keyout", files[1]]
    command += ["-addext", "subjectAltName=" + ",".join(f"DNS:{host}" for host in HOSTS)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the command openssl")
    return files


@pytest.fixture
def web(certificate):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(*certificate)
    server.socket = own.wrap_socket(server.socket, server_side=True)
    context = ssl.create_default_context(cafile=str(certificate[0]))
    addresses = {host: [[PUBLIC]] for host in HOSTS}
    server.web = Web(server.server_port, context, addresses, [])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.web
    server.shutdown()
    thread.join()
    server.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        web = self.server.web
        if web.answer:
            return web.answer(self)
        self.give(b"image of " + self.path.encode())

    def give(self, content: bytes, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(ApiError) as caught:
        fetcher.fetch(url, "images[0]")
    assert caught.value.status == 400 and caught.value.param == "images[0]"
    return caught.value.message


def test_an_allowed_image(web):
    assert web.fetcher().fetch("https://images.test/a/b.png?x=1", "p") == b"image of /a/b.png?x=1"
    assert web.fetcher().fetch("https://IMAGES.test:443", "p") == b"image of /"
    assert web.connected == [PUBLIC, PUBLIC]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://images.test/a", "expected https"),
        ("ftp://images.test/a", "expected https"),
        ("file:///etc/passwd", "expected https"),
        ("https://user:word@images.test/a", "no user"),
        ("https://images.test:8443/a", "no port"),
        ("https://images.test:port/a", "no URL"),
        ("https://[::1/a", "no URL"),
        ("https://evil.test/a", "not one of those"),
        ("https://images.test.evil.test/a", "not one of those"),
        ("https://evil.test#images.test", "not one of those"),
        ("https://127.0.0.1/a", "not one of those"),
        ("https://images.test/a b", "escaped"),
        ("https://images.test/ä", "escaped"),
    ],
)
def test_links_that_are_not_asked_for(web, url, words):
    assert words in refusal(web.fetcher(), url)
    assert web.connected == []


def test_without_hosts_nothing_is_fetched(web):
    assert "fetches no links" in refusal(web.fetcher(hosts=()), "https://images.test/a")
    assert web.connected == []


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 "
    "255.255.255.255 198.18.0.1 240.0.0.1 :: ::1 fe80::1 fc00::1 ff02::1 ::ffff:10.0.0.1 "
    "::ffff:8.8.8.8 64:ff9b::a00:1 2002:a00:1:: 2001:db8::1 2001:0:a00:1::".split(),
)
def test_addresses_that_are_not_public(web, address):
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address]):
        web.addresses["images.test"] = [addresses]
        assert "not on the open internet" in refusal(web.fetcher(), "https://images.test/a")
    assert web.connected == []


def test_public_addresses():
    for address in (PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"):
        assert is_public(address)


def test_the_checked_address_is_the_one_that_is_asked(web):
    """A name that changes between two look-ups is looked up but once."""
    web.addresses["images.test"] = [[PUBLIC], ["127.0.0.1"]]
    assert web.fetcher().fetch("https://images.test/a", "p") == b"image of /a"
    assert web.connected == [PUBLIC]


def redirects(places):
    def answer(handler):
        handler.give(b"", 302, Location=places[handler.path])

    return answer


def test_redirects_are_checked_again(web):
    def answer(handler):
        if handler.path == "/start":
            handler.give(b"", 301, Location="https://other.test/end")
        elif handler.path == "/near":
            handler.give(b"", 307, Location="end")
        else:
            handler.give(b"the image")

    web.answer = answer
    for path in ("start", "near"):
        assert web.fetcher().fetch(f"https://images.test/{path}", "p") == b"the image"
    web.addresses["other.test"] = [["10.0.0.1"]]
    connections = len(web.connected)
    assert "open internet" in refusal(web.fetcher(), "https://images.test/start")
    assert web.connected[connections:] == [PUBLIC]
    for place in ("http://images.test/x", "https://evil.test/x", "file:///etc/passwd"):
        web.answer = redirects({"/start": place})
        assert "not followed" in refusal(web.fetcher(), "https://images.test/start")
    web.answer = redirects({"/start": "/start"})
    assert "redirects more than 3" in refusal(web.fetcher(), "https://images.test/start")


def test_limits_of_size_and_time(web):
    web.answer = lambda handler: handler.give(bytes(1000))
    assert len(web.fetcher().fetch("https://images.test/a", "p")) == 1000
    web.answer = lambda handler: handler.give(bytes(1001))
    assert "more than 1000 bytes" in refusal(web.fetcher(), "https://images.test/a")

    def drip(handler):
        handler.give(b"")
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)

    def guarded(handler):
        try:
            drip(handler)
        except OSError:
            pass

    web.answer = guarded
    start = time.monotonic()
    assert "takes too long" in refusal(web.fetcher(seconds=0.5), "https://images.test/a")
    assert time.monotonic() - start < 3


def test_other_answers(web):
    web.answer = lambda handler: handler.give(b"", 404)
    assert "status 404" in refusal(web.fetcher(), "https://images.test/a")
    strange = dataclasses.replace(web, context=ssl.create_default_context())  # trusts no such one
    assert "cannot be fetched" in refusal(strange.fetcher(), "https://images.test/a")


def test_links_of_requests(web, model):
    good, big = encoded(9, 9), bytes(2000)

    def answer(handler):
        content = {"/good": good, "/big": big, "/bad": b"no image"}.get(handler.path)
        handler.give(content or b"", 200 if content else 404)

    web.answer = answer
    app = create_app(model, Settings(**SMALL | {"budgets": (16,), "url_hosts": HOSTS}))
    assert app.state.service._fetcher.hosts == set(HOSTS)
    app.state.service._fetcher = web.fetcher()
    names = ["good", "big", "bad", "none", "good"]
    images = [{"image": f"https://images.test/{x}"} for x in names]
    with running(app) as client:
        body = {"images": images, "labels": ["dog"]}
        results = client.post("/v1/classify", json=body).json()["results"]
        codes = [x.get("error", {}).get("code") for x in results]
        assert codes == [None, "image_too_large", "invalid_image", "link_not_followed", None]
        (row,) = client.post("/v1/embeddings", json={"input": images[0]}).json()["data"]
        expected = model.embed_images(good, max_num_patches=16)[0]
        np.testing.assert_allclose(row["embedding"], expected, atol=1e-6)
