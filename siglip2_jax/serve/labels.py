"""`/v1/classify`: labels of images with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from jaxtyping import Float

from siglip2_jax.evals.prompts import NAMED
from siglip2_jax.serve import schemas
from siglip2_jax.serve.choices import check_model, choose_budget, usage
from siglip2_jax.serve.errors import ApiError, bad
from siglip2_jax.serve.forms import only_one
from siglip2_jax.serve.service import Row, Service
from siglip2_jax.serve.settings import LabelSet


class _Chosen(NamedTuple):
    name: str | None
    labels: LabelSet


def add_classify(router: APIRouter, service: Service) -> None:
    """Adds the route."""

    @router.post(
        "/classify", response_model=schemas.ClassifyAnswer, response_model_exclude_none=True
    )
    async def classify(request: schemas.ClassifyRequest) -> JSONResponse:
        """Labels of images, each with its own probability.

        An image that cannot be read has an error in its place, unless it is so with all.
        """
        check_model(service, request.model)
        chosen = _choose(service, request)
        calibration = chosen.labels.calibration
        budget = choose_budget(service, request.max_num_patches, calibration)
        images = service.reader.images(request.images, "images")
        prompts = 0 if chosen.name else len(chosen.labels.labels) * len(chosen.labels.templates)
        with service.batcher.admit(len(images) + prompts):
            rows = await service.embed(images, budget, "images")
            good = [row for row in rows if isinstance(row, Row)]
            if not good:
                raise next(row for row in rows if isinstance(row, ApiError))
            texts = await _embed(service, chosen)
        probabilities = iter(
            service.model.probabilities(
                np.stack([row.embedding for row in good]), texts, calibration=calibration
            )
        )
        threshold = None if calibration is None else calibration.threshold
        results = [
            {"index": i, "error": row.content()}
            if isinstance(row, ApiError)
            else {"index": i} | _result(row, next(probabilities), chosen.labels.labels, threshold)
            for i, row in enumerate(rows)
        ]
        return JSONResponse(
            {
                "object": "list",
                "model": service.settings.model_name,
                "max_num_patches": budget,
                "calibrated": calibration is not None,
                "threshold": threshold,
                "results": results,
                "usage": usage(good),
            }
        )


def _choose(service: Service, request: schemas.ClassifyRequest) -> _Chosen:
    """Labels of a request; those that are a set of the server are that set, calibrated."""
    sets = service.settings.labels
    fields = {"labels": request.labels, "label_set": request.label_set}
    if only_one(fields, "labels", "label_set") == "label_set":
        assert request.label_set is not None
        if request.label_set not in sets:
            names = ", ".join(map(repr, sets)) or "none"
            raise bad(
                f"there is no label set {request.label_set!r:.100}; this server has {names}",
                "label_set",
            )
        if request.templates is not None:
            raise bad("a label set has templates of its own; leave out `templates`", "templates")
        return _Chosen(request.label_set, sets[request.label_set])
    labels = tuple(service.reader.texts(request.labels, "labels"))
    templates = _templates(service, request.templates)
    most = service.settings.max_items
    if len(labels) * len(templates) > most:
        raise bad(
            f"{len(labels)} labels with {len(templates)} templates are more than {most} texts, "
            "the limit; use fewer, or a label set of the server",
            "labels",
        )
    for name, known in sets.items():
        if (known.labels, known.templates) == (labels, templates):
            return _Chosen(name, known)
    return _Chosen(None, LabelSet(labels, templates, service.settings.calibration))


def _templates(service: Service, value: Any) -> tuple[str, ...]:
    if value is None:
        return ("{}",)
    if isinstance(value, str):
        if value not in NAMED:
            raise bad(
                f"there are no templates {value!r:.100}; expected a list of prompts such as "
                f'"a photo of a {{}}", or {" or ".join(map(repr, NAMED))}',
                "templates",
            )
        return NAMED[value]
    return tuple(service.reader.texts(value, "templates"))


async def _embed(service: Service, chosen: _Chosen) -> Float[np.ndarray, "n E"]:
    if chosen.name is not None:
        return await service.embed_label_set(chosen.name)
    return await service.embed_labels(chosen.labels.labels, chosen.labels.templates)


def _result(
    row: Row, probabilities: np.ndarray, labels: Sequence[str], threshold: float | None
) -> dict[str, Any]:
    """Labels of an image, best first, equal ones in the order of the request."""
    assert row.image is not None
    order = np.argsort(-probabilities, kind="stable")
    scores = [{"label": labels[i], "probability": float(probabilities[i])} for i in order]
    width, height = row.image.size
    result: dict[str, Any] = {
        "labels": scores,
        "width": width,
        "height": height,
        "grid": list(row.image.grid),
    }
    if threshold is not None:
        result["accepted"] = [x["label"] for x in scores if x["probability"] >= threshold]
    return result
