"""Several benchmarks measured one after the other, resumed where they were stopped."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from siglip2_jax.benchmarks.decoder.measured import MeasuredCaptioner
from siglip2_jax.benchmarks.measured import Measured
from siglip2_jax.benchmarks.report.result import Result
from siglip2_jax.benchmarks.store import Store
from siglip2_jax.benchmarks.tasks.base import Setting, Task
from siglip2_jax.benchmarks.tasks.catalogue import choose_tasks
from siglip2_jax.evals.base import Evaluator
from siglip2_jax.evals.prompts import name_templates
from siglip2_jax.inference import Captioner
from siglip2_jax.inference.embedder import DEFAULT_BATCH_SIZE, Embedder
from siglip2_jax.progress import progress

BUDGET = 256


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task of a suite.

    Attributes:
      task: a benchmark; or the name of one of `siglip2 eval --task`, which becomes it.
      budgets: token budgets to measure it at; models of fixed resolution are measured once.
    """

    task: Task | str
    budgets: tuple[int, ...] = (BUDGET,)

    def __post_init__(self) -> None:
        task = choose_tasks([self.task])[0] if isinstance(self.task, str) else self.task
        object.__setattr__(self, "task", task)
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"{task.name}: budgets are {self.budgets}; expected numbers above 0")


@dataclasses.dataclass(frozen=True)
class Suite:
    """Suite of evaluations, in order."""

    entries: tuple[Entry, ...]


def evaluate(
    model: Embedder,
    suite: Suite,
    data: Path,
    out: str | os.PathLike[str] | None = None,
    *,
    pretrained: str,
    batch_size: int = DEFAULT_BATCH_SIZE,
    templates: Sequence[str] = (),
    decoder: Callable[[], Captioner] | None = None,
) -> Iterator[Result]:
    """Measures a model and yields each result at once; one without data says what is missing.

    On several hosts every process calls it, with the same arguments and data.

    Args:
      model: embeds on local devices.
      suite: what to measure.
      data: the directory with a directory for each data set, or the one data set itself.
      out: a directory, local or `gs://`, for results, and for parts from which an interrupted
        evaluation goes on; a saved result is not measured again while the model, the settings,
        the data and this package are the same. None keeps nothing.
      pretrained: where the model is from, for the report.
      batch_size: images per program call.
      templates: prompts with one `{}` for the name of a class; none means each task's.
      decoder: loads the model with its decoder, for tasks that need one; raises ValueError where it
        has none, whose message is then in the result.

    Raises:
      ValueError: data is malformed.
    """
    data, store = data.absolute(), Store(out)
    open_decoder = cache(partial(_open_decoder, decoder))  # once for all tasks
    native = model.config.vision.image_size is None
    for entry in suite.entries:
        task = entry.task
        assert isinstance(task, Task)  # `Entry` makes one of a name
        root, missing, writer = task.find(data), task.missing(data), None
        if root is not None and task.needs_decoder:
            writer, missing = open_decoder()
        about = _about(task, model, pretrained)
        for budget in entry.budgets if native else (BUDGET,):
            if root is None or (task.needs_decoder and writer is None):
                settings = protocol(None, model, budget)
                yield Result(**about, metrics={}, protocol=settings, missing=missing)
                continue
            figures, classes = store.path("figures", f"{task.name}-{budget}"), store.classes(model)
            evaluator = task.make(Setting(root=root, budget=budget, figures=figures, cache=classes))
            if templates and hasattr(evaluator, "templates"):
                evaluator = dataclasses.replace(cast(Any, evaluator), templates=tuple(templates))
            settings = protocol(evaluator, model, budget)
            key = store.key(writer or model, task, root, evaluator, settings)
            result = store.load(key)
            if not _agreed(result is not None):
                name = f"{task.name}, {budget} patches" if native else task.name
                # These two decide which process embeds which images.
                parts = store.path("parts", key, f"{jax.process_count()}-{batch_size}")
                if writer is None:
                    measured = Measured(model, parts, batch_size=batch_size)
                else:  # which runs on one of the devices that the model is spread over
                    size = batch_size // (model.mesh.size if model.mesh else 1)
                    measured = MeasuredCaptioner(writer, parts, batch_size=max(1, size))
                result = _measure(evaluator, measured, about, settings, name)
                store.save(key, result)
            if result is not None:  # other processes need not have what process 0 saved
                yield result


def _open_decoder(
    decoder: Callable[[], Captioner] | None,
) -> tuple[Captioner | None, str]:
    """The model with its decoder, or why there is none."""
    if decoder is None:
        return None, "it needs a decoder; load the model by load_captioner"
    try:
        return decoder(), ""
    except ValueError as error:
        return None, str(error)


def _measure(
    evaluator: Evaluator,
    measured: Measured | MeasuredCaptioner,
    about: dict[str, Any],
    settings: dict[str, Any],
    name: str,
) -> Result:
    source = getattr(evaluator, "source", None)
    count = 0 if source is None else len(source.open())
    start = time.perf_counter()
    with progress(name) as show:
        measured.report_to(show, count)
        metrics = evaluator(measured)
    seconds = time.perf_counter() - start
    embedding = max(measured.seconds, 1e-9)
    return Result(
        **about,
        metrics={name: float(value) for name, value in metrics.items()},
        protocol=settings,
        failed=tuple(measured.failed),
        images=measured.images,
        seconds=seconds,
        images_per_s=measured.embedded * jax.process_count() / embedding,
        data_wait=min(1.0, measured.data_wait / embedding),
    )


def _about(task: Task, model: Embedder, pretrained: str) -> dict[str, Any]:
    return {
        "dataset": task.dataset or task.name,
        "task": task.kind,
        "model": model.variant.name if model.variant else "custom",
        "pretrained": pretrained,
        "language": task.language,
    }


def protocol(evaluator: Evaluator | None, model: Embedder, budget: int) -> dict[str, Any]:
    """Settings that a number depends on besides weights and data, by their names in reports."""
    resolution = model.config.vision.image_size
    settings = {
        "num_patches": budget if resolution is None else model.config.vision.num_patches,
        "resolution": resolution,
        "preproc": model.preprocess.mode,
        "text_norm": model.text_norm,
        "dtype": model.dtype,
        "weights": model.weights,
    }
    for name in ("canonical", "ties", "border", "crop", "full_stop", "shots", "among"):
        if hasattr(evaluator, name):
            settings[name] = getattr(evaluator, name)
    if (templates := getattr(evaluator, "templates", None)) is not None:
        settings["templates"] = name_templates(templates)
    if (decoder := getattr(evaluator, "decoder", None)) is not None:
        settings["decoder"] = repr(decoder)
    return settings


def _agreed(is_done: bool) -> bool:
    """The value of process 0 for all processes, whose disks may differ and which must agree."""
    return is_done if jax.process_count() == 1 else bool(broadcast_one_to_all(np.array(is_done)))


def parse_entries(tasks: str, budgets: Sequence[int]) -> Suite:
    """A suite of tasks whose names are separated by commas."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ValueError("no task was given; pass --task NAME or --suite FILE")
    return Suite(tuple(Entry(name, tuple(budgets)) for name in names))
