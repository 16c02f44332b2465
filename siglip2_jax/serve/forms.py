"""Forms that requests have in the wild, read into texts, token ids and images.

Everything is checked by hand, for errors of one sentence about the one thing that is wrong.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from siglip2_jax.serve.errors import ApiError, bad
from siglip2_jax.serve.settings import Settings


class Text(NamedTuple):
    """A text to embed."""

    text: str


class Tokens(NamedTuple):
    """A text as ids of the model's tokenizer, without padding."""

    ids: list[int]


class Image(NamedTuple):
    """An encoded image, and its place in the request."""

    data: bytes
    param: str


class Link(NamedTuple):
    """An image to fetch, and its place in the request."""

    url: str
    param: str


Item = Text | Tokens | Image | Link

_DATA_URI = re.compile(r"data:([\w.+/-]*)(;[\w.+=-]+)*?;base64,", re.ASCII)
_LINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_IMAGE_KEYS = ("image", "image_url", "url")


class Reader:
    """Reader of all forms, within the limits of a server."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def inputs(self, value: Any, modality: str) -> list[Item]:
        """Items of `input`: OpenAI's and infinity's strings and ids, Jina's mappings.

        Args:
          value: the field.
          modality: what strings are: "text", or "image" for base64, data URIs or links.
        """
        if isinstance(value, str | dict):
            return [self.item(value, "input", modality)]
        values = self.several(value, "input", "a string, token ids, or a list of inputs")
        if all(type(x) is int for x in values):
            return [self._tokens(values, "input")]
        return [self.item(x, f"input[{i}]", modality) for i, x in enumerate(values)]

    def item(self, value: Any, param: str, modality: str = "text") -> Item:
        """One item: a string, token ids, `{"text": …}` or `{"image": …}`."""
        if isinstance(value, str):
            return self.image(value, param) if modality == "image" else self.text(value, param)
        if isinstance(value, dict):
            if "text" in value:
                return self.text(value["text"], f"{param}.text")
            return self.image(value, param)
        if isinstance(value, list) and modality == "text":
            return self._tokens(value, param)
        raise bad(
            f"{param} is {_kind(value)}; expected a string, a list of token ids, "
            '{"text": …} or {"image": …}',
            param,
        )

    def items(self, value: Any, param: str) -> list[Item]:
        """Several items."""
        values = self.several(value, param, 'a list of strings, {"text": …} or {"image": …}')
        return [self.item(x, f"{param}[{i}]") for i, x in enumerate(values)]

    def images(self, value: Any, param: str) -> list[Item | ApiError]:
        """Images, one or several; what is no image gives an error in its place."""
        if isinstance(value, str | dict):
            value = [value]
        items: list[Item | ApiError] = []
        for i, x in enumerate(self.several(value, param, "an image or a list of images")):
            try:
                items.append(self.image(x, f"{param}[{i}]"))
            except ApiError as error:
                items.append(error)
        return items

    def messages(self, value: Any) -> Item:
        """The one item of vLLM's `messages`: a text, or an image."""
        parts = []
        for i, message in enumerate(self.several(value, "messages", "a list of messages")):
            param = f"messages[{i}].content"
            if not isinstance(message, dict) or "content" not in message:
                raise bad(f"messages[{i}] has no content; expected a text or parts", param)
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            if not isinstance(content, list):
                raise bad(f"{param} is {_kind(content)}; expected a string or a list", param)
            parts += [(part, f"{param}[{j}]") for j, part in enumerate(content)]
        if len(parts) != 1:
            raise bad(
                f"messages hold {len(parts)} parts; expected exactly one text or image, which "
                "gives one embedding; use `input` for several",
                "messages",
            )
        part, param = parts[0]
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise bad(f'{param} has no type; expected "text" or "image_url"', param)
        return self.item({k: x for k, x in part.items() if k != "type"}, param)

    def text(self, value: Any, param: str) -> Text:
        """A text, not empty and not too long."""
        if not isinstance(value, str):
            raise bad(f"{param} is {_kind(value)}; expected a text", param)
        if not value:
            raise bad(f"{param} is empty; expected a text", param)
        if len(value) > (most := self._settings.max_text_chars):
            raise bad(f"{param} has {len(value)} characters; the limit is {most}", param)
        if any("\ud800" <= x <= "\udfff" for x in value):
            raise bad(f"{param} holds half of a surrogate pair, which is no text", param)
        return Text(value)

    def texts(self, value: Any, param: str) -> list[str]:
        """Several texts."""
        values = self.several(value, param, "a list of texts")
        return [self.text(x, f"{param}[{i}]").text for i, x in enumerate(values)]

    def image(self, value: Any, param: str) -> Image | Link:
        """An image: base64, a data URI, a link, or one of these in a mapping."""
        for _ in range(2):  # {"image_url": {"url": …}}
            if isinstance(value, dict):
                key = next((key for key in _IMAGE_KEYS if key in value), None)
                if key is None:
                    raise bad(f'{param} has no image; expected {{"image": …}}', param)
                value, param = value[key], f"{param}.{key}"
        if not isinstance(value, str):
            raise bad(f"{param} is {_kind(value)}; expected an image as base64", param)
        if _LINK.match(value):
            return Link(value, param)
        return Image(self._decode(value, param), param)

    def several(self, value: Any, param: str, expected: str) -> list[Any]:
        """A list that is neither empty nor too long."""
        if not isinstance(value, list):
            raise bad(f"{param} is {_kind(value)}; expected {expected}", param)
        if not value:
            raise bad(f"{param} is empty; expected {expected}", param)
        if len(value) > (most := self._settings.max_items) and type(value[0]) is not int:
            raise bad(f"{param} has {len(value)} items; the limit is {most}", param)
        return value

    def _tokens(self, value: Sequence[Any], param: str) -> Tokens:
        if not value or not all(type(x) is int for x in value):
            raise bad(f"{param} is no list of token ids; expected whole numbers", param)
        if len(value) > (most := self._settings.max_text_chars):
            raise bad(f"{param} has {len(value)} token ids; the limit is {most}", param)
        return Tokens(list(value))

    def _decode(self, text: str, param: str) -> bytes:
        most = self._settings.max_image_bytes
        uri = _DATA_URI.match(text)
        if uri is None and text.startswith("data:"):
            raise bad(f"{param} is a data URI that is not base64", param, "invalid_image")
        start = uri.end() if uri else 0
        if (len(text) - start) * 3 // 4 > most + 2:
            raise bad(
                f"{param} is an image of more than {most} bytes, the limit",
                param,
                "image_too_large",
            )
        try:
            data = base64.b64decode(text[start:].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise bad(
                f"{param} is no image: expected base64, a data URI or a link",
                param,
                "invalid_image",
            ) from None
        if not data:
            raise bad(f"{param} is empty; expected an image", param, "invalid_image")
        return data


def only_one(request: Mapping[str, Any], *names: str) -> str:
    """The one of several fields that a request has.

    Raises:
      ApiError: it has none, or several.
    """
    present = [name for name in names if request.get(name) is not None]
    if len(present) != 1:
        listed = " or ".join(f"`{name}`" for name in names)
        raise bad(
            f"expected {listed}, exactly one of them, found "
            f"{' and '.join(f'`{x}`' for x in present) or 'none'}",
            present[0] if present else names[0],
        )
    return present[0]


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a truth value",
        type(None): "null",
    }
    return kinds.get(type(value), "a number")
