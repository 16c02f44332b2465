"""Parts of a server together: items to embeddings, by decoders, cache, batches and the device."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from siglip2_jax.evals.prompts import average_prompts, fill_prompts
from siglip2_jax.inference.calibration import Calibration
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.serve.batcher import Batcher
from siglip2_jax.serve.decode import Decoded, DecoderLost, Decoders
from siglip2_jax.serve.engine import TEXT, DeviceError, Engine, Program
from siglip2_jax.serve.errors import FAULT, ApiError, bad
from siglip2_jax.serve.fetch import Fetcher
from siglip2_jax.serve.forms import Image, Item, Link, Reader, Text, Tokens
from siglip2_jax.serve.metrics import Metrics
from siglip2_jax.serve.settings import Settings
from siglip2_jax.serve.texts import TextCache, token_ids, used_tokens

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LINKS = 8  # that are fetched at the same time
_DECODED_BATCHES = 4  # of patches that wait for the device; what is not decoded yet is smaller


class Row(NamedTuple):
    """An item's embedding.

    Attributes:
      embedding: of unit length.
      tokens: text tokens or patches that it is made of.
      image: what became of the image; None for texts.
    """

    embedding: np.ndarray
    tokens: int
    image: Decoded | None = None


class Service:
    """All parts of a server.

    Attributes:
      model: what embeds.
      settings: the server's.
      budgets: token budgets that it offers; at fixed resolution the number of patches.
      metrics: its figures.
      engine: its device.
      batcher: its queue.
      reader: of the forms of requests.
      warm: all programs have run, and requests are taken.
      draining: it is about to end.
    """

    def __init__(self, model: Embedder, settings: Settings):
        self.model, self.settings = model, settings
        self.metrics = Metrics()
        fixed = model.preprocess.image_size is not None
        self.budgets = (model.preprocess.num_tokens(),) if fixed else settings.budgets
        self._check_calibrations()
        self.engine = Engine(model, self.budgets, settings)
        self.batcher = Batcher(self.engine, settings, self.metrics)
        self.reader = Reader(settings)
        self.warm = self.draining = False
        preprocess = dataclasses.replace(model.preprocess, max_pixels=settings.max_pixels)
        self._decoders = Decoders(
            preprocess,
            settings.decode_workers,
            settings.decode_seconds,
            self.metrics.restarts.inc,
        )
        self._fetcher = Fetcher(settings.url_hosts, settings.max_image_bytes, settings.url_seconds)
        self._threads = ThreadPoolExecutor(4, "siglip2_jax serve")
        self._fetching = ThreadPoolExecutor(_LINKS, "siglip2_jax links")
        self._links = asyncio.Semaphore(_LINKS)
        self._cache = TextCache(settings.text_cache)
        self._label_rows: dict[str, np.ndarray] = {}
        most = max(sizes[-1] for program, sizes in self.engine.sizes.items() if program.budget)
        self._decoded = asyncio.Semaphore(_DECODED_BATCHES * most)
        self._tasks: list[asyncio.Task[None]] = []
        self._failed = False

    def budget_of(self, calibration: Calibration) -> int:
        """The budget that a calibration holds for."""
        return self.model.preprocess.num_tokens(calibration.max_num_patches)

    def _check_calibrations(self) -> None:
        for name, calibration in self.settings.calibrations.items():
            if self.budget_of(calibration) not in self.budgets:
                raise ValueError(
                    f"{name} was calibrated at {calibration.max_num_patches} patches, which is "
                    f"none of the budgets ({', '.join(map(str, self.budgets))}); offer that too"
                )
            _ = calibration.threshold  # refuses one that no threshold reaches

    async def start(self) -> None:
        """Starts the worker, and warms up behind it."""
        self._tasks = [
            asyncio.create_task(self.batcher.run()),
            asyncio.create_task(self._warm_up()),
        ]

    async def stop(self) -> None:
        """Ends it; whatever is accepted has been answered before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._decoders.close()
        self.engine.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)

    @property
    def health(self) -> str:
        """State in a word: "ok", or what is wrong."""
        state = "failed" if self._failed else self.engine.state
        if any(task.done() for task in self._tasks[:1]):
            state = "failed"
        self.metrics.healthy.set(state == "ok")
        return state

    @property
    def readiness(self) -> str:
        """State in words: "ready", or why not."""
        if (health := self.health) != "ok":
            return health
        if self.draining:
            return "draining"
        return "ready" if self.warm else "warming up"

    async def embed(
        self, items: Sequence[Item | ApiError], budget: int, param: str
    ) -> list[Row | ApiError]:
        """Embeds items: each gets its row, or an error of its own.

        Args:
          items: what `Reader` gives.
          budget: token budget of the images.
          param: part of the request, for errors of texts.

        Raises:
          ApiError: a text cannot be used.
        """
        texts = [i for i, item in enumerate(items) if isinstance(item, Text | Tokens)]
        rows: list[Row | ApiError | None] = [x if isinstance(x, ApiError) else None for x in items]

        async def fill_texts() -> None:
            some = [item for item in items if isinstance(item, Text | Tokens)]
            for i, row in zip(texts, await self._texts(some, param), strict=True):
                rows[i] = row

        async def fill_image(i: int, item: Image | Link) -> None:
            try:
                rows[i] = await self._image(item, budget)
            except ApiError as error:
                if error.status >= 500:
                    raise
                rows[i] = error

        jobs = [fill_image(i, x) for i, x in enumerate(items) if isinstance(x, Image | Link)]
        await _together(*jobs, *([fill_texts()] if texts else []))
        return [row for row in rows if row is not None]

    async def embed_all(self, items: Sequence[Item], budget: int, param: str) -> list[Row]:
        """Embeds items of a request that has one answer for all.

        Raises:
          ApiError: one of them cannot be used: the first.
        """
        rows = []
        for row in await self.embed(items, budget, param):
            if isinstance(row, ApiError):
                raise row
            rows.append(row)
        return rows

    async def embed_labels(
        self, labels: Sequence[str], templates: Sequence[str]
    ) -> Float[np.ndarray, "n E"]:
        """Embeddings of labels, as `evals.embed_labels` makes them."""
        try:
            prompts = fill_prompts(labels, templates)
        except ValueError as error:
            raise bad(str(error), "templates") from None
        texts = [Text(text) for group in prompts for text in group]
        rows = await self._texts(texts, "labels")
        return average_prompts(np.stack([row.embedding for row in rows]), len(templates))

    async def embed_label_set(self, name: str) -> Float[np.ndarray, "n E"]:
        """Embeddings of a set of labels that the server was started with; made once."""
        if name not in self._label_rows:
            chosen = self.settings.labels[name]
            self._label_rows[name] = await self.embed_labels(chosen.labels, chosen.templates)
        return self._label_rows[name]

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Result of a function that takes too long for the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *args)

    async def _warm_up(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            start = time.monotonic()
            await asyncio.gather(
                loop.run_in_executor(self.engine.thread, self.engine.warm_up),
                self.in_thread(self._decoders.start),
            )
            for name in self.settings.labels:
                await self.embed_label_set(name)
            self.warm = True
            _log.info("ready after %.1f s", time.monotonic() - start)
        except Exception:
            self._failed = True
            _log.exception("the server cannot start")

    async def _texts(self, items: Sequence[Text | Tokens], param: str) -> list[Row]:
        ids = await self.in_thread(token_ids, self.model, items, param)
        rows = [self._cache.get(x) for x in ids]
        self.metrics.cached.inc(sum(row is not None for row in rows))
        missing: dict[bytes, np.ndarray] = {
            x.tobytes(): x for x, row in zip(ids, rows, strict=True) if row is None
        }
        new = dict(zip(missing, await self._on_device(TEXT, list(missing.values())), strict=True))
        for key, row in new.items():
            self._cache.put(missing[key], row)
        return [
            Row(new[x.tobytes()] if row is None else row, used_tokens(self.model, x[None]))
            for x, row in zip(ids, rows, strict=True)
        ]

    async def _image(self, item: Image | Link, budget: int) -> Row:
        if isinstance(item, Image):
            return await self._embed_image(item, budget)
        async with self._links:  # so few are in memory
            data = await asyncio.get_running_loop().run_in_executor(
                self._fetching, self._fetcher.fetch, item.url, item.param
            )
            return await self._embed_image(Image(data, item.param), budget)

    async def _embed_image(self, item: Image, budget: int) -> Row:
        async with self._decoded:
            start = time.perf_counter()
            decoded = await self._decode(item, budget)
            self.metrics.decode.observe(time.perf_counter() - start)
            program = Program("image", budget)
            (embedding,) = await self._on_device(program, [decoded.patches])
        rows, cols = decoded.grid
        return Row(embedding, rows * cols, decoded)

    async def _decode(self, item: Image, budget: int) -> Decoded:
        try:
            return await self._decoders.decode(item.data, budget)
        except ImageError as error:
            reason, code = str(error).removeprefix("image: "), "invalid_image"
        except DecoderLost:
            seconds = self.settings.decode_seconds
            reason, code = f"the image could not be decoded within {seconds:g} s", "image_too_slow"
        self.metrics.bad_images.inc()
        raise bad(f"{item.param}: {reason}", item.param, code)

    async def _on_device(self, program: Program, rows: list) -> list[np.ndarray]:
        try:
            return await self.batcher.embed(program, rows) if rows else []
        except DeviceError:
            raise ApiError(503 if self.engine.state != "ok" else 500, FAULT) from None


async def _together(*jobs: Coroutine[Any, Any, None]) -> None:
    """Does all jobs at once; the first error cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
