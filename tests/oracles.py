"""Outputs of the official implementation: in the repository, and more beside the checkout."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

TESTS = Path(__file__).parent
SHIPPED_IMAGES = TESTS.parent / "siglip2_jax" / "demo" / "photos"
SHARED_IMAGES = {"oracle_a": "data/demo_photos", "oracle_b": "data/flickr8k_1k/images"}


class Oracle(NamedTuple):
    """A folder with outputs of a "fixed" and of a "naflex" model, and where its images are."""

    folder: Path
    image_folder: Path

    def config(self, kind: str) -> dict:
        return json.loads((self.folder / f"{kind}.json").read_text(encoding="utf-8"))

    def checkpoint(self, kind: str) -> Path:
        return self.folder / f"{kind}_tiny.npz"

    def expected(self, kind: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{kind}_expected.npz") as file:
            return dict(file)

    def images(self, kind: str) -> list[Path | Image.Image]:
        """Paths, or the pixels of a box where only that is used."""
        config = self.config(kind)
        paths = [self.image_folder / file for file in config["files"]]
        boxes = config.get("boxes") or [None] * len(paths)
        return [
            Image.open(path).crop(box) if box else path
            for path, box in zip(paths, boxes, strict=True)
        ]


def open_oracle(name: str, shared: Path | None = None) -> Oracle:
    """The golden, of images that ship with the package; or an oracle of the development data."""
    if name == "golden":
        return Oracle(TESTS / name, SHIPPED_IMAGES)
    return Oracle(shared / "reference" / name, shared / SHARED_IMAGES[name])
