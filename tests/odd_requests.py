"""Requests that no friendly client sends, in a sequence that a seed decides."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from served import JSON, request

from siglip2_jax.demo import shipped_examples

GOOD = {"input": ["a cat"], "encoding_format": "float"}


class Case(NamedTuple):
    """A request: its kind, its bytes, and the manner of the client."""

    kind: str
    data: bytes
    manner: str = "plain"  # or slow, half (closes its side), leave (does not wait)


def to_bytes(image: Image.Image, format: str, **options: Any) -> bytes:
    """An encoded image."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_of_size(width: int, height: int, rows: int | None = None) -> bytes:
    """A black PNG of two colours, of which only so many rows are written, or all."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = bytes(1 + (width + 7) // 8)
    pixels = zlib.compress(row * (height if rows is None else rows), 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def make_images() -> dict[str, bytes]:
    """Images by the name of what is special about them."""
    jpeg = shipped_examples()[0].image.read_bytes()
    grey = Image.new("L", (64, 48), 99)
    frames = [Image.new("P", (64, 64), i) for i in range(50)]
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    return {
        "jpeg": jpeg,
        "one pixel": to_bytes(Image.new("RGB", (1, 1)), "PNG"),
        "12,000 x 12,000": png_of_size(12000, 12000),
        "12,000 x 5,000": png_of_size(12000, 5000),
        "12,000 x 1": to_bytes(Image.new("L", (12000, 1)), "PNG"),
        "1 x 12,000": to_bytes(Image.new("L", (1, 12000)), "PNG"),
        "PNG bomb": png_of_size(30000, 30000),
        "PNG of 2^31": png_of_size(2**31 - 1, 2**31 - 1, rows=0),
        "PNG of 0": png_of_size(0, 0),
        "PNG without pixels": png_of_size(500, 500, rows=9),
        "GIF of 65,535": b"GIF89a\xff\xff\xff\xff\x00\x00\x00" + to_bytes(grey, "GIF")[13:],
        "GIF of 50 frames": to_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "16 bits": to_bytes(Image.new("I;16", (50, 40), 999), "PNG"),
        "CMYK": to_bytes(Image.new("CMYK", (50, 40)), "JPEG"),
        "alpha": to_bytes(Image.fromarray(noise, "RGBA"), "PNG"),
        "TIFF": to_bytes(grey, "TIFF"),
        "WebP": to_bytes(grey, "WEBP"),
        "cut": jpeg[: len(jpeg) // 2],
        "header alone": jpeg[:30],
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "text": b"no image",
        "nothing": b"",
    }


def post(path: str, body: Any) -> bytes:
    """A request that the server closes the connection after."""
    return request("POST", path, body, {**JSON, "Connection": "close"})


def image_cases(draw: random.Random, images: dict[str, bytes]) -> Case:
    """An image of any kind, at times damaged, in any of the forms that carry images."""
    name = draw.choice(sorted(images))
    data = images[name]
    if data and draw.random() < 0.3:
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 20)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        name, data = "damaged", bytes(damaged)
    text = base64.b64encode(data).decode()
    uri = f"data:image/{draw.choice(['png', 'jpeg', 'x-none'])};base64,{text}"
    content = [{"type": "image_url", "image_url": {"url": uri}}]
    path, body = draw.choice(
        [
            ("/v1/embeddings", {"input": [{"image": draw.choice([text, uri])}]}),
            ("/v1/embeddings", {"input": [{"text": "a cat"}, {"image": uri}]}),
            ("/v1/embeddings", {"input": [uri], "modality": "image"}),
            ("/v1/embeddings", {"messages": [{"role": "user", "content": content}]}),
            ("/v1/classify", {"images": [uri], "labels": ["a cat", "a dog"]}),
            ("/v1/classify", {"images": [{"image": text}, uri], "labels": ["a cat"]}),
            ("/v1/rerank", {"query": "a cat", "documents": [{"image": text}, {"image": uri}]}),
            ("/v1/search", {"image": draw.choice([text, uri])}),
        ]
    )
    return Case(f"image: {name}", post(path, body))


def wrong_value(draw: random.Random, depth: int = 0) -> Any:
    """Any value of JSON."""
    leaf = [None, True, -1, 0, 2**63, 1e308, "", "a", "\ud800", "\0", "a" * 5000, [], {}]
    if depth > 2 or draw.random() < 0.6:
        return draw.choice(leaf)
    if draw.random() < 0.5:
        return [wrong_value(draw, depth + 1) for _ in range(draw.randint(1, 4))]
    names = ["text", "image", "url", "type", "content", "role", "input"]
    return {draw.choice(names): wrong_value(draw, depth + 1) for _ in range(2)}


def type_cases(draw: random.Random, images: dict[str, bytes]) -> Case:
    """A valid body of which some fields have other values."""
    uri = "data:image/png;base64," + base64.b64encode(images["one pixel"]).decode()
    path, body = draw.choice(
        [
            ("/v1/embeddings", {"input": "a cat", "encoding_format": "float"}),
            ("/v1/embeddings", {"input": ["a cat"], "dimensions": 8, "modality": "text"}),
            ("/v1/embeddings", {"messages": [{"role": "user", "content": "a"}], "model": "m"}),
            ("/v1/classify", {"images": [uri], "labels": ["a"], "templates": ["{}"]}),
            ("/v1/classify", {"images": [uri], "label_set": "a", "max_num_patches": 64}),
            ("/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}),
            ("/v1/search", {"query": "a", "k": 3, "where": "width > 3", "threshold": 0.1}),
        ]
    )
    for name in draw.sample(sorted(body), draw.randint(1, len(body))):
        body[name] = wrong_value(draw)
    return Case("wrong types", post(path, body))


def text_cases(draw: random.Random, images: dict[str, bytes]) -> Case:
    """Texts and token ids, right and wrong, few and many."""
    name, value = draw.choice(
        [
            ("text", "a cat"),
            ("texts", ["a cat"] * draw.randint(1, 40)),
            ("different texts", [f"a cat {draw.random()}" for _ in range(8)]),
            ("token ids", [draw.randrange(1000) for _ in range(draw.randint(1, 80))]),
            ("lists of token ids", [[1, 2, 3], [4]]),
            ("token ids out of range", [draw.choice([-1, 10**6, 2**40])]),
            ("100,000 texts", ["a"] * 100_000),
            ("500,000 token ids", [1] * 500_000),
            ("a text of 1 MB", "cat " * 250_000),
            ("odd characters", "\0 \u202e \U0001f408 \ufffe e\u0301"),
            ("ragged", [[1], "a", {"text": "a"}]),
        ]
    )
    return Case(f"input: {name}", post("/v1/embeddings", {"input": value}))


def json_cases(draw: random.Random, images: dict[str, bytes]) -> Case:
    """Bodies that are no JSON, or JSON of an odd kind."""
    name, body = draw.choice(
        [
            ("no JSON", b"{"),
            ("not UTF-8", b'{"input": "\xff\xfe"}'),
            ("NaN", b'{"input": [NaN, Infinity]}'),
            ("deep list", b'{"input": ' + b"[" * 100_000),
            ("deep closed list", b'{"input": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
            ("deep object", b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
            ("long number", b'{"input": [' + b"9" * 10_000 + b"]}"),
            ("lone surrogate", b'{"input": "\\ud800"}'),
            ("same name twice", b'{"input": "a", "input": ["b"]}'),
            ("nothing", b""),
        ]
    )
    path = draw.choice(["/v1/embeddings", "/v1/classify", "/v1/rerank", "/v1/search"])
    return Case(f"JSON: {name}", post(path, body))


def search_cases(draw: random.Random, images: dict[str, bytes]) -> Case:
    """Searches with conditions, right and wrong, some of which would take long or much memory."""
    name, where = draw.choice(
        [
            ("none", None),
            ("plain", f"width > {draw.randrange(999)} AND caption LIKE '%a%'"),
            ("no row", "width < 0"),
            ("nothing", ""),
            ("no such column", "secret = 1"),
            ("no condition", "width"),
            ("division by 0", "width / 0 > 1"),
            ("long text", "length(repeat('a', 2000000000)) > 1"),
            ("long list", "array_length(range(0, 1000000000)) > 1"),
            ("quoted function", "\"length\"(`repeat` ('a', 2000000000)) > 1"),
            ("hidden function", "length--\n(repeat/**/('a', 2000000000)) > 1"),
            ("subquery", "width IN (SELECT 1)"),
            ("second statement", "true; DROP TABLE items"),
            ("literal that panics", "caption != N'a'"),
            ("parentheses", "(" * 900 + "true" + ")" * 900),
            ("NOT", "NOT " * 450 + "true"),
            ("OR", " OR ".join(["width > 3"] * 150)),
            ("OR without end", " OR ".join(["width > 3"] * 50_000)),
            ("wildcards", "caption LIKE '" + "%a" * 900 + "'"),
            ("lone surrogate", "caption = '\ud800'"),
            ("zero", "caption = '\0'"),
        ]
    )
    body = {"query": "a cat", "k": draw.choice([1, 10, 1000]), "where": where}
    if draw.random() < 0.3:
        body["threshold"] = draw.choice([-1, -0.5, 0, 0.5, 1])
    return Case(f"where: {name}", post("/v1/search", body))


def http_cases(draw: random.Random, images: dict[str, bytes]) -> Case:
    """Requests that are odd as such: addresses, methods, headers, URLs to fetch."""
    good = json.dumps(GOOD).encode()
    close = {**JSON, "Connection": "close"}
    url = draw.choice(["http://169.254.169.254/x", "file:///etc/passwd", "https://localhost/a"])
    fetched = {"input": [{"image": url}]}
    return draw.choice(
        [
            Case("URL", post("/v1/embeddings", fetched)),
            Case("no such path", request("GET", "/" + "a/" * draw.randint(1, 999), None, close)),
            Case("path up", request("GET", "/../../../etc/passwd", None, close)),
            Case("method", request("DELETE", "/v1/embeddings", None, close)),
            Case("content type", request("POST", "/v1/embeddings", good, {"Connection": "close"})),
            Case("long header", request("GET", "/health", None, {**close, "X": "a" * 100_000})),
            Case("no HTTP", bytes(draw.randrange(256) for _ in range(200)) + b"\r\n\r\n"),
            Case("length", request("POST", "/v1/embeddings", good, {"Content-Length": "1" * 12})),
            Case("length", request("POST", "/v1/embeddings", good, {"Content-Length": "-5"})),
            Case("metrics", request("GET", "/metrics", None, close)),
        ]
    )


def client_cases(draw: random.Random, images: dict[str, bytes]) -> Case:
    """Clients that are slow, stop half way, or leave."""
    uri = "data:image/jpeg;base64," + base64.b64encode(images["jpeg"]).decode()
    body = draw.choice([GOOD, {"input": [{"image": uri}]}])
    manner = draw.choice(["slow", "half", "leave", "late leave"])
    return Case(f"client: {manner}", post("/v1/embeddings", body), manner)


KINDS: dict[Callable[[random.Random, dict[str, bytes]], Case], int] = {
    image_cases: 4,
    type_cases: 3,
    text_cases: 2,
    json_cases: 2,
    search_cases: 2,
    http_cases: 2,
    client_cases: 2,
}


def odd_requests(count: int, seed: int = 0) -> Iterator[Case]:
    """The requests: of each family as many as its weight says, in random order."""
    draw = random.Random(seed)
    images = make_images()
    for family in draw.choices(list(KINDS), list(KINDS.values()), k=count):
        yield family(draw, images)
