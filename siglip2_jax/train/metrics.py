"""Writers of metrics: `metrics.jsonl` always, TensorBoard and Weights & Biases if asked."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from siglip2_jax.config import Logging
from siglip2_jax.outputs import write_whole

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
SECONDS_BETWEEN_UPLOADS = 60.0


class Sink(Protocol):
    """Destination of metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""

    def flush(self) -> None:
        """Makes sure that the numbers so far survive the process."""

    def close(self) -> None:
        """Ends the sink: no more numbers come."""


class MetricWriter:
    """All sinks of a run; to be made by one process only."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        logging: Logging,
        config: Mapping[str, Any],
        step: int,
    ):
        """Opens the sinks.

        Args:
          workdir: where `metrics.jsonl` is; an existing one is continued.
          logging: which further sinks there are.
          config: the resolved config, for sinks that record it.
          step: where the run resumes; lines of later steps, from a run that was killed before it
            saved them, are dropped, so that every step has one line.

        Raises:
          ValueError: a sink's package is not installed.
        """
        self._sinks: list[Sink] = [JsonLines(epath.Path(workdir) / METRICS, step)]
        if logging.tensorboard:
            self._sinks.append(TensorBoard(workdir))
        if logging.wandb_project is not None:
            self._sinks.append(WeightsAndBiases(logging.wandb_project, workdir, config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Gives the numbers of one step to every sink."""
        for sink in self._sinks:
            sink.write(step, values)

    def flush(self) -> None:
        """Flushes what was written: a checkpoint must not know of steps that the metrics lack."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Closes the sinks."""
        for sink in self._sinks:
            sink.close()


class JsonLines:
    """One JSON object a line, floats at full precision, with the time at which it was written."""

    def __init__(self, path: epath.Path, step: int = sys.maxsize):
        self._path = path
        text = path.read_text() if path.exists() else ""
        self._lines = [line for line in text.split("\n") if _step_of(line) <= step]
        self._local = not os.fspath(path).startswith("gs://")
        self._uploaded = 0.0
        if text != self._text():  # a line is dropped, or the last one lacks its end
            self._rewrite()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line."""
        line = json.dumps({"step": step, "time": round(time.time(), 3)} | dict(values))
        if self._local:
            with self._path.open("a") as file:
                file.write(line + "\n")
            return
        self._lines.append(line)  # objects in a bucket cannot be appended to
        if time.monotonic() - self._uploaded > SECONDS_BETWEEN_UPLOADS:
            self._rewrite()

    def flush(self) -> None:
        """Uploads to a bucket; local lines are there already."""
        if not self._local:
            self._rewrite()

    def close(self) -> None:
        """Writes what is left."""
        self.flush()

    def _rewrite(self) -> None:
        write_whole(self._path, self._text())
        self._uploaded = time.monotonic()

    def _text(self) -> str:
        return "".join(line + "\n" for line in self._lines)


class TensorBoard:
    """Event files in `tensorboard/` (extra `tensorboard`)."""

    def __init__(self, workdir: str | os.PathLike[str]):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ValueError(
                "logging.tensorboard needs tensorboardX; pip install 'siglip2_jax[tensorboard]', "
                "or set it to False"
            ) from None
        self._writer = SummaryWriter(os.path.join(os.fspath(workdir), "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases (extra `wandb`), continued where the workdir has one."""

    def __init__(self, project: str, workdir: str | os.PathLike[str], config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise ValueError(
                "logging.wandb_project needs wandb; pip install 'siglip2_jax[wandb]', or leave it "
                "None"
            ) from None
        name = os.fspath(workdir).rstrip("/").replace("/", "-")[-64:]
        self._run = wandb.init(
            project=project, id=name, resume="allow", dir=_local(workdir), config=dict(config)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Does nothing: the client uploads by itself."""

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def _local(workdir: str | os.PathLike[str]) -> str | None:
    path = os.fspath(workdir)
    return None if path.startswith("gs://") else path


def _step_of(line: str) -> float:
    """The step of a line; that of a line cut off by a crash is NaN, no earlier than any."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.nan
