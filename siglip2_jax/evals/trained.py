"""Prompts of a training run's own evaluators, read from its checkpoint."""

from __future__ import annotations

import os

from siglip2_jax.checkpoints import run_layout as run
from siglip2_jax.checkpoints.source import resolve


def trained_templates(source: str | os.PathLike[str]) -> list[tuple[str, ...]]:
    """The templates of the evaluators in a run's config, each once.

    Args:
      source: as for `load`; what is no part of a run has none.

    Raises:
      SourceError: the source does not exist or cannot be reached.
      ConversionError: the checkpoint is damaged.
    """
    saved = run.find(resolve(source))
    config = {} if saved is None else run.read_record(saved).get("config", {})
    evaluators = [x for stage in config.get("stages", ()) for x in stage["evals"]]
    return list(dict.fromkeys(tuple(x["templates"]) for x in evaluators if "templates" in x))
