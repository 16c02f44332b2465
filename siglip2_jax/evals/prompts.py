"""Prompts for zero-shot classification, and one embedding per class made of them.

The 80 templates are those published with CLIP for ImageNet (Radford et al. 2021, arXiv 2103.00020;
openai/CLIP, MIT licence), which every zero-shot evaluation since has used. The rules are those of
big_vision's evaluator (`evaluators/proj/image_text/prompt_engineering.py` and
`discriminative_classifier.py`), which SigLIP's zero-shot numbers come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from siglip2_jax.data.prefetch import batched
from siglip2_jax.evals.base import Model
from siglip2_jax.preprocess.text_norm import normalize

PROMPTS_AT_ONCE = 8192
_PLACE = "\0"  # neither punctuation nor white space: `normalize` leaves it alone

OPENAI_TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
CLIP_PAPER: tuple[str, ...] = (*OPENAI_TEMPLATES, "{}")  # big_vision's `clip_paper`
NAMED: dict[str, tuple[str, ...]] = {"openai": OPENAI_TEMPLATES, "clip_paper": CLIP_PAPER}
_SPELT_OUT = 3


def choose_templates(word: str) -> tuple[str, ...]:
    """Templates by name, or the one that is written out.

    Raises:
      ValueError: it is neither.
    """
    if word not in NAMED and word.count("{}") != 1:
        raise ValueError(
            f"{word!r} is not the name of templates; expected {', '.join(NAMED)}, or a prompt with "
            'one {}, such as "a photo of a {}"'
        )
    return NAMED.get(word, (word,))


def name_templates(templates: Sequence[str]) -> str:
    """Name of templates in results: the preset's, or a few in full, or the count and the first."""
    for name, preset in NAMED.items():
        if tuple(templates) == preset:
            return name
    if len(templates) <= _SPELT_OUT:
        return " / ".join(templates)
    return f"{len(templates)} from {templates[0]!r} on"


def canonicalize(text: str, keep: str = "") -> str:
    """`text` in big_vision's canonical form, as `normalize(text, "canonicalize")` gives it.

    Args:
      text: a class name or a template.
      keep: a string of punctuation that stays where it occurs: "{}" in templates.
    """
    if not keep:
        return normalize(text, "canonicalize")
    return normalize(text.replace(keep, _PLACE), "canonicalize").replace(_PLACE, keep)


def fill_prompts(
    names: Sequence[str], templates: Sequence[str], *, canonical: bool = False
) -> list[tuple[str, ...]]:
    """Every template filled with every name.

    Args:
      names: class names.
      templates: prompts with one `{}` for the name.
      canonical: bring names and templates to their canonical form, and take only the first of
        several names separated by commas, as big_vision's evaluator does.

    Returns:
      The prompts of each class.

    Raises:
      ValueError: there are no names or templates, a template has not one place for the name, or
        nothing is left of a name in its canonical form.
    """
    if not (names and templates):
        raise ValueError(
            f"{len(names)} class names and {len(templates)} templates make no prompts; give at "
            "least one of each"
        )
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"the template {template!r} has {template.count('{}')} places for the class name; "
                'expected one {}, as in "a photo of a {}."'
            )
    if canonical:
        templates = [canonicalize(template, keep="{}") for template in templates]
        names = [_first_name(name) for name in names]
    return [tuple(template.replace("{}", name) for template in templates) for name in names]


def _first_name(name: str) -> str:
    first = canonicalize(name, keep=",").split(",")[0]
    if not first.strip():
        raise ValueError(
            f"the class name {name!r} has nothing but punctuation before its first comma; give "
            "another name, or canonical=False"
        )
    return first


def embed_labels(
    model: Model,
    labels: Sequence[str],
    templates: Sequence[str] = ("{}",),
    *,
    canonical: bool = False,
) -> Float[np.ndarray, "n E"]:
    """One unit-length embedding per label: the normalised mean over the templates.

    Labels with the same prompts are embedded once, so that their rows are the same to the last
    bit. Prompts go through the model some thousands at a time.

    Args:
      model: embeds the prompts.
      labels: class names.
      templates: prompts with one `{}` for the label.
      canonical: as for `fill_prompts`.

    Returns:
      float32 rows.

    Raises:
      ValueError: as `fill_prompts`.
    """
    prompts = fill_prompts(labels, templates, canonical=canonical)
    different = list(dict.fromkeys(prompts))
    blocks = batched(different, max(1, PROMPTS_AT_ONCE // len(templates)))
    means = np.concatenate([_mean_embeddings(model, block) for block in blocks])
    place = {texts: i for i, texts in enumerate(different)}
    return means[[place[texts] for texts in prompts]]


def _mean_embeddings(model: Model, prompts: Sequence[tuple[str, ...]]) -> Float[np.ndarray, "n E"]:
    rows = model.embed_texts([text for texts in prompts for text in texts])
    return average_prompts(rows, len(prompts[0]))


def average_prompts(rows: Float[np.ndarray, "m E"], templates: int) -> Float[np.ndarray, "n E"]:
    """Normalised means of the embeddings of each label's prompts.

    Args:
      rows: embeddings of all prompts, label by label.
      templates: prompts of a label.
    """
    mean = rows.reshape(-1, templates, rows.shape[1]).mean(axis=1, dtype=np.float64)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return (mean / np.maximum(length, 1e-8)).astype(np.float32)
