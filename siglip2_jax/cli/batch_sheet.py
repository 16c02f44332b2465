"""Batches as one HTML page: the images that the model gets, drawn from their patches."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from string import Template

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw

from siglip2_jax.data.regions import Box
from siglip2_jax.data.targets import Parsed
from siglip2_jax.preprocess.thumbnail import data_uri
from siglip2_jax.types import Batch, Patches

GRID = (255, 64, 64)
BOX = (64, 255, 64)

_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
 body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
 section { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
 figure { margin: 0; max-width: 18rem; }
 figure img { max-width: 18rem; max-height: 18rem; }
 figcaption { font-size: 12px; overflow-wrap: anywhere; }
 td, th { padding: 2px 12px 2px 0; text-align: right; font-variant-numeric: tabular-nums; }
 small { color: #666; }
</style>
<h1>$title</h1>
$body
</html>
""")


def draw_patches(
    pixels: Float[np.ndarray, "N P"], yx: Int[np.ndarray, "N 2"], valid: Bool[np.ndarray, " N"]
) -> Image.Image:
    """The image that patches hold, with the lines between them.

    Args:
      pixels: in [-1, 1], each patch flattened as (row, column, channel).
      yx: row and column of each patch.
      valid: false for padding, which is not drawn.
    """
    side = math.isqrt(pixels.shape[1] // 3)
    rows, columns = yx[valid].max(axis=0, initial=0) + 1
    canvas = np.full((rows * side, columns * side, 3), 128, np.uint8)
    shown = pixels[valid].astype(np.float32)
    levels = np.clip(np.rint((shown + 1) * 127.5), 0, 255).astype(np.uint8)
    for (y, x), patch in zip(yx[valid], levels.reshape(-1, side, side, 3), strict=True):
        canvas[y * side : (y + 1) * side, x * side : (x + 1) * side] = patch
    image = Image.fromarray(canvas)
    lines = ImageDraw.Draw(image)
    for y in range(side, rows * side, side):
        lines.line([(0, y), (image.width, y)], fill=GRID)
    for x in range(side, columns * side, side):
        lines.line([(x, 0), (x, image.height)], fill=GRID)
    return image


def lengths(batch: Batch, pad_id: int) -> dict[str, float]:
    """Statistics of valid lengths in a batch.

    Args:
      batch: NumPy arrays.
      pad_id: the id of the text's padding.

    Returns:
      `patches` (mean valid patches of an image), `patches_used` (as a share of the budget),
      `text_tokens` (mean, with the end mark) and `texts_full` (the share of texts without any
      padding, most of which were cut).
    """
    patches = np.asarray(batch.image.valid).sum(axis=1)
    tokens = np.sum(np.asarray(batch.text) != pad_id, axis=1)
    return {
        "patches": float(patches.mean()),
        "patches_used": float(patches.mean() / batch.image.valid.shape[1]),
        "text_tokens": float(tokens.mean()),
        "texts_full": float(np.mean(tokens == batch.text.shape[1])),
    }


def batch_sheet(
    batches: Mapping[int, Batch],
    texts: Mapping[int, Sequence[str]],
    pad_id: int,
    title: str,
    targets: Mapping[int, Sequence[Sequence[Parsed]]] | None = None,
) -> str:
    """Draws the page.

    Args:
      batches: a batch of NumPy arrays for each token budget; `Patches` in `fields` are drawn too.
      texts: its texts, decoded from the ids, for each budget.
      pad_id: the id of the text's padding.
      title: heading.
      targets: what a captioning decoder is to write of each example, for each budget; boxes are
        drawn.

    Returns:
      HTML that refers to no other file.
    """
    rows = "".join(
        f"<tr><td>{budget}</td>"
        + "".join(f"<td>{value:.3g}</td>" for value in lengths(batch, pad_id).values())
        + "</tr>"
        for budget, batch in batches.items()
    )
    heads = "budget", "patches", "of the budget", "text tokens", "texts without padding"
    table = "".join(f"<th>{name}</th>" for name in heads)
    parts = [f"<table><tr>{table}</tr>{rows}</table>"]
    for budget, batch in batches.items():
        example_targets = (targets or {}).get(budget) or [()] * len(texts[budget])
        figures = "".join(
            _figure(batch, i, text, parsed)
            for i, (text, parsed) in enumerate(zip(texts[budget], example_targets, strict=True))
        )
        parts.append(f"<h2>{budget} patches</h2>\n<section>{figures}</section>")
    return _PAGE.substitute(title=html.escape(title), body="\n".join(parts))


def _figure(batch: Batch, i: int, text: str, targets: Sequence[Parsed]) -> str:
    drawing = _draw(batch.image, i)
    _draw_boxes(drawing, [target.box for target in targets if target.box])
    yx, valid = np.asarray(batch.image.yx)[i], np.asarray(batch.image.valid)[i]
    rows, columns = yx[valid].max(axis=0, initial=0) + 1
    views = [
        (name, _draw(value, (i, v)))
        for name, value in batch.fields.items()
        if isinstance(value, Patches)
        for v in range(value.valid.shape[1])
    ]
    small = "".join(
        f'<img src="{data_uri(view)}" alt="{html.escape(name)}">' for name, view in views
    )
    lines = "".join(f"<br>{html.escape(_line(target))}" for target in targets if target.text)
    return (
        f'<figure><img src="{data_uri(drawing)}" alt="">{small}<figcaption>{html.escape(text)}'
        f"<br><small>{rows} x {columns} patches{lines}</small></figcaption></figure>"
    )


def _draw(patches: Patches, place: int | tuple[int, int]) -> Image.Image:
    """The image at a place of a batch."""
    arrays = (patches.pixels, patches.yx, patches.valid)
    return draw_patches(*(np.asarray(array)[place] for array in arrays))


def _draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> None:
    draw = ImageDraw.Draw(image)
    for ymin, xmin, ymax, xmax in boxes:
        right, bottom = image.width - 1, image.height - 1
        draw.rectangle((xmin * right, ymin * bottom, xmax * right, ymax * bottom), outline=BOX)


def _line(target: Parsed) -> str:
    box = " ".join(f"{side:.3f}" for side in target.box or ())
    return f"{target.task}: {target.text}" + (f" [{box}]" if box else "")
