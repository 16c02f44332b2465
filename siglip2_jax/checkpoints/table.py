"""Rule tables: which tensor of a file is which parameter of the model, in both directions.

A format is a list of `Rule`s. Reading and writing go through the same list, so that they cannot
disagree, and tensors stay lazy, so that only one is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from siglip2_jax.types import ArrayLike

Shape = tuple[int, ...]
Progress = Callable[[str, int, int], None]
"""Called with the name of a tensor, how many are done, and how many there are."""

SHOWN = 20  # names in one message; a training checkpoint can hold thousands of foreign tensors


class ConversionError(ValueError):
    """Error for a checkpoint that cannot be used, with a list of all problems.

    Attributes:
      problems: one phrase each, all of them; a long message shows only the first ones.
      subject: the file or directory; empty where the tensors have been taken out of it.
    """

    def __init__(self, problems: Sequence[str], subject: str = "") -> None:
        self.problems = tuple(problems)
        self.subject = subject
        subject = subject or "the checkpoint"
        if len(problems) == 1:
            super().__init__(f"{subject}: {problems[0]}")
            return
        lines = [*problems[:SHOWN], f"and {len(problems) - SHOWN} more"][: len(problems)]
        super().__init__("\n  ".join([f"{subject}: {len(problems)} problems", *lines]))


class NonFiniteError(ConversionError):
    """Error for a checkpoint with a parameter that holds a NaN or an infinity."""


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A tensor that is read when asked for, every time it is asked for.

    Attributes:
      shape: its shape.
      dtype: its type in the source.
      read: gives the array; raises ConversionError when the source is damaged.
    """

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: ArrayLike) -> Lazy:
        """A tensor that is in memory already."""
        return cls(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


@dataclasses.dataclass(frozen=True)
class Transform:
    """Reshape and transposition from our tensor to the file's; it loses nothing and has an inverse.

    Attributes:
      reshape: from the shape of our tensor to the shape that is transposed.
      axes: of the transposition; empty for none.
    """

    reshape: Callable[[Shape], Shape]
    axes: Shape = ()

    def shape(self, ours: Shape) -> Shape:
        """The shape of the file's tensor."""
        shape = self.reshape(ours)
        return tuple(shape[axis] for axis in self.axes) if self.axes else shape

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Makes the file's tensor of ours."""
        view = ours.reshape(self.reshape(ours.shape))
        return view.transpose(self.axes) if self.axes else view

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        """Makes our tensor, which has the given shape, of the file's."""
        if self.axes:
            theirs = theirs.transpose(np.argsort(self.axes))
        return theirs.reshape(shape)


def _square_patches(shape: Shape) -> Shape:
    side = math.isqrt(shape[0] // 3)
    return (side, side, 3, shape[1])


SAME = Transform(lambda s: s)
FLAT = Transform(lambda s: (math.prod(s),))
ROWS = Transform(lambda s: (math.prod(s[:-1]), s[-1]))
ONE_BATCH = Transform(lambda s: (1, math.prod(s[:-1]), s[-1]))
DENSE = Transform(lambda s: s, (1, 0))
DENSE_TO_HEADS = Transform(lambda s: (s[0], s[1] * s[2]), (1, 0))
DENSE_FROM_HEADS = Transform(lambda s: (s[0] * s[1], s[2]), (1, 0))
CONV_HWIO = Transform(_square_patches)
CONV_OIHW = Transform(_square_patches, (3, 2, 0, 1))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a format's table.

    Attributes:
      ours: path of our parameter; several where one tensor of the file holds
        them one after the other.
      theirs: name of the file's tensor. With `{i}` in it there is one tensor a layer, and ours
        has a leading axis of layers.
      transform: from ours (of one layer) to the file's.
    """

    ours: tuple[str, ...]
    theirs: str
    transform: Transform = SAME

    @property
    def layered(self) -> bool:
        """True if there is one tensor a layer."""
        return "{i}" in self.theirs

    def names(self, shape: Shape) -> list[str]:
        """Names of the file's tensors where ours has the given shape."""
        return [self.theirs.format(i=i) for i in range(shape[0])] if self.layered else [self.theirs]


def their_shapes(rules: Sequence[Rule], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The tensors that a file has, in the order in which `to_theirs` gives them.

    Args:
      rules: the table of the format.
      shapes: of our parameters, by path.
    """
    result = {}
    for rule in rules:
        ours = shapes[rule.ours[0]]
        shape = rule.transform.shape(ours[1:] if rule.layered else ours)
        if len(rule.ours) > 1:
            shape = (shape[0] * len(rule.ours), *shape[1:])
        result |= dict.fromkeys(rule.names(ours), shape)
    return result


def to_theirs(
    rules: Sequence[Rule], params: Mapping[str, Lazy]
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 value of each tensor of the file; each of ours is read once."""
    for rule in rules:
        yield from _theirs(
            rule, [np.asarray(params[path].read(), np.float32) for path in rule.ours]
        )


def _theirs(rule: Rule, ours: Sequence[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    if rule.layered:
        for name, layer in zip(rule.names(ours[0].shape), ours[0], strict=True):
            yield name, rule.transform.to_theirs(layer)
    elif len(ours) == 1:
        yield rule.theirs, rule.transform.to_theirs(ours[0])
    else:
        yield rule.theirs, np.concatenate([rule.transform.to_theirs(part) for part in ours])


def to_ours(
    rules: Sequence[Rule], shapes: Mapping[str, Shape], tensors: Mapping[str, Lazy]
) -> dict[str, Lazy]:
    """Our parameters, made of the file's tensors; reads nothing yet.

    Args:
      rules: the table of the format.
      shapes: of our parameters, by path.
      tensors: what a file holds, by name. Floats of any width; ours are float32.

    Raises:
      ConversionError: a tensor is missing, unknown, of a wrong shape or not a float; or the table
        does not fill every parameter exactly once.
    """
    problems = _problems(rules, shapes, tensors)
    if problems:
        raise ConversionError(problems)
    params = {}
    for rule in rules:
        for part, path in enumerate(rule.ours):
            sources = [tensors[name] for name in rule.names(shapes[path])]
            params[path] = _ours(rule, part, shapes[path], sources)
    return params


def _ours(rule: Rule, part: int, shape: Shape, sources: Sequence[Lazy]) -> Lazy:
    """One parameter of ours, made of the tensors of each layer, or of a part of one tensor."""

    def read_layers() -> np.ndarray:
        layers = np.empty(shape, np.float32)
        for layer, tensor in zip(layers, sources, strict=True):
            layer[...] = rule.transform.to_ours(tensor.read(), shape[1:])
        return layers

    def read_one() -> np.ndarray:
        tensor = sources[0].read()
        if len(rule.ours) > 1:
            tensor = np.split(tensor, len(rule.ours))[part]
        return np.asarray(rule.transform.to_ours(tensor, shape), np.float32, order="C")

    return Lazy(shape, np.dtype(np.float32), read_layers if rule.layered else read_one)


def _problems(
    rules: Sequence[Rule], shapes: Mapping[str, Shape], tensors: Mapping[str, Lazy]
) -> list[str]:
    """Everything that keeps the tensors from filling the parameters."""
    expected = their_shapes(rules, shapes)
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    for name, shape in expected.items():
        tensor = tensors.get(name)
        # Scalars are 0-D in some files and 1-D in others.
        if tensor and tensor.shape != shape and not (shape == (1,) and tensor.shape == ()):
            problems.append(f"{name} has shape {tensor.shape}, expected {shape}")
        elif tensor and not _is_float(tensor.dtype):
            problems.append(f"{name} is {tensor.dtype}, expected a float type")
    problems += [
        f"{name} is not a tensor of this model" for name in tensors if name not in expected
    ]
    filled = Counter(path for rule in rules for path in rule.ours)
    problems += [
        f"the table fills {path} {filled[path]} times"
        for path in {**shapes, **filled}
        if filled[path] != (path in shapes)
    ]
    return problems


def finite(tensor: Lazy, name: str, subject: str) -> Lazy:
    """The same tensor; reading it raises NonFiniteError where it holds a NaN or an infinity."""

    def read() -> np.ndarray:
        array = tensor.read()
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.sum(array)  # reads the array once; a NaN or an infinity shows in it
        if not np.isfinite(total) and (count := int(np.sum(~np.isfinite(array)))):
            problem = (
                f"{count:,} of the {array.size:,} values of {name} are NaN or infinite: its run "
                "has diverged, or the file is damaged; take an earlier checkpoint or another copy"
            )
            raise NonFiniteError([problem], subject)
        return array

    return Lazy(tensor.shape, tensor.dtype, read)


def _is_float(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16


def counted(
    tensors: Iterable[tuple[str, np.ndarray]], total: int, progress: Progress | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The same tensors; calls `progress` when the consumer is done with each."""
    for done, (name, tensor) in enumerate(tensors, 1):
        yield name, tensor
        if progress:
            progress(name, done, total)
