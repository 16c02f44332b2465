"""Choices of a request: the model, and the token budget of its images."""

from __future__ import annotations

from collections.abc import Sequence

from siglip2_jax.inference.calibration import Calibration
from siglip2_jax.serve.errors import ApiError, bad
from siglip2_jax.serve.service import Row, Service


def check_model(service: Service, name: str | None) -> None:
    """Makes sure that a request means the model of this server.

    Raises:
      ApiError: it names another.
    """
    if name not in (None, service.settings.model_name):
        raise ApiError(
            404,
            f"there is no model {name!r:.100}; this server has {service.settings.model_name!r}",
            param="model",
            code="model_not_found",
        )


def choose_budget(
    service: Service, wanted: int | None, calibration: Calibration | None = None
) -> int:
    """Token budget of a request; at fixed resolution there is but one, whatever is asked for.

    Args:
      service: what offers budgets.
      wanted: what the request says, if anything.
      calibration: that will be used, which holds for its own budget.

    Raises:
      ApiError: it is not offered, or not the calibration's.
    """
    budgets = service.budgets
    if wanted is None or service.model.preprocess.image_size is not None:
        return budgets[0] if calibration is None else service.budget_of(calibration)
    if calibration is not None and wanted != service.budget_of(calibration):
        raise bad(
            f"max_num_patches is {wanted}; what is asked for was calibrated at "
            f"{service.budget_of(calibration)}",
            "max_num_patches",
        )
    if wanted not in budgets:
        raise bad(
            f"max_num_patches is {wanted}; this server offers {', '.join(map(str, budgets))}",
            "max_num_patches",
        )
    return wanted


def usage(rows: Sequence[Row]) -> dict[str, int]:
    """Tokens of a request, as answers give them."""
    tokens = sum(row.tokens for row in rows)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
