"""Gate before all routes: keys, sizes, deadlines, clients that leave, and figures."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from siglip2_jax.serve.errors import FAULT, ApiError
from siglip2_jax.serve.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_DISCARD_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Gate:
    """ASGI middleware around the app.

    It reads a request whole before the app sees it. While the app works it listens whether the
    client leaves, and cancels the work then, or when the deadline is over.
    """

    def __init__(self, app: App, service: Service):
        self._app, self._service = app, service
        self._held = 0
        self._keys = [_digest(key.encode()) for key in service.settings.api_keys]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, answer = time.perf_counter(), _Answer(send, lambda: self._service.draining)
        body = _Body()
        try:
            if scope["path"].startswith("/v1/"):
                self._check_key(scope)
            await self._in_time(408, self._read(scope, receive, body))
            await self._in_time(504, self._work(scope, receive, answer, bytes(body.content)))
        except ApiError as error:
            if not body.whole:
                await self._discard(receive)
                error.headers["Connection"] = "close"
            if not answer.started:
                await error.response()(scope, receive, answer)
        except _ClientLeft:
            self._service.metrics.left.inc()
        except Exception:
            _log.exception("a request failed")
            if not answer.started:
                await ApiError(500, FAULT).response()(scope, receive, answer)
        finally:
            self._held -= len(body.content)
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - start
            self._service.metrics.requests.labels(route, answer.status).observe(seconds)

    def _check_key(self, scope: MutableMapping[str, Any]) -> None:
        if not self._keys:
            return
        header = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = header.partition(b" ")
        given = _digest(key.strip())
        # All are compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if kind.lower() != b"bearer" or not any(matches):
            raise ApiError(
                401,
                "expected an API key of this server, as the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive, body: _Body) -> None:
        """Reads the request's content."""
        settings = self._service.settings
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > settings.max_request_bytes:
            raise self._too_large()
        while not body.whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            chunk = message.get("body", b"")
            if len(body.content) + len(chunk) > settings.max_request_bytes:
                raise self._too_large()
            if self._held + len(chunk) > settings.max_held_bytes:
                self._service.metrics.refused.labels("memory").inc()
                raise ApiError(
                    429,
                    "the server is busy: its requests together are too large; try again later",
                    code="memory_full",
                    headers={"Retry-After": "1"},
                )
            body.content += chunk
            self._held += len(chunk)
            body.whole = not message.get("more_body", False)

    async def _discard(self, receive: Receive) -> None:
        """Reads on for a while: many clients read no answer before they have sent everything."""
        size, most = 0, 2 * self._service.settings.max_request_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while size <= most and (message := await receive())["type"] == "http.request":
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def _work(
        self, scope: MutableMapping[str, Any], receive: Receive, answer: _Answer, body: bytes
    ) -> None:
        """Runs the app unless the client leaves first."""
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await asyncio.get_running_loop().create_future()  # of whose end we tell

        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._app(scope, replay, answer))
        leaves = asyncio.ensure_future(listen())
        try:
            await asyncio.wait({work, leaves}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not answer.finished:
                raise _ClientLeft
            await work
        finally:
            leaves.cancel()
            work.cancel()
            await asyncio.gather(work, leaves, return_exceptions=True)

    def _too_large(self) -> ApiError:
        most = self._service.settings.max_request_bytes
        return ApiError(
            413,
            f"the request has more than {most} bytes, the limit; send fewer or smaller items",
            code="request_too_large",
        )

    async def _in_time(self, status: int, work: Awaitable[None]) -> None:
        seconds = self._service.settings.deadline
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            self._service.metrics.late.inc()
            who = "the request" if status == 408 else "the answer"
            raise ApiError(
                status,
                f"{who} took longer than {seconds:g} s, the deadline; send less at a time",
                code="deadline_exceeded",
            ) from None


@dataclass
class _Body:
    """Content of a request, as far as it has come."""

    content: bytearray = field(default_factory=bytearray)
    whole: bool = False


class _ClientLeft(Exception):
    """The client has closed the connection, and nobody waits for an answer."""


class _Answer:
    """Sends an answer on, and notes how far it is."""

    def __init__(self, send: Send, closing: Callable[[], bool]):
        self.started = self.finished = False
        self.status = 499  # as servers note a client that left
        self._send, self._closing = send, closing

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            if self._closing():
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self.finished = True
        await self._send(message)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
