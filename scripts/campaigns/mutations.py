"""Changes to valid files: bits, bytes, pieces, lengths; and odd values in JSON."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

_INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**40, -(2**63), 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), "", " ", "a", "\0", "\ud800", "a\nb", "\ufeffx", "1", "null"),
    *("é" * 300, "x" * 3_000, [], {}, [[]], [None], {"a": {"b": []}}, ["a", 1, None]),
)
_DEPTH = 5_000


def change_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """The bytes with one change to four.

    Args:
      data: a valid file.
      rng: the only source of randomness.
      others: more valid files, of which pieces may come.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_CHANGES)(data, rng, others)
    return data


def _place(data: bytes, rng: random.Random) -> int:
    """An offset, half of the time one near the beginning, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 64)
    return rng.randrange(end + 1)


def _flip(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[min(_place(data, rng), len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, size = _place(data, rng), rng.randint(1, 16)
    return data[:start] + rng.randbytes(min(size, len(data) - start)) + data[start + size :]


def _write_integer(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    form = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size, start = struct.calcsize(form), _place(data, rng)
    number = struct.pack(form, rng.choice(_INTEGERS) & (256**size - 1))
    return data[:start] + number + data[start + size :]


def _cut(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(data, rng)
    return data[:start] + data[start + rng.choice((1, 2, 4, 16, 512)) :]


def _repeat(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, size = _place(data, rng), rng.choice((1, 4, 16, 512))
    return data[:start] + data[start : start + size] * rng.choice((2, 3, 40)) + data[start + size :]


def _insert(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(data, rng)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 8, 64))) + data[start:]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    return data[: _place(data, rng)] + other[_place(other, rng) :]


_CHANGES: Sequence[Callable[[bytes, random.Random, Sequence[bytes]], bytes]] = (
    *(_flip, _overwrite, _write_integer, _cut, _remove, _repeat, _insert, _splice),
)


def change_json(text: bytes, rng: random.Random) -> bytes:
    """JSON with one value or more changed, removed or renamed; valid but for what JSON lacks."""
    if rng.random() < 0.02:
        return b"[" * _DEPTH + text + b"]" * _DEPTH
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _change_value(value, rng)
    return json.dumps(value).encode()


def _change_value(value: Any, rng: random.Random) -> Any:
    """A value with one place in it changed: each level goes deeper or stops."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        action = rng.random()
        if action < 0.1:
            return {name: x for name, x in value.items() if name != key}
        if action < 0.2:
            return {**value, rng.choice(("", "x", key + "x", "\ud800")): value[key]}
        return {**value, key: _change_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        return [*value[:index], _change_value(value[index], rng), *value[index + 1 :]]
    if isinstance(value, (int, float)) and rng.random() < 0.5:
        return value * rng.choice((-1, 0, 2, 10, 10**6, 10**12, 0.5)) + rng.choice((-1, 0, 1))
    return rng.choice(_ODD)
