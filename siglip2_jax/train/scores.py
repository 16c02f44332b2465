"""Scores of evaluators during a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jax.sharding import Mesh

from siglip2_jax.config import ResolvedStage
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.train.inputs import image_preprocessor
from siglip2_jax.train.state import TrainState, plain_params

log = logging.getLogger(__name__)


class Scores:
    """Measures a stage's model as a user would load it, on the mesh."""

    def __init__(self, stage: ResolvedStage, tokenizer: Tokenizer, mesh: Mesh):
        self._stage, self._tokenizer, self._mesh = stage, tokenizer, mesh
        self._model: Embedder | None = None  # always the same, to compile once

    def measure(
        self, state: TrainState, step: int, evaluators: Sequence[Evaluator]
    ) -> dict[str, float]:
        """The evaluators' scores as `eval/<name>/<metric>`, which are logged, too."""
        values: dict[str, float] = {}
        for evaluator in evaluators:
            model = self._embedder(state)
            scores = {name: float(value) for name, value in evaluator(model).items()}
            model.params = {}  # or the next step could not reuse their memory
            shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            log.info("step %d, %s: %s", step, evaluator.name, shown)
            values |= {f"eval/{evaluator.name}/{name}": value for name, value in scores.items()}
        return values

    def _embedder(self, state: TrainState) -> Embedder:
        params = plain_params(state.params)
        if self._model is None:
            preprocess = image_preprocessor(self._stage)
            self._model = Embedder(
                self._stage.model, params, preprocess, self._tokenizer, mesh=self._mesh
            )
        self._model.params = params
        return self._model
