"""The model card of an export: `README.md` beside the weights, as the Hugging Face Hub shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from siglip2_jax.checkpoints.checkpoint import Checkpoint
from siglip2_jax.checkpoints.source import REPOSITORY, absolute
from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES, ModelConfig, find_variant

CARD = "README.md"
TAG = "siglip2_jax"
PLACE_FIELDS = ("path", "pattern", "name")  # of data sources: where their examples are


class Score(NamedTuple):
    """A measured number, as texts for a table.

    Attributes:
      dataset: the data set.
      setting: input size of images, such as "256 tokens".
      metric: name of the number.
      value: the number, in per cent or its unit.
      published: the number of the paper, or a dash.
      protocol: the other settings of the measurement.
    """

    dataset: str
    setting: str
    metric: str
    value: str
    published: str
    protocol: str


def model_card(checkpoint: Checkpoint, *, tokenizer: bool, scores: Sequence[Score] = ()) -> str:
    """The card of a model, in Markdown behind a YAML header; the same for the same input.

    It names data by their last names alone: no path of a machine gets into it.

    Args:
      checkpoint: the model, and the run that trained it where that is known.
      tokenizer: whether a tokenizer goes into the export.
      scores: what was measured with it.
    """
    base = base_model(checkpoint)
    sections = [
        _header(checkpoint, base, tokenizer),
        _sizes(checkpoint.config),
        _inputs(checkpoint, tokenizer),
        _loading(checkpoint.config, tokenizer),
        _training(checkpoint, base),
        _results(scores),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def base_model(checkpoint: Checkpoint) -> str | None:
    """Repository of the model that this one was made from, or None where that is not known.

    A run tells by the start of its stages, another checkpoint by the name of its source.
    """
    if checkpoint.run is None:
        return _repository(checkpoint.source)
    starts = [stage.get("start") or {} for stage in checkpoint.run.config.get("stages", ())]
    sources = [start["source"] for start in starts if start.get("kind") == "Pretrained"]
    return _repository(sources[-1]) if sources else None


def _repository(source: str) -> str | None:
    """The repository that a source is, or of the release whose official file it is."""
    stem = re.split(r"[/\\]", source)[-1].removesuffix(".npz")
    for release in RELEASES + SIGLIP1_RELEASES:
        if stem == release.npz and source.endswith(".npz"):
            return release.hf
    if REPOSITORY.fullmatch(source) and not absolute(source).exists():
        return source.partition("@")[0]
    return None


def _header(checkpoint: Checkpoint, base: str | None, tokenizer: bool) -> Iterator[str]:
    """The YAML that the hub files the model by; its strings are JSON's, which YAML reads."""
    native = checkpoint.config.native_resolution
    kind = ["naflex"] if native else ["sentence-transformers"] if tokenizer else []
    released = {release.hf for release in RELEASES + SIGLIP1_RELEASES}
    family = "siglip" if checkpoint.config.text.pad_id == 1 else "siglip2"
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: zero-shot-image-classification"
    yield "tags:"
    yield from (f"- {tag}" for tag in (TAG, family, "jax", *kind))
    if checkpoint.run is None and base in released:
        yield "license: apache-2.0"
    if base:
        yield f"base_model: {json.dumps(base)}"
    yield "---"


def _sizes(config: ModelConfig) -> Iterator[str]:
    vision, text, variant = config.vision, config.text, find_variant(config)
    family = "SigLIP" if text.pad_id == 1 else "SigLIP 2"
    sizes = variant.name.removeprefix("SigLIP ") if variant else "with sizes of its own"
    yield f"# {family} {sizes}\n"
    yield (
        "An image tower and a text tower whose embeddings can be compared: zero-shot "
        "classification, retrieval, dense features. Written by siglip2_jax, the open SigLIP 2 in "
        "JAX.\n"
    )
    yield "| tower | width | depth | heads | MLP |"
    yield "| - | - | - | - | - |"
    for name, tower in (("image", vision), ("text", text)):
        yield f"| {name} | {tower.width} | {tower.depth} | {tower.num_heads} | {tower.mlp_dim} |"
    yield ""
    yield f"- embeddings: {text.embed_dim} values"
    yield f"- patches: {vision.patch_size} x {vision.patch_size} pixels"
    yield f"- positions: {vision.grid} x {vision.grid}"
    yield f"- vocabulary: {text.vocab_size:,} tokens"


