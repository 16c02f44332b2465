"""`/v1/rerank` and `/v1/search`: images and texts in the order in which they fit a query."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from siglip2_jax.search import Hit, Index
from siglip2_jax.serve import schemas
from siglip2_jax.serve.choices import check_model, choose_budget, usage
from siglip2_jax.serve.errors import bad
from siglip2_jax.serve.forms import Image, Item, Link, only_one
from siglip2_jax.serve.service import Row, Service

# Columns, values, comparisons, arithmetic and logic. No functions and no comments that could hide
# them: `length(repeat('a', 2000000000)) > 1` would fill the memory of the server.
_PLAIN = re.compile(
    r"""(?: \s | '[^']*+' | (?:and|or|not|in)\b | \w++(?!'|\s*\() | `[^`]*+`(?!\s*\()
          | [(),.<>=!+*%|] | -(?!-) | /(?!\*) )*+""",
    re.VERBOSE | re.IGNORECASE,
)


def add_rerank(router: APIRouter, service: Service) -> None:
    """Adds the route."""

    @router.post("/rerank", response_model=schemas.RerankAnswer)
    async def rerank(request: schemas.RerankRequest) -> JSONResponse:
        """Orders documents by how well they fit a query; both are texts or images.

        Scores are probabilities between an image and a text, which do not sum to 1, and cosines
        between two images or two texts. Both kinds do not compare, so documents are of one kind.
        """
        check_model(service, request.model)
        query = service.reader.item(request.query, "query")
        documents = service.reader.items(request.documents, "documents")
        if len({_is_image(x) for x in documents}) > 1:
            raise bad(
                "documents are texts and images, whose scores do not compare; send them apart",
                "documents",
            )
        pairs = _is_image(query) != _is_image(documents[0])
        calibration = service.settings.calibration if pairs else None
        budget = choose_budget(service, request.max_num_patches, calibration)
        with service.batcher.admit(len(documents) + 1):
            (one,) = await service.embed_all([query], budget, "query")
            rows = await service.embed_all(documents, budget, "documents")
        scores = _scores(service, one, rows, pairs)
        order = np.argsort(-scores, kind="stable")[: request.top_n]
        return JSONResponse(
            {
                "object": "list",
                "model": service.settings.model_name,
                "results": [{"index": int(i), "relevance_score": float(scores[i])} for i in order],
                "usage": usage([one, *rows]),
            }
        )


def add_search(router: APIRouter, service: Service, index: Index) -> None:
    """Adds the route, for a server with a database."""

    @router.post("/search", response_model=schemas.SearchAnswer)
    async def search(request: schemas.SearchRequest) -> JSONResponse:
        """Images of the database that fit a query, by the cosine of their embeddings."""
        check_model(service, request.model)
        if only_one({"query": request.query, "image": request.image}, "query", "image") == "query":
            item = service.reader.item(request.query, "query")
        else:
            item = service.reader.image(request.image, "image")
        with service.batcher.admit(1):
            (row,) = await service.embed_all([item], index.database.settings["patches"], "query")
            hits = await service.in_thread(_find, index, row, request)
        return JSONResponse(
            {
                "object": "list",
                "model": service.settings.model_name,
                "results": [
                    {
                        "id": hit.id,
                        "score": float(hit.score),
                        "caption": hit.caption,
                        "fields": {name: _plain(x) for name, x in hit.fields.items()},
                        "width": hit.width,
                        "height": hit.height,
                    }
                    for hit in hits
                ],
            }
        )


def _find(index: Index, row: Row, request: schemas.SearchRequest) -> list[Hit]:
    try:
        if request.where is not None and not _PLAIN.fullmatch(request.where):
            raise ValueError("more than a plain condition")
        (hits,) = index.nearest(
            row.embedding[None], k=request.k, threshold=request.threshold, where=request.where
        )
    except ValueError:
        if request.where is None:
            raise
        names = [x for x in index.database.table.schema.names if x != "embedding"]
        raise bad(
            f"the condition cannot be read; write SQL over the columns {', '.join(names)}, with "
            "comparisons, arithmetic, AND, OR, NOT, IN, LIKE and BETWEEN, but without functions",
            "where",
        ) from None
    return hits


def _scores(service: Service, query: Row, documents: Sequence[Row], pairs: bool) -> np.ndarray:
    rows = np.stack([row.embedding for row in documents])
    one = query.embedding[None]
    if not pairs:
        return (rows @ one.T)[:, 0]
    calibration = service.settings.calibration
    if query.image is not None:
        return service.model.probabilities(one, rows, calibration=calibration)[0]
    return service.model.probabilities(rows, one, calibration=calibration)[:, 0]


def _is_image(item: Item) -> bool:
    return isinstance(item, Image | Link)


def _plain(value: Any) -> Any:
    """A value of a database as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
