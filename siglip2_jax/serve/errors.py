"""Errors of the server, in the shape of OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """An answer that is an error: one sentence for the client, without anything of the server's.

    Attributes:
      status: HTTP status.
      message: what is wrong and what was expected.
      param: part of the request that it is about.
      code: short name of the error, for programs.
      headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's `type` of the error."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return kinds.get(self.status, default)

    def content(self) -> dict[str, Any]:
        """The error as answers and their items have it."""
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse({"error": self.content()}, self.status, headers=self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, param=param, code=code)


FAULT = "the server could not answer because of a fault of its own; it has been logged"
