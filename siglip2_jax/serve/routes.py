"""Routes of the API: requests to answers."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Security
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer

from siglip2_jax.search import Index
from siglip2_jax.serve import schemas
from siglip2_jax.serve.choices import check_model, choose_budget, usage
from siglip2_jax.serve.errors import ApiError, bad
from siglip2_jax.serve.forms import only_one
from siglip2_jax.serve.labels import add_classify
from siglip2_jax.serve.ranking import add_rerank, add_search
from siglip2_jax.serve.service import Row, Service

_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be answered as it is"},
    401: {"description": "No valid API key"},
    404: {"description": "No such model"},
    408: {"description": "The request came too slowly"},
    413: {"description": "The request is too large"},
    429: {"description": "The server is full; Retry-After says when to try again"},
    500: {"description": "A fault of the server"},
    503: {"description": "The server is not ready, or its device is lost"},
    504: {"description": "The deadline has passed"},
    "4XX": {"description": "Another error of the request"},
}


def routes(service: Service, index: Index | None = None) -> APIRouter:
    """All routes below `/v1`.

    Args:
      service: what answers.
      index: a database to search; None leaves `/v1/search` out.
    """

    async def ready() -> None:
        if not service.warm:
            raise ApiError(
                503,
                "the server is warming up; try again in a few seconds",
                code="not_ready",
                headers={"Retry-After": "2"},
            )

    responses = {code: {**x, "model": schemas.Errors} for code, x in _RESPONSES.items()}
    keys = [Security(HTTPBearer(auto_error=False))] if service.settings.api_keys else []
    router = APIRouter(
        prefix="/v1", responses=responses, dependencies=[*keys, Depends(ready)], tags=["model"]
    )
    created = int(time.time())

    @router.get("/models", response_model=schemas.Models)
    async def models() -> JSONResponse:
        """The model, its budgets and its sets of labels."""
        settings = service.settings
        sets = {
            name: {
                "labels": list(x.labels),
                "templates": list(x.templates),
                "calibrated": x.calibration is not None,
                "max_num_patches": choose_budget(service, None, x.calibration),
            }
            for name, x in settings.labels.items()
        }
        info = {
            "id": settings.model_name,
            "object": "model",
            "created": created,
            "owned_by": "siglip2_jax",
            "dimensions": service.model.config.vision.width,
            "max_num_patches": list(service.budgets),
            "label_sets": sets,
            "patch_size": service.model.preprocess.patch_size,
            "search": index is not None,
        }
        return JSONResponse({"object": "list", "data": [info]})

    @router.post("/embeddings", response_model=schemas.EmbeddingAnswer)
    async def embeddings(request: schemas.EmbeddingRequest) -> Response:
        """Embeds texts and images, as OpenAI's endpoint does texts."""
        check_model(service, request.model)
        width = service.model.config.vision.width
        if request.dimensions is not None and request.dimensions > width:
            raise bad(f"dimensions is {request.dimensions}; the model has {width}", "dimensions")
        fields = {"input": request.input, "messages": request.messages}
        if only_one(fields, "input", "messages") == "input":
            items = service.reader.inputs(request.input, request.modality)
        else:
            items = [service.reader.messages(request.messages)]
        budget = choose_budget(service, request.max_num_patches)
        with service.batcher.admit(len(items)):
            rows = await service.embed_all(items, budget, "input")
            return await service.in_thread(_embedding_answer, service, request, rows)

    add_classify(router, service)
    add_rerank(router, service)
    if index is not None:
        add_search(router, service, index)
    return router


def _embedding_answer(
    service: Service, request: schemas.EmbeddingRequest, rows: Sequence[Row]
) -> Response:
    data = []
    for i, row in enumerate(rows):
        x = row.embedding
        if request.dimensions is not None:
            x = x[: request.dimensions]
            x = x / np.maximum(np.linalg.norm(x), np.float32(1e-12))
        if request.encoding_format == "base64":
            value: Any = base64.b64encode(x.astype("<f4").tobytes()).decode()
        else:
            value = x.tolist()
        data.append({"object": "embedding", "index": i, "embedding": value})
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "model": service.settings.model_name,
            "usage": usage(rows),
        }
    )
