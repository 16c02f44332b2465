"""Device side of the server: a fixed set of compiled programs, run on one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.inference.programs import fill, most_rows, place, programs, run_batch
from siglip2_jax.preprocess.patches import pad_and_stack
from siglip2_jax.serve.settings import Settings

_log = logging.getLogger(__name__)


class DeviceError(Exception):
    """A batch that the device could not run."""


class Program(NamedTuple):
    """A compiled program, apart from its batch size.

    Attributes:
      kind: "text" or "image".
      budget: patches of an image at most; 0 for texts.
    """

    kind: str
    budget: int = 0

    def __str__(self) -> str:
        return f"{self.kind}-{self.budget}" if self.budget else self.kind


TEXT = Program("text")


class Engine:
    """Runs batches of a model's programs, one after the other, on a thread of its own.

    Attributes:
      model: on whose devices they run.
      sizes: sizes of batches of each program, ascending.
      thread: the worker thread.
    """

    def __init__(self, model: Embedder, budgets: Sequence[int], settings: Settings):
        self.model = model
        self.thread = ThreadPoolExecutor(1, "siglip2_jax device")
        self._stuck_seconds = settings.stuck_seconds
        self._since: float | None = None
        self._lost = False
        self._programs = programs(model.config, model.dtype)
        tokens = {TEXT: model.config.text.length} | {
            Program("image", n): model.preprocess.num_tokens(n) for n in budgets
        }
        devices = 1 if model.mesh is None else model.mesh.size
        self.sizes = {
            program: tuple(
                sorted(
                    {-(-most_rows(n, length) // devices) * devices for n in settings.batch_sizes}
                )
            )
            for program, length in tokens.items()
        }
        self.tokens = tokens

    def warm_up(self) -> None:
        """Compiles and runs every program; on the worker thread."""
        for program, sizes in self.sizes.items():
            for size in sizes:
                self._call(program, self._blank(program, size))

    def run(self, program: Program, rows: Sequence[Any], size: int) -> Float[np.ndarray, "n E"]:
        """Embeds a batch; on the worker thread.

        Args:
          program: which.
          rows: token ids of each text, or patches and grid of each image.
          size: of the batch, filled up to it.

        Raises:
          DeviceError: the device could not run it; the cause is logged.
        """
        if program == TEXT:
            batch: Any = np.stack(rows)
        else:
            batch = pad_and_stack(rows, self.tokens[program])
        self._since = time.monotonic()
        try:
            return self._call(program, fill(batch, size))[: len(rows)]
        except Exception as error:
            _log.exception("a batch of %d rows of %s failed", size, program)
            self._lost = not self._works()
            raise DeviceError from error
        finally:
            self._since = None

    @property
    def state(self) -> str:
        """State in a word: "ok", "stuck" in a batch for too long, or "lost"."""
        if self._lost:
            return "lost"
        since = self._since
        if since is not None and time.monotonic() - since > self._stuck_seconds:
            return "stuck"
        return "ok"

    def close(self) -> None:
        """Lets the thread end after what it does now."""
        self.thread.shutdown(wait=False, cancel_futures=True)

    def _call(self, program: Program, batch: Any) -> np.ndarray:
        model = self.model
        on_device = place(batch, model.mesh)
        if program == TEXT:
            outputs = run_batch(self._programs.embed_text, model.params, on_device, model.mesh)
        else:
            outputs = run_batch(self._embed_normalized, model.params, on_device, model.mesh)
        return np.asarray(outputs)

    def _embed_normalized(self, params: Any, batch: Any) -> jax.Array:
        return self._programs.embed_image(params, batch, normalize=True)

    def _blank(self, program: Program, size: int) -> Any:
        if program == TEXT:
            return np.zeros((size, self.tokens[program]), np.int32)
        patch = np.zeros((1, self.model.preprocess.patch_size**2 * 3), np.float32)
        return fill(pad_and_stack([(patch, (1, 1))], self.tokens[program]), size)

    def _works(self) -> bool:
        """Tries the smallest program: a batch may fail where the device is well."""
        program = min(self.sizes, key=lambda x: self.tokens[x] * self.sizes[x][0])
        try:
            self._call(program, self._blank(program, self.sizes[program][0]))
        except Exception:
            _log.exception("the device is lost")
            return False
        return True
