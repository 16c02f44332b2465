"""Retrieval: captions of an image and images of a caption, in a whole set.

The protocol of SigLIP 2 (arXiv 2502.14786, table 1), as its code has it (big_vision,
`evaluators/proj/image_text/retrieval.py`): all captions of every image are in the pool, an image is
found by any of its captions, each caption is a query of its own, scores are cosines. Unlike there,
a tie counts against (there NumPy's sort decides, which keeps no order), so that a model that gives
everything the same score finds nothing; `ties` has other rules.

What a number depends on besides the model: the case rule (`Embedder.text_norm`; the release
lower-cases, which its author names first when numbers come out low, big_vision issues 166 and 187),
the final full stop (named there too), the mode of preprocessing and the token budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from etils import epath
from jaxtyping import Float32, Int

from siglip2_jax.data.sources import Source
from siglip2_jax.evals.base import Model
from siglip2_jax.evals.recall import Ties, check_ties, recall_ranks
from siglip2_jax.preprocess.decode import ImageSource, NamedImage

FullStop = Literal["keep", "add", "remove"]

KS = (1, 5, 10)
_FULL_STOPS = ".。।"
_SENTENCE_ENDS = _FULL_STOPS + "!?…！？؟"


def end_sentence(text: str, full_stop: FullStop) -> str:
    """A caption with its final full stop kept, added or removed.

    Args:
      text: the caption.
      full_stop: "keep" changes nothing. "add" puts a full stop after a caption that does not end
        with one or with another mark that ends a sentence. "remove" takes final full stops off,
        those of Chinese, Japanese and Hindi included. Both drop white space at the end.

    Raises:
      ValueError: `full_stop` is none of these.
    """
    bare = text.rstrip()
    match full_stop:
        case "keep":
            return text
        case "add":
            return bare if bare.endswith(tuple(_SENTENCE_ENDS)) else bare + "."
        case "remove":
            return bare.rstrip(_FULL_STOPS).rstrip()
    raise ValueError(f"full_stop is {full_stop!r}; expected 'keep', 'add' or 'remove'")


def embed_captions(
    model: Model, captions: Sequence[str], full_stop: FullStop = "keep"
) -> Float32[np.ndarray, "m E"]:
    """Embeddings of captions, each text once: equal captions tie exactly.

    Args:
      model: embeds them.
      captions: texts, repeats allowed.
      full_stop: see `end_sentence`.

    Returns:
      Rows of unit length, one per caption.
    """
    texts = [end_sentence(caption, full_stop) for caption in captions]
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return model.embed_texts(list(place))[[place[text] for text in texts]]


def embed_files(
    model: Model, paths: Sequence[str], max_num_patches: int
) -> Float32[np.ndarray, "n E"]:
    """Embeddings of images in files, decoded as they are needed.

    Args:
      model: embeds them.
      paths: files, local or `gs://`.
      max_num_patches: token budget at native resolution.

    Returns:
      Rows of unit length; rows of NaN for images that cannot be read, with a warning for each.

    Raises:
      ValueError: the first image does not exist: the directory is probably the wrong one.
    """
    if not epath.Path(paths[0]).is_file():
        raise ValueError(
            f"{paths[0]}: no such image, the first of {len(paths)}; expected the data set's images "
            "there, unpacked under their published names"
        )
    return model.embed_images(paths, max_num_patches=max_num_patches)


def retrieval_metrics(
    images: Float32[np.ndarray, "n E"],
    texts: Float32[np.ndarray, "m E"],
    owner: Int[np.ndarray, " m"],
    *,
    ties: Ties = "against",
) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways: the shares of images and of texts whose partner is found.

    Args:
      images: embeddings of unit length. A row of NaN, an image that failed to decode, counts as
        wrong, and so do its texts.
      texts: embeddings of unit length.
      owner: which image each text belongs to. An image without texts counts as wrong.
      ties: which equal scores come before a partner's; see `recall.recall_ranks`.

    Returns:
      `image_to_text@k` and `text_to_image@k`, from 0 to 1.
    """
    ranks = recall_ranks(images, texts, owner, ties=ties)
    metrics = {}
    for k in KS:
        metrics[f"image_to_text@{k}"] = float(np.mean(ranks.image_to_text < k))
        metrics[f"text_to_image@{k}"] = float(np.mean(ranks.text_to_image < k))
    return metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Recall at 1, 5 and 10 within a set, image to text and text to image.

    For COCO and Flickr30k give a `karpathy.Karpathy`, for captions in JSON lines a
    `data.sources.Folder`. Chance is about k over the number of images.

    Attributes:
      source: the set; images that do not decode count as wrong, both ways.
      name: prefix of its numbers.
      every: steps between two measurements.
      count: how many examples, from the first; None means all.
      max_num_patches: token budget at native resolution.
      full_stop: what is done about the full stop at the end of captions; see `end_sentence`.
      ties: which equal scores come before a partner's: "against" all, "half" of them, or those that
        stand "first".
    """

    source: Source
    name: str = "retrieval"
    every: int = 1000
    count: int | None = None
    max_num_patches: int = 256
    full_stop: FullStop = "keep"
    ties: Ties = "against"

    def __post_init__(self) -> None:
        end_sentence("", self.full_stop)  # an unknown choice is refused at once
        check_ties(self.ties)

    def __call__(self, model: Model) -> dict[str, float]:
        """`image_to_text@k` and `text_to_image@k`, from 0 to 1.

        Raises:
          ValueError: no example has a caption.
        """
        examples = self.source.open()
        count = len(examples) if self.count is None else min(self.count, len(examples))
        captions: list[str] = []
        owner: list[int] = []

        def sources() -> Iterator[ImageSource]:
            """One at a time, so that a set larger than memory can be measured."""
            for i in range(count):
                example = examples[i]
                captions.extend(example["captions"])
                owner.extend([i] * len(example["captions"]))
                yield NamedImage(example["image"], example["name"])

        images = model.embed_images(sources(), max_num_patches=self.max_num_patches)
        if not captions:
            raise ValueError(
                f"evaluator {self.name!r}: none of its {count} examples has a caption to look for; "
                "choose a source with captions"
            )
        texts = embed_captions(model, captions, self.full_stop)
        return retrieval_metrics(images, texts, np.array(owner), ties=self.ties)
