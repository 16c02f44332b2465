"""Makes the images that ship with the package from a local copy of COCO images with licences.

Keeps images under CC BY or CC BY-SA, makes their long side 320 pixels, and writes captions, boxes
and credits beside them.

    python scripts/make_demo_photos.py COCO_DIR --out siglip2_jax/demo

COCO_DIR holds `images/` and `annotations.jsonl` with `file`, `license`, `license_url`,
`flickr_url`, `captions`, `width`, `height` and `boxes`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image

from siglip2_jax.data.regions import Region, from_coco
from siglip2_jax.data.text import read_rows

LICENSES = {
    "Attribution License": "CC BY 2.0",
    "Attribution-ShareAlike License": "CC BY-SA 2.0",
}
LONG_SIDE = 320


def to_json(region: Region) -> dict[str, Any]:
    """A region with the digits that images of this size can bear."""
    return region.as_dict() | {"box": [round(x, 4) for x in region.box]}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("coco", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    (args.out / "photos").mkdir(parents=True, exist_ok=True)
    lines = []
    for _, row in read_rows(args.coco / "annotations.jsonl"):
        if row["license"] not in LICENSES:
            continue
        with Image.open(args.coco / "images" / row["file"]) as image:
            image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
            image.convert("RGB").save(args.out / "photos" / row["file"], quality=85)
        lines.append(
            {
                "file": row["file"],
                "captions": row["captions"],
                "regions": [to_json(region) for region in from_coco(row)],
                "source": row["flickr_url"],
                "license": LICENSES[row["license"]],
                "license_url": row["license_url"],
            }
        )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (args.out / "examples.jsonl").write_text(text, encoding="utf-8")
    print(f"wrote {len(lines)} images")


if __name__ == "__main__":
    main()
