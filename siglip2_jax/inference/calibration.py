"""Probabilities and thresholds that mean something on a user's own images.

A model's own probabilities, `sigmoid(exp(t) * cosine + b)`, were trained where one text in tens of
thousands matches an image, so good matches often get a few percent. A calibration has another
temperature and bias, fitted to a few examples (`siglip2 calibrate`), and perhaps a threshold.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit

from siglip2_jax.data.text import read_json
from siglip2_jax.outputs import write_whole

Metric = Literal["precision", "recall"]
_FORMAT = "siglip2_jax calibration 1"


@dataclass(frozen=True)
class Goal:
    """Wanted precision or recall, and the threshold that gave it on the examples.

    Attributes:
      metric: the share of accepted pairs that match, or of matches that are accepted.
      wanted: its value, above 0 and below 1.
      threshold: probability from which a pair is accepted; None where none gives the wanted value.
      measured: the metric's value on the examples themselves; None without a threshold.
      interval: range in which it lies on other images of the same kind, in 95 of 100 cases.
      accepted: number of example pairs that are accepted.
    """

    metric: Metric
    wanted: float
    threshold: float | None
    measured: float | None
    interval: tuple[float, float]
    accepted: int


@dataclass(frozen=True)
class Calibration:
    """Temperature and bias of a set of labels, or of any texts, on images of one kind.

    Attributes:
      temperature: by which cosines are multiplied, above 0.
      bias: which is added then.
      temperature_interval: range of the temperature in 95 of 100 resamples of the images.
      bias_interval: the same of the bias.
      goal: wanted precision or recall with its threshold, if one was asked for.
      labels: the set that it was fitted on; empty for pairs of images and texts.
      templates: prompts of the labels.
      images: number of the examples' images.
      matches: number of pairs that match.
      others: number of pairs that do not.
      warnings: sentences on what so few examples do not tell.
      model: the model's identity, as `Embedder.identity` gives it.
      max_num_patches: token budget of the images.
    """

    temperature: float
    bias: float
    temperature_interval: tuple[float, float]
    bias_interval: tuple[float, float]
    goal: Goal | None
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    images: int
    matches: int
    others: int
    warnings: tuple[str, ...]
    model: Mapping[str, Any]
    max_num_patches: int

    @property
    def threshold(self) -> float:
        """Probability from which a pair counts as a match: the goal's, or else 0.5.

        Raises:
          ValueError: no threshold reaches the goal.
        """
        if self.goal is None:
            return 0.5
        if self.goal.threshold is None:
            raise ValueError(
                f"no threshold of this calibration reaches a {self.goal.metric} of "
                f"{self.goal.wanted:g}; ask for less, or fit it to more examples"
            )
        return self.goal.threshold

    @property
    def cosine_threshold(self) -> float:
        """Cosine from which a pair counts as a match."""
        return (float(logit(self.threshold)) - self.bias) / self.temperature

    def probabilities(
        self, images: Float[np.ndarray, "I E"], texts: Float[np.ndarray, "J E"]
    ) -> Float[np.ndarray, "I J"]:
        """Probability that each pair matches."""
        return expit(np.float32(self.temperature) * (images @ texts.T) + np.float32(self.bias))

    def check(self, identity: Mapping[str, Any], name: str) -> None:
        """Refuses a model that it was not fitted with.

        Args:
          identity: of the model (`Embedder.identity`); its versions may differ.
          name: of the calibration, for the message.

        Raises:
          ValueError: they differ; the sentence says in what.
        """
        expected, actual = _plain(self.model), _plain(identity)
        for key in sorted(expected.keys() | actual.keys() - {"version"}):
            if key != "version" and expected.get(key) != actual.get(key):
                raise ValueError(
                    f"{name} was fitted with another model: {key} was {expected.get(key)!r:.60}, "
                    f"is {actual.get(key)!r:.60}; run `siglip2 calibrate` with this model"
                )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, whole or not at all."""
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        write_whole(path, json.dumps(content, indent=2, default=list) + "\n")


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Reads a file that `siglip2 calibrate` has written, local or `gs://`.

    Raises:
      ValueError: there is no such file, or it is something else.
    """
    content = read_json(path)
    try:
        if content.pop("format") != _FORMAT:
            raise ValueError("another format")
        goal = content.pop("goal")
        goal = goal and Goal(**goal | {"interval": tuple(goal["interval"])})
        values: dict[str, Any] = {
            k: tuple(x) if isinstance(x, list) else x for k, x in content.items()
        }
        return Calibration(goal=goal, **values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no calibration of this version; expected a file that `siglip2 calibrate` "
            "has written"
        ) from error


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON has them."""
    return json.loads(json.dumps(dict(value), default=list))
