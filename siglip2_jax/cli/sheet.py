"""A similarity sheet: every image against every text, as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from string import Template

import numpy as np
from jaxtyping import Float
from PIL import Image

from siglip2_jax.preprocess.thumbnail import data_uri, thumbnail

THUMBNAIL = 112

_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
 body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
 p { max-width: 60rem; }
 table { border-collapse: collapse; }
 th, td { padding: 2px; text-align: center; font-size: 11px; }
 th.text { text-align: right; font-weight: normal; min-width: 16rem; padding-right: 8px;
   position: sticky; left: 0; background: #fff; }
 td { min-width: 3.2rem; height: 1.6rem; font-variant-numeric: tabular-nums; }
 td.own { outline: 2px solid #222; outline-offset: -2px; }
 thead th { vertical-align: bottom; }
 small { color: #666; }
</style>
<h1>$title</h1>
<p>$summary</p>
<table><thead><tr><th></th>$images</tr></thead><tbody>
$rows
</tbody></table>
<p><small>$credits</small></p>
</html>
""")


def similarity_sheet(
    images: Sequence[Image.Image],
    texts: Sequence[str],
    similarity: Float[np.ndarray, "I J"],
    *,
    title: str,
    summary: str,
    credits: Sequence[str] = (),
) -> str:
    """Draws the sheet.

    Colours run from the table's lowest to its highest value. Cell (i, i) is outlined: image i and
    text i belong together.

    Args:
      images: images, shown as thumbnails.
      texts: captions.
      similarity: cosine, logit or probability of each pair.
      title: heading.
      summary: a sentence under it.
      credits: a line per image.

    Returns:
      HTML that refers to no other file.
    """
    low, high = float(np.min(similarity)), float(np.max(similarity))
    shade = (similarity - low) / max(high - low, 1e-12)
    rows = []
    for j, text in enumerate(texts):
        cells = "".join(
            f'<td{" class=own" * (i == j)} style="background:{_colour(float(shade[i, j]))}">'
            f"{similarity[i, j]:.2f}</td>"
            for i in range(len(images))
        )
        rows.append(f'<tr><th class="text">{html.escape(text)}</th>{cells}</tr>')
    return _PAGE.substitute(
        title=html.escape(title),
        summary=html.escape(summary),
        images="".join(
            f'<th><img src="{data_uri(thumbnail(image, THUMBNAIL))}" alt=""></th>'
            for image in images
        ),
        rows="\n".join(rows),
        credits="<br>".join(html.escape(line) for line in credits),
    )


def _colour(shade: float) -> str:
    """White to blue."""
    return f"rgb({255 - 190 * shade:.0f},{255 - 120 * shade:.0f},{255 - 30 * shade:.0f})"
