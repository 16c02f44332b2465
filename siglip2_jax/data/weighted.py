"""A source whose examples are read more or less often, by weights from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int64

from siglip2_jax.data.sources import Blocked, Examples, Source


@dataclass(frozen=True)
class Weighted:
    """Examples of a source, as often as their weights say.

    This is where subsampling against bias comes in (Alabdulmohsin et al., "CLIP the Bias?", ICLR
    2024, whose filters SigLIP 2 uses, arXiv 2502.14786, section 2.1): moment matching gives every
    example a probability of being kept, which is its weight here. The paper does not publish its
    rates, so nothing in this package uses weights unless told to.

    An example of weight w is read w times in a round, on average over rounds: floor(w) or ceil(w)
    times in each, and the rounds differ. Weights of a whole data set keep their proportions better
    than independent draws would: one random number decides a round (systematic sampling).

    Of a source that is read in blocks, a block of chosen examples reads and holds all the blocks
    that they are in: at weights of a half, two or three.

    Attributes:
      source: where examples come from.
      weights: path of a `.npy` file with one number for each example, at least 0, in the source's
        order; local or `gs://`.
      rounds: how many rounds an epoch has, each with draws of its own. Opening it takes 8 bytes for
        each example of each round.
      seed: of the draws.
    """

    source: Source
    weights: str
    rounds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"Weighted.rounds must be at least 1, got {self.rounds}")

    def open(self) -> Examples:
        """Reads the weights and draws which examples are read.

        Raises:
          ValueError: the file is missing, is no array of numbers from 0 up, has another length than
            the source, or leaves nothing to read.
        """
        examples = self.source.open()
        weights = _read(self.weights)
        if len(weights) != len(examples):
            raise ValueError(
                f"{self.weights} holds {len(weights)} weights for {len(examples)} examples; write "
                "one for each, in the source's order"
            )
        rng = np.random.default_rng(self.seed)
        indices = np.concatenate([draw(weights, rng.random()) for _ in range(self.rounds)])
        if not len(indices):
            raise ValueError(
                f"{self.weights} leaves no example to read; its sum is {weights.sum()}"
            )
        kind = _ChosenInBlocks if isinstance(examples, Blocked) else _Chosen
        return kind(examples, indices)


def draw(weights: Float[np.ndarray, " n"], offset: float) -> Int64[np.ndarray, " m"]:
    """Systematic sampling: which examples are read in a round, each floor(w) or ceil(w) times.

    Args:
      weights: how often each is read on average, at least 0.
      offset: 0 to below 1, uniform.
    """
    edges = np.floor(np.cumsum(weights) + offset)
    counts = np.diff(edges, prepend=np.floor(offset)).astype(np.int64)
    return np.repeat(np.arange(len(weights)), counts)


class _Chosen:
    def __init__(self, examples: Examples, indices: Int64[np.ndarray, " m"]) -> None:
        self._examples, self._indices = examples, indices
        self.store = getattr(examples, "store", None)  # whose patience a pipeline sets

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self._examples[int(self._indices[index])]


class _ChosenInBlocks(_Chosen):
    """The same of data that is read in blocks: draws of a round are in the source's order."""

    _examples: Blocked

    @property
    def block_size(self) -> int:
        return self._examples.block_size

    @property
    def remote(self) -> bool:
        return self._examples.remote

    def read_block(self, block: int, /) -> Sequence[Any]:
        size, items = self.block_size, []
        indices = self._indices[block * size : (block + 1) * size].tolist()
        for number, chosen in groupby(indices, lambda index: index // size):
            examples = self._examples.read_block(number)
            items += [_taken(examples, index % size) for index in chosen]
        return _Items(items)  # and not the blocks: of small weights, few examples are used


def _taken(examples: Sequence[Any], index: int) -> Any:
    try:
        return examples[index]
    except ValueError as error:
        return error


class _Items(Sequence[Any]):
    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any, /) -> Any:
        item = self._items[index]
        if isinstance(item, ValueError):
            raise item
        return item


def _read(path: str) -> Float[np.ndarray, " n"]:
    try:
        with epath.Path(path).open("rb") as file:
            weights = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected a .npy file with a weight for each example"
        ) from error
    if weights.ndim != 1 or weights.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} holds {weights.dtype}{list(weights.shape)}; expected a list of numbers"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"{path} holds weights below 0, or that are no numbers; expected 0 and up")
    return weights.astype(np.float64)