def _inputs(checkpoint: Checkpoint, tokenizer: bool) -> Iterator[str]:
    config, names = checkpoint.config, checkpoint.preprocessing
    yield "## Inputs\n"
    if config.native_resolution:
        yield (
            "- images: native aspect ratio (NaFlex), resized to the largest grid of patches within "
            "the token budget `max_num_patches`; 256 by default, and any other works"
        )
    else:
        side = config.vision.image_size
        yield f"- images: {side} x {side} pixels, {config.vision.num_patches} patches"
    yield f"- image preprocessing: `{names.mode}`; transformers resizes with {names.resample}"
    yield (
        f"- texts: exactly {config.text.length} tokens, padded with id {config.text.pad_id} and no "
        f"attention mask; in transformers that is "
        f'`padding="max_length", max_length={config.text.length}, truncation=True`'
    )
    yield f"- text normalisation: `{names.text_norm}`"
    if not tokenizer:
        yield "- tokenizer: not in this export"


def _loading(config: ModelConfig, tokenizer: bool) -> Iterator[str]:
    yield "## Loading\n"
    yield "```python"
    yield "import siglip2_jax\n"
    yield 'model = siglip2_jax.load("owner/name")  # this repository, or a directory'
    yield 'images = model.embed_images(["a.jpg"])'
    yield 'texts = model.embed_texts(["a dog", "a cat"])'
    yield "model.probabilities(images, texts)"
    yield "```\n"
    yield "```python"
    yield "from transformers import AutoModel, AutoProcessor\n"
    yield 'model = AutoModel.from_pretrained("owner/name")'
    yield 'processor = AutoProcessor.from_pretrained("owner/name")'
    yield "```"
    if tokenizer and not config.native_resolution:
        yield "\n```python"
        yield "from sentence_transformers import SentenceTransformer\n"
        yield 'model = SentenceTransformer("owner/name")  # unit embeddings of images and texts'
        yield "```"


def _training(checkpoint: Checkpoint, base: str | None) -> Iterator[str]:
    run = checkpoint.run
    if run is None:
        if base:
            yield f"## Origin\n\nThe parameters are those of `{base}`."
        return
    yield "## Training\n"
    if base:
        yield f"It started from `{base}`.\n"
    yield f"This is step {run.step:,}, of stage `{run.stage}`.\n"
    yield "| stage | length | batch | data | objectives |"
    yield "| - | - | - | - | - |"
    for stage in run.config.get("stages", ()):
        steps, examples = stage.get("steps"), stage.get("examples")
        length = f"{steps:,} steps" if steps is not None else f"{examples or 0:,} examples"
        source = (stage.get("data") or {}).get("source")
        cells = [
            f"`{stage['name']}`",
            length,
            f"{stage.get('batch_size', 0):,}",
            ", ".join(dict.fromkeys(_data_names(source))) or "not recorded",
            ", ".join(stage.get("objectives") or ()),
        ]
        yield _row(cells)


def _data_names(source: Any) -> Iterator[str]:
    """Kind and last name of each source of examples, those within others too."""
    if isinstance(source, list):
        for part in source:
            yield from _data_names(part)
    elif isinstance(source, Mapping):
        inner = [value for value in source.values() if isinstance(value, Mapping | list)]
        nested = [name for value in inner for name in _data_names(value)]
        yield from nested
        if "kind" in source and not nested:
            places = [source[x] for x in PLACE_FIELDS if isinstance(source.get(x), str)]
            last = [re.split(r"[/\\]", place.rstrip("/\\"))[-1] for place in places]
            yield " ".join([source["kind"], *(f"`{name}`" for name in last)])


def _results(scores: Sequence[Score]) -> Iterator[str]:
    if not scores:
        return
    yield "## Results\n"
    yield (
        "Measured with `siglip2 eval`: shares in per cent, other numbers in their units; published "
        "are those of SigLIP 2, arXiv 2502.14786.\n"
    )
    yield "| data set | setting | metric | value | published | protocol |"
    yield "| - | - | - | - | - | - |"
    yield from map(_row, scores)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |"
