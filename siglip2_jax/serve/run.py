"""Running the server: one process, which ends in good order on SIGTERM."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import time
from asyncio import TimerHandle, Transport
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from siglip2_jax.serve.service import Service

HEAD_SECONDS = 15.0
"""Time for the head of a request, from connecting or its first byte."""
_LAST_SECONDS = 0.5  # between the last connection taken and the end of those that send nothing


class Server(uvicorn.Server):
    """Server that on SIGTERM first tells its clients, then takes no more, then answers the rest."""

    def __init__(self, app: FastAPI):
        self._service: Service = app.state.service
        settings = self._service.settings
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.deadline) + 5,
            )
        )
        self._end = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end; the second signal skips what is left of the grace."""
        at_once = self._service.draining or sig == signal.SIGINT
        self._service.draining = True
        self._end = time.monotonic() + (0.0 if at_once else self._service.settings.grace)

    async def on_tick(self, counter: int) -> bool:
        """Looks every tenth of a second whether it is time to end."""
        if time.monotonic() >= self._end:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes the connections that still stand in line, and reads what the last ones send."""
        queues = [sock.dup() for sock in sockets or []]
        for server in self.servers:
            server.close()
        for queue in queues:
            await self._empty(queue)
        await asyncio.sleep(_LAST_SECONDS)
        await super().shutdown(sockets)

    async def _empty(self, queue: socket.socket) -> None:
        """Takes all connections that are made, where a listening socket would reset them."""
        loop, state = asyncio.get_running_loop(), self.lifespan.state
        accepted = []
        with queue, suppress(BlockingIOError):
            queue.setblocking(False)
            while True:
                accepted.append(queue.accept()[0])
        for connection in accepted:
            protocol = _Protocol(self.config, self.server_state, state)
            connection.setblocking(False)
            await loop.connect_accepted_socket(lambda protocol=protocol: protocol, connection)


def listen(host: str, port: int) -> socket.socket:
    """Takes an address, before the model is loaded.

    Args:
      host: name or address.
      port: 0 takes a free one.

    Raises:
      ValueError: it is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"{host} port {port} cannot be listened on ({error.strerror}); choose another --host "
            "or --port"
        ) from error


def run(app: FastAPI, sock: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C, and answers all that was accepted.

    Args:
      app: made by `create_app`.
      sock: where it listens.
    """
    Server(app).run(sockets=[sock])
    if app.state.service.health == "stuck":
        os._exit(1)  # its thread never ends


class _Protocol(H11Protocol):
    """HTTP/1.1, which closes connections that are silent or slow in the head of a request."""

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore
        super().connection_made(transport)
        # Head and body of an answer are sent apart; the second would wait 40 ms for the client's
        # word on the first. asyncio sees to it only for sockets that name their protocol.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._waits_for_head():
            self._stop()
        elif self._timer is None:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._waits_for_head() and not self.transport.is_closing():
            self.transport.close()

    def _waits_for_head(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete
