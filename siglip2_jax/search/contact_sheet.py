"""Results of searches as one HTML page of thumbnails that refers to no other file."""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Callable, Sequence
from os import PathLike
from string import Template
from typing import NamedTuple

from siglip2_jax.data.prefetch import thread_map
from siglip2_jax.errors import reason_of
from siglip2_jax.outputs import open_output
from siglip2_jax.preprocess.decode import decode
from siglip2_jax.preprocess.thumbnail import data_uri, thumbnail
from siglip2_jax.search.hit_images import read_hit
from siglip2_jax.search.hits import Hit

SIDE = 240
"""Longest side of a thumbnail, in pixels."""

_AHEAD = 16
_LONGEST_ALT = 200

_HEAD = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
 :root { color-scheme: light dark; }
 body { font: 16px/1.4 system-ui, sans-serif; margin: 1rem; }
 ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
   grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
 figure { margin: 0; }
 figure img, .none { max-width: 100%; height: auto; display: block; }
 .none { width: 15rem; padding: 3rem 1rem; box-sizing: border-box; border: 1px dashed;
   text-align: center; }
 figcaption { font-size: 0.875rem; overflow-wrap: anywhere; }
 figcaption p, dl { margin: 0.25rem 0 0; }
 dt, dd { display: inline; margin: 0; }
 dt::after { content: ": "; }
 dd::after { content: "\\A"; white-space: pre; }
 .score { font-variant-numeric: tabular-nums; font-weight: bold; }
</style></head>
<body>
<h1>$title</h1>
""")


class _Thumbnail(NamedTuple):
    """A thumbnail, or what is said in its place."""

    uri: str | None
    width: int
    height: int
    problem: str


def contact_sheet(
    results: Sequence[tuple[str, Sequence[Hit]]],
    path: str | PathLike[str],
    *,
    title: str = "Images by words",
    read: Callable[[str], str | bytes | None] = read_hit,
) -> None:
    """Writes the page, all of it or nothing.

    Args:
      results: queries, in words, with their hits.
      path: the file to write, local or `gs://`.
      title: heading.
      read: gives the path or the bytes of the image file of an id; None where it is not here.

    Raises:
      OSError: the page cannot be written.
    """
    hits = [hit for _, group in results for hit in group]
    thumbnails = thread_map(functools.partial(_shrink, read), hits, _AHEAD)
    with open_output(path) as file:

        def write(text: str) -> None:
            file.write(text.encode("utf-8", "backslashreplace"))

        write(_HEAD.substitute(title=html.escape(title)))
        if len(results) > 1:
            links = (
                f'<li><a href="#q{i}">{html.escape(q)}</a></li>' for i, (q, _) in enumerate(results)
            )
            write(f'<nav aria-label="Queries"><ul>{"".join(links)}</ul></nav>\n')
        for i, (query, group) in enumerate(results):
            write(f'<section aria-labelledby="q{i}"><h2 id="q{i}">{html.escape(query)}</h2>\n')
            write("<ol>\n" if group else "<p>No image was found.</p>\n")
            for hit in group:
                write(_figure(hit, next(thumbnails)))
            write("</ol></section>\n" if group else "</section>\n")
        write("</body></html>\n")


def _shrink(read: Callable[[str], str | bytes | None], hit: Hit) -> _Thumbnail:
    """The thumbnail of a hit, decoded at a fraction of its size where the format can."""
    try:
        source = read(hit.id)
        if source is None:
            return _Thumbnail(None, 0, 0, "the image is not here")
        image = decode(source, name=hit.id, least_size=lambda size: (SIDE, SIDE))
    except (ValueError, OSError, ImportError) as error:
        return _Thumbnail(None, 0, 0, reason_of(error))
    small = thumbnail(image, SIDE)
    return _Thumbnail(data_uri(small), small.width, small.height, "")


def _figure(hit: Hit, small: _Thumbnail) -> str:
    """A hit with its image, in a list."""
    alt = (hit.caption or hit.id)[:_LONGEST_ALT]
    if small.uri is None:
        shown = f'<div class="none">{html.escape(small.problem)}</div>'
    else:
        shown = (
            f'<img src="{small.uri}" alt="{html.escape(alt)}" width="{small.width}" '
            f'height="{small.height}" loading="lazy" decoding="async">'
        )
    caption = f"<p>{html.escape(hit.caption)}</p>" if hit.caption else ""
    rows = {"id": hit.id, "size": f"{hit.width} x {hit.height}", **hit.fields}
    details = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(_text(value))}</dd>"
        for name, value in rows.items()
    )
    return (
        f'<li><figure>{shown}<figcaption><span class="score">score {hit.score:.4f}</span>{caption}'
        f"<dl>{details}</dl></figcaption></figure></li>\n"
    )


def _text(value: object) -> str:
    """A field as a person reads it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
