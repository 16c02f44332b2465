"""Directory of results, each under the fingerprint of everything that it depends on."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
from etils import epath

from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.tasks.base import Task
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.evals.class_embeddings import ClassCache
from siglip2_jax.fingerprint import fingerprint, fingerprint_files
from siglip2_jax.inference import Captioner
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.outputs import write_whole

_PLACES = "cache", "figures"
"""Fields of evaluators that hold directories, and change no number."""


class Store:
    """Store of results and of what is needed to go on after an interruption.

    Attributes:
      out: its directory, local or `gs://`; None keeps nothing.
    """

    def __init__(self, out: str | os.PathLike[str] | None):
        self.out = None if out is None else epath.Path(out)
        self._identify = cache(lambda model: fingerprint(model.identity()))
        self._list = cache(partial(fingerprint_files, skip=out))

    def path(self, *names: str) -> epath.Path | None:
        """A path in the directory."""
        return None if self.out is None else self.out.joinpath(*names)

    def classes(self, model: Embedder) -> ClassCache | None:
        """Cache of class embeddings of a model."""
        path = self.path("classes")
        return None if path is None else ClassCache(str(path), self._identify(model))

    def key(
        self,
        model: Embedder | Captioner,
        task: Task,
        root: Path,
        evaluator: Evaluator,
        settings: dict[str, Any],
    ) -> str:
        """Key of a result: the model, the settings and the data, all by their content.

        Args:
          model: which is measured.
          task: whose data and name count.
          root: the directory of the data.
          evaluator: which counts with all its fields.
          settings: the protocol.
        """
        if self.out is None:
            return ""
        fields = {name: x for name, x in vars(evaluator).items() if name not in _PLACES}
        parts = [task.name, repr(type(evaluator)), fields, settings]
        return fingerprint([self._identify(model), self._list(root, task.reads), *parts])

    def load(self, key: str) -> Result | None:
        """The result of an earlier run; None where it is missing or damaged."""
        path = self.path("results", f"{key}.json")
        if path is None or not path.is_file():
            return None
        try:
            return Result.from_json(json.loads(path.read_bytes()))
        except ValueError:
            return None  # and is made again

    def save(self, key: str, result: Result) -> None:
        """Keeps a result, by process 0, and removes the parts that it was made of."""
        path, parts = self.path("results", f"{key}.json"), self.path("parts")
        if path is None or parts is None:
            return
        if jax.process_index() == 0:
            write_whole(path, json.dumps(result.to_json(), indent=2, ensure_ascii=False))
        with suppress(OSError):  # another process was first, or there were none
            (parts / key).rmtree()
            if not any(parts.iterdir()):
                parts.rmtree()
