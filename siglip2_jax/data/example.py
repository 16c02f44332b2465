"""Training example, of whatever origin.

A plain dict: `image` (the bytes of an image file), `captions` (a tuple of texts, empty where there
is none), `name` (a readable id, unique in its source), and the source's other fields under their
own names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from siglip2_jax.data.text import plain_text


class ExampleError(ValueError):
    """An example that cannot be used: one sentence that begins with its name.

    Attributes:
      name: the example's name, where a list of errors is to have it apart; None elsewhere.
    """

    def __init__(self, sentence: str, name: str | None = None) -> None:
        super().__init__(_on_one_line(sentence))
        self.name = name


class SourceError(OSError):
    """Data that cannot be read for a reason outside its content: one sentence that names it.

    The machine, the network, permissions or the store are at fault, so no other example is taken
    in its place.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_on_one_line(sentence))


def _on_one_line(sentence: str) -> str:
    """The sentence without line ends, which the names of files may have."""
    return sentence.replace("\r", " ").replace("\n", " ")


def with_name(error: Exception, name: str) -> ExampleError:
    """The error of an example with its name in front, or the name that its source gave it."""
    if isinstance(error, ExampleError) and error.name is not None:
        return error
    sentence = str(error)
    return ExampleError(sentence if sentence.startswith(name) else f"{name}: {sentence}", name)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Gives what is wrong with an example's content its name; errors of the machine stay."""
    try:
        yield
    except ValueError as error:
        raise with_name(error, name) from error


# What an example and its preparation use; fields of a source with these names are left out.
RESERVED = frozenset({"image", "captions", "name", "text", "budget", "fields"})
# Where the captions of a row of JSON are looked for.
CAPTION_FIELDS = ("captions", "caption", "text")


def make_example(
    image: bytes, captions: tuple[str, ...], name: str, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """An example with the fields of its row, without those that hold its captions or clash."""
    kept = {
        key: value
        for key, value in fields.items()
        if key not in RESERVED and key not in CAPTION_FIELDS
    }
    return {"image": image, "captions": captions, "name": name, **kept}


def as_captions(value: Any, name: str) -> tuple[str, ...]:
    """The captions that a field holds: a text or several, as str or bytes; each once.

    Blank and null ones are dropped, and so are a text's byte-order mark and last line ends.

    Args:
      value: a str, bytes, None, or a sequence or array of them.
      name: the example's name, for errors.

    Raises:
      ValueError: it holds something that is not a text.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = value if isinstance(value, list | tuple) else [value]
    texts = []
    for text in values:
        if text is None:
            continue
        if not isinstance(text, str | bytes):
            raise ValueError(
                f"{name}: a caption is {type(text).__name__} {text!r:.60}, expected a text."
            )
        try:
            text = plain_text(text)
        except ValueError as error:
            raise ValueError(f"{name}: a caption is {error}.") from error
        if text.strip():
            texts.append(text)
    return tuple(dict.fromkeys(texts))


def row_captions(row: Mapping[str, Any], template: str | None, name: str) -> tuple[str, ...]:
    """The captions of a row of JSON: the template filled in, or else its caption fields.

    Raises:
      ValueError: a caption is not a text, or the row lacks a field of the template.
    """
    if template is not None:
        return (fill(template, row, name),)
    texts = [text for key in CAPTION_FIELDS for text in as_captions(row.get(key), name)]
    return tuple(dict.fromkeys(texts))


def fill(template: str, row: Mapping[str, Any], name: str) -> str:
    """A caption made from a row's fields: "a photo of a {name}".

    Raises:
      ValueError: the row lacks a field of the template, or the template is malformed.
    """
    try:
        return template.format_map(row)
    except KeyError as error:
        raise ValueError(
            f"{name}: the template {template!r} needs the field {error}, found "
            f"{', '.join(map(str, row)) or 'none'}."
        ) from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{name}: the template {template!r} cannot be filled in ({error}); write a field in "
            'braces, as in "a photo of a {name}".'
        ) from error
