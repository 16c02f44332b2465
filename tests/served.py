"""A server of a model on this machine: a process that tests and benchmarks start, ask and stop."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from stores import free_port

from siglip2_jax.demo import shipped_examples

HOST = "127.0.0.1"
SECONDS_TO_START = 300.0
JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A `siglip2 serve` in a process of its own, from `with` on until its end.

    Attributes:
      port: where it listens, on the loopback device.
      log: what it prints.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        log: Path,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ):
        self.port, self.log = free_port(), log
        self._variables = {**os.environ, **(variables or {})}
        command = [sys.executable, "-m", "siglip2_jax", "serve", os.fspath(source)]
        self._command = [*command, "--host", HOST, "--port", str(self.port), *options]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Served:
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._variables
            )
        end = time.monotonic() + SECONDS_TO_START
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def memory(self) -> int:
        """Bytes in memory of the server and its workers that no other process has."""
        server = psutil.Process(self.process.pid)
        return sum(x.memory_full_info().uss for x in (server, *server.children(recursive=True)))

    def get(self, path: str) -> Answer:
        """Asks once, and waits."""
        return self._ask("GET", path, None, {})

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """Asks once, and waits."""
        return self._ask("POST", path, json.dumps(body), {**JSON, **(headers or {})})

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=120)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())

    def _is_ready(self) -> bool:
        try:
            return self.get("/ready").status == 200
        except OSError:
            return False


def make_database(folder: Path, source: str | os.PathLike[str]) -> Path:
    """A database of the shipped images, each with a caption, made by `siglip2 index`."""
    table, database = folder / "images.jsonl", folder / "images.db"
    rows = [
        {"image": str(x.image), "caption": x.captions[0], "length": len(x.captions[0])}
        for x in shipped_examples()[:20]
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "siglip2_jax", "index", database, source, table]
    options = ["--columns", "length:int64", "--workers", "0"]
    subprocess.run([*command, *options], check=True, stdout=sys.stderr)
    return database


class Connection:
    """A connection that is kept alive from request to request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connects to the server."""
        return cls(*await asyncio.open_connection(HOST, port, limit=1 << 26))

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] = JSON
    ) -> Answer:
        """Sends a request, with bytes as they are and anything else as JSON; reads the answer."""
        self.writer.write(request(method, path, body, headers))
        await self.writer.drain()
        return await self.read()

    async def read(self) -> Answer:
        """Reads an answer.

        Raises:
          asyncio.IncompleteReadError: the server has closed the connection.
        """
        top = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in top[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(top[0].split()[1]), headers, body)


def request(method: str, path: str, body: Any, headers: dict[str, str] = JSON) -> bytes:
    """A request as it goes over the wire."""
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    lines = {"Host": HOST, "Content-Length": str(len(content)), **headers}
    top = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{top}\r\n".encode() + content


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    """A connection to the server, which is closed at the end."""
    connection = await Connection.open(port)
    try:
        yield connection
    finally:
        connection.writer.close()


async def ask(port: int, method: str, path: str, body: Any = None) -> Answer:
    """Asks once, over a connection of its own."""
    async with connect(port) as connection:
        return await connection.ask(method, path, body)
