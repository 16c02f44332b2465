"""Sizes of the towers, and the table of everything Google released in this layout.

Sizes follow big_vision's `decode_variant` and its SigLIP / SigLIP 2 READMEs; the released models
pair every vision tower with a text tower of the same shape, except giant-opt, which has the
So400m text tower and a head from 1152 to 1536 (SigLIP 2, arXiv 2502.14786, section 2.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

TEXT_LENGTH = 64

TextPool = Literal["last", "map"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """The transformer both towers are made of.

    Attributes:
      width: D, the size of a token.
      depth: L, the number of blocks; at least 1.
      mlp_dim: hidden size of the MLPs.
      num_heads: H; a head has `width / num_heads` channels.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int

    def __post_init__(self) -> None:
        smallest = min(self.width, self.depth, self.mlp_dim, self.num_heads)
        if smallest < 1:
            raise ValueError(
                f"a tower has width {self.width}, depth {self.depth}, mlp_dim {self.mlp_dim} and "
                f"{self.num_heads} heads; each must be at least 1"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"a tower of width {self.width} cannot be split into {self.num_heads} heads; "
                "num_heads must divide width"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(Tower):
    """The vision tower.

    Attributes:
      patch_size: side of a patch in pixels.
      grid: G, side of the learned position table; resized to each image's patch grid.
      image_size: side of the square input in pixels, or None for native resolution (NaFlex).
    """

    patch_size: int
    grid: int
    image_size: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.patch_size, self.grid) < 1:
            raise ValueError(
                f"the vision tower has patch_size {self.patch_size} and grid {self.grid}; each "
                "must be at least 1"
            )
        if self.image_size is not None and self.image_size < self.patch_size:
            raise ValueError(
                f"images of {self.image_size} pixels hold no patch of {self.patch_size}; image_size"
                " must be at least patch_size, or None for native resolution"
            )

    @property
    def num_patches(self) -> int | None:
        """Patches of an image at fixed resolution (pixels that fill no patch are dropped)."""
        return None if self.image_size is None else (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(Tower):
    """The text tower.

    Attributes:
      vocab_size: rows of the token table.
      embed_dim: E, output size of the head.
      length: T, the only text length the tower accepts.
      pad_id: what fills a text up to `length`: 0 in SigLIP 2, 1 (which is also EOS) in SigLIP 1.
      pool: what the head reads: "last" is the last position, as in all released models; "map" is
        attention pooling over all positions, as the paper says (arXiv 2502.14786, section 2.1).
    """

    vocab_size: int
    embed_dim: int
    length: int = TEXT_LENGTH
    pad_id: int = 0
    pool: TextPool = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.vocab_size, self.embed_dim, self.length) < 1:
            raise ValueError(
                f"the text tower has vocab_size {self.vocab_size}, embed_dim {self.embed_dim} and "
                f"length {self.length}; each must be at least 1"
            )
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(
                f"pad_id is {self.pad_id}; it must be one of the {self.vocab_size} token ids"
            )
        if self.pool not in get_args(TextPool):
            raise ValueError(
                f"the text tower cannot pool by {self.pool!r}; choose one of "
                + ", ".join(get_args(TextPool))
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shapes of a two-tower model's parameters."""

    vision: VisionConfig
    text: TextConfig

    def __post_init__(self) -> None:
        if self.text.embed_dim != self.vision.width:
            raise ValueError(
                f"text embeddings have {self.text.embed_dim} values and image embeddings "
                f"{self.vision.width}, which cannot be compared; set text.embed_dim to "
                f"{self.vision.width}, the width of the vision tower"
            )

    @property
    def native_resolution(self) -> bool:
        """True for NaFlex models, which keep the aspect ratio and take any number of patches."""
        return self.vision.image_size is None

    def to_json(self) -> dict[str, Any]:
        """Plain nested dicts, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_json`."""
        return cls(vision=VisionConfig(**data["vision"]), text=TextConfig(**data["text"]))


B = Tower(width=768, depth=12, mlp_dim=3072, num_heads=12)
L = Tower(width=1024, depth=24, mlp_dim=4096, num_heads=16)
SO400M = Tower(width=1152, depth=27, mlp_dim=4304, num_heads=16)
G_OPT = Tower(width=1536, depth=40, mlp_dim=6144, num_heads=16)

SIZES: dict[str, tuple[Tower, Tower]] = {
    "B": (B, B),
    "L": (L, L),
    "So400m": (SO400M, SO400M),
    "g-opt": (G_OPT, SO400M),
}
"""Vision and text tower of each size."""


def two_towers(
    size: str,
    *,
    patch_size: int,
    image_size: int | None,
    vocab_size: int = 256_000,
    text_length: int = TEXT_LENGTH,
    pad_id: int = 0,
) -> ModelConfig:
    """The model of a published size; native resolution (a 16x16 table) if `image_size` is None.

    Raises:
      ValueError: there is no such size, or a number does not fit it.
    """
    if size not in SIZES:
        raise ValueError(
            f"there is no size {size!r}; choose one of {', '.join(SIZES)}, or write a ModelConfig "
            "with your own numbers"
        )
    vision, text = SIZES[size]
    grid = 16 if image_size is None else image_size // patch_size
    return ModelConfig(
        vision=VisionConfig(
            **dataclasses.asdict(vision), patch_size=patch_size, grid=grid, image_size=image_size
        ),
        text=TextConfig(
            **dataclasses.asdict(text),
            vocab_size=vocab_size,
            embed_dim=vision.width,
            length=text_length,
            pad_id=pad_id,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """A released model.

    Attributes:
      name: short name, such as "B/16 256".
      npz: official file name without `.npz`, in `gs://big_vision/siglip2/` (or `siglip/`).
      hf: Hugging Face repository.
      config: sizes.
      family: 1 for SigLIP (2023), 2 for SigLIP 2 (2025).
    """

    name: str
    npz: str
    hf: str
    config: ModelConfig
    family: int = 2


def _siglip2(size: str, patch: int, image_size: int | None, npz: str, hf: str) -> Variant:
    resolution = "NaFlex" if image_size is None else image_size
    config = two_towers(size, patch_size=patch, image_size=image_size)
    return Variant(f"{size}/{patch} {resolution}", f"siglip2_{npz}", f"google/siglip2-{hf}", config)


def _siglip1(
    size: str, patch: int, image_size: int, npz: str, hf: str, text_length: int = TEXT_LENGTH
) -> Variant:
    config = two_towers(
        size,
        patch_size=patch,
        image_size=image_size,
        vocab_size=32_000,
        text_length=text_length,
        pad_id=1,
    )
    name = f"SigLIP {size}/{patch} {image_size}"
    return Variant(name, f"webli_en_{npz}", f"google/siglip-{hf}", config, family=1)


RELEASES: tuple[Variant, ...] = (
    _siglip2("B", 32, 256, "b32_256", "base-patch32-256"),
    _siglip2("B", 16, 224, "b16_224", "base-patch16-224"),
    _siglip2("B", 16, 256, "b16_256", "base-patch16-256"),
    _siglip2("B", 16, 384, "b16_384", "base-patch16-384"),
    _siglip2("B", 16, 512, "b16_512", "base-patch16-512"),
    _siglip2("L", 16, 256, "l16_256", "large-patch16-256"),
    _siglip2("L", 16, 384, "l16_384", "large-patch16-384"),
    _siglip2("L", 16, 512, "l16_512", "large-patch16-512"),
    _siglip2("So400m", 14, 224, "so400m14_224", "so400m-patch14-224"),
    _siglip2("So400m", 14, 384, "so400m14_384", "so400m-patch14-384"),
    _siglip2("So400m", 16, 256, "so400m16_256", "so400m-patch16-256"),
    _siglip2("So400m", 16, 384, "so400m16_384", "so400m-patch16-384"),
    _siglip2("So400m", 16, 512, "so400m16_512", "so400m-patch16-512"),
    _siglip2("g-opt", 16, 256, "g-opt16_256", "giant-opt-patch16-256"),
    _siglip2("g-opt", 16, 384, "g-opt16_384", "giant-opt-patch16-384"),
    _siglip2("B", 16, None, "b16_naflex", "base-patch16-naflex"),
    _siglip2("So400m", 16, None, "so400m16_naflex", "so400m-patch16-naflex"),
)
"""The 17 SigLIP 2 releases."""

SIGLIP1_RELEASES: tuple[Variant, ...] = (
    _siglip1("B", 16, 224, "b16_224_63724782", "base-patch16-224"),
    _siglip1("B", 16, 256, "b16_256_60500360", "base-patch16-256"),
    _siglip1("B", 16, 384, "b16_384_68578854", "base-patch16-384"),
    _siglip1("B", 16, 512, "b16_512_68580893", "base-patch16-512"),
    _siglip1("L", 16, 256, "l16_256_60552751", "large-patch16-256"),
    _siglip1("L", 16, 384, "l16_384_63634585", "large-patch16-384"),
    _siglip1("So400m", 14, 224, "so400m_224_57633886", "so400m-patch14-224", 16),
    _siglip1("So400m", 14, 384, "so400m_384_58765454", "so400m-patch14-384"),
)
"""SigLIP 1's English releases: same layout, 32,000 tokens, padded with id 1. Texts have 64 tokens,
16 in So400m/14 224."""


def find_variant(config: ModelConfig) -> Variant | None:
    """The release with exactly these sizes, if there is one."""
    return next((v for v in RELEASES + SIGLIP1_RELEASES if v.config == config), None)
