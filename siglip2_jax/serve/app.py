"""Web application: routes of the server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from siglip2_jax import __version__
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.search import Index
from siglip2_jax.serve import schemas
from siglip2_jax.serve.errors import ApiError
from siglip2_jax.serve.gate import Gate
from siglip2_jax.serve.page import read_page
from siglip2_jax.serve.routes import routes
from siglip2_jax.serve.service import Service
from siglip2_jax.serve.settings import Settings

_log = logging.getLogger(__name__)


def create_app(
    model: Embedder, settings: Settings | None = None, index: Index | None = None
) -> FastAPI:
    """The application, for any ASGI server that runs one process.

    Args:
      model: what embeds, on one device or several (`Embedder.replicate_over`).
      settings: what is offered, and limits.
      index: a database to search, made by this model at one of the budgets.

    Returns:
      The app; `app.state.service` is what its routes use.
    """
    service = Service(model, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="siglip2_jax",
        description="Embeddings of images and texts, labels with probabilities, ranking, search.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(routes(service, index))
    _add_status(app, service)
    _add_page(app)
    _add_errors(app)
    app.add_middleware(Gate, service=service)
    return app


def _add_status(app: FastAPI, service: Service) -> None:
    red: dict[int | str, dict[str, Any]] = {503: {"model": schemas.Status}}

    @app.get("/health", response_model=schemas.Status, responses=red, tags=["status"])
    async def health() -> JSONResponse:
        """Alive: the device works and no batch takes too long."""
        status = service.health
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/ready", response_model=schemas.Status, responses=red, tags=["status"])
    async def ready() -> JSONResponse:
        """Ready: all programs are compiled, the device works, the server stays."""
        status = service.readiness
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics", response_class=Response, tags=["status"])
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    html, headers = read_page()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """A page for people: labels for their images, and search."""
        return HTMLResponse(html, headers=headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(x) for x in first["loc"] if x != "body"]
        if first["type"] == "json_invalid" or not place:
            return ApiError(400, "the request is no JSON object", code="invalid_json").response()
        param = ".".join(place)
        return ApiError(400, f"{param}: {first['msg'].lower()}", param=param).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        messages = {
            404: f"there is nothing at {request.url.path[:100]}",
            405: f"{request.url.path[:100]} does not take {request.method[:20]}",
        }
        message = messages.get(error.status_code, "the request cannot be read")
        return ApiError(error.status_code, message, headers=error.headers).response()
