"""Load on a server: requests as users send them, and clients that send them."""

from __future__ import annotations

import asyncio
import base64
import collections
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from served import Connection

from siglip2_jax.demo import shipped_examples

IMAGES = [base64.b64encode(x.image.read_bytes()).decode() for x in shipped_examples()]
WORDS = sorted({word for x in shipped_examples() for text in x.captions for word in text.split()})


class Call(NamedTuple):
    """A request, and the status that it has to get."""

    kind: str
    path: str
    body: Any
    status: int = 200


def text(draw: random.Random) -> str:
    """A text that no other request has."""
    return " ".join(draw.choices(WORDS, k=8))


def text_call(draw: random.Random, budget: int) -> Call:
    """Embedding of a text."""
    return Call("text", "/v1/embeddings", {"input": text(draw)})


def image_call(draw: random.Random, budget: int) -> Call:
    """Embedding of an image."""
    body = {"input": [{"image": draw.choice(IMAGES)}], "max_num_patches": budget}
    return Call("image", "/v1/embeddings", body)


def mixed_call(draw: random.Random, budget: int) -> Call:
    """A request as many users together send it; two in a hundred have to be refused."""
    labels = ["a dog", "a cat", "people at a table", "a street", "a boat"]
    image = {"image": draw.choice(IMAGES)}
    classified = {"images": [image], "labels": labels, "max_num_patches": budget}
    texts = {"input": [text(draw) for _ in range(draw.randint(2, 16))]}
    mix = {"input": [{"text": text(draw)}, image], "max_num_patches": budget}
    reranked = {"query": text(draw), "documents": [image, {"image": draw.choice(IMAGES)}]}
    reranked["max_num_patches"] = budget
    damaged = {"input": [{"image": image["image"][:400]}]}
    calls = [
        (35, text_call(draw, budget)),
        (15, Call("texts", "/v1/embeddings", texts)),
        (20, image_call(draw, budget)),
        (10, Call("text and image", "/v1/embeddings", mix)),
        (13, Call("classify", "/v1/classify", classified)),
        (5, Call("rerank", "/v1/rerank", reranked)),
        (1, Call("damaged image", "/v1/embeddings", damaged, 400)),
        (1, Call("wrong type", "/v1/embeddings", {"input": 5}, 400)),
    ]
    weights, choices = zip(*calls, strict=True)
    return draw.choices(choices, weights)[0]


class Client:
    """A client that sends one request after the other; it connects again where it must.

    Attributes:
      seconds: of each request, by kind.
      wrong: what came instead of the status that had to come.
      sent: requests so far.
    """

    def __init__(self, port: int):
        self.port = port
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.wrong: collections.Counter[str] = collections.Counter()
        self.sent = 0

    async def run(self, calls: Iterator[Call]) -> None:
        """Sends all requests, or those until nobody listens any more."""
        connection: Connection | None = None
        for call in calls:
            try:
                connection = connection or await Connection.open(self.port)
            except ConnectionError:
                return
            self.sent += 1
            start = time.perf_counter()
            try:
                answer = await connection.ask("POST", call.path, call.body)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.wrong[f"{call.kind}: {type(error).__name__}"] += 1
                connection = None
                continue
            self.seconds[call.kind].append(time.perf_counter() - start)
            if answer.status != call.status:
                self.wrong[f"{call.kind}: {answer.status} {answer.body[:120]!r}"] += 1
            if answer.headers.get("connection") == "close":
                connection.writer.close()
                connection = None
        if connection:
            connection.writer.close()
