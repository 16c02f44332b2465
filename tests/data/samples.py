"""Small pictures, examples and preparations that several tests share."""

import io
import tarfile
from dataclasses import dataclass

import numpy as np
from PIL import Image

from siglip2_jax.data.prepare import Prepare, Views
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.tokenizer import Tokenizer

# What a clone holds in place of a large file.
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 375\n"


def picture(seed: int, width: int = 40, height: int = 28, kind: str = "JPEG") -> bytes:
    """An image file of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def write_tar(path, members, format: int = tarfile.PAX_FORMAT) -> None:
    """A tar of names and their data; data that are a `TarInfo` are a member by themselves."""
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = len(data) if isinstance(data, bytes) else 0
            tar.addfile(info, io.BytesIO(data) if info.size else None)


def example(i: int) -> dict:
    """Example i, with i % 3 + 1 captions; its size tells which one it is."""
    captions = tuple(f"picture {i} said in way {way}" for way in range(i % 3 + 1))
    return {"image": picture(i, 40 + i % 7, 28), "captions": captions, "name": f"no {i}", "id": i}


@dataclass(frozen=True)
class Stamp:
    """Notes which example this is and a random draw; adds two crops if asked to."""

    crops: bool = False

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        example["fields"]["id"] = np.array(example.get("id", 0))
        example["fields"]["draw"] = np.array([rng.random(), example["budget"]])
        if self.crops:
            left, top = (int(side) for side in rng.integers(0, 8, 2))
            crops = [example["image"].crop((left, top, left + side, top + 16)) for side in (16, 12)]
            preprocess = ImagePreprocessor(4, None)
            images = tuple(preprocess.to_patches(preprocess.open(crop), 9) for crop in crops)
            example["fields"]["local"] = Views(images, 9)
        return example


def preparation(*transforms, patch_size: int = 4, image_size: int | None = None, **options):
    tokenizer = Tokenizer.load(TOKENIZER, length=12)
    return Prepare(ImagePreprocessor(patch_size, image_size), tokenizer, transforms, **options)
