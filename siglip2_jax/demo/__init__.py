"""A small image-caption set and a tiny model's sizes, shipped with the package.

Images and captions come from COCO 2017: the images are those their authors published on Flickr
under CC BY 2.0 or CC BY-SA 2.0, made smaller here; captions and boxes are COCO's (CC BY 4.0).
`examples.jsonl` credits each image.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from siglip2_jax.data.text import read_rows
from siglip2_jax.models.config import ModelConfig, TextConfig, VisionConfig

HERE = Path(__file__).parent
TOKENIZER = HERE / "tokenizer.model"
"""A SentencePiece model of 1,024 pieces trained on the shipped captions; not Gemma's."""


class Example(NamedTuple):
    """An image with its captions and credit line."""

    image: Path
    captions: tuple[str, ...]
    credit: str


def shipped_examples() -> list[Example]:
    """The images that ship with the package, in a fixed order."""
    return [
        Example(
            HERE / "photos" / row["file"],
            tuple(row["captions"]),
            "{file}: {source}, {license} ({license_url}), made smaller".format_map(row),
        )
        for _, row in read_rows(HERE / "examples.jsonl")
    ]


def tiny_config() -> ModelConfig:
    """A NaFlex model of about a million parameters."""
    return ModelConfig(
        vision=VisionConfig(
            width=128, depth=3, mlp_dim=512, num_heads=4, patch_size=16, grid=16, image_size=None
        ),
        text=TextConfig(
            width=128, depth=3, mlp_dim=512, num_heads=4, vocab_size=1024, embed_dim=128
        ),
    )
