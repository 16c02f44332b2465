"""Changes to a configuration from the command line: `stages.main.optim.peak_lr=3e-4`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from siglip2_jax.config.hints import (
    Hint,
    TypeMismatch,
    describe,
    element,
    field_hints,
    fit,
    options,
)
from siglip2_jax.config.run import TrainConfig
from siglip2_jax.config.stage import Stage

LONGEST = 200  # characters of a message that repeat what was given
WORDS = {"true": True, "false": False, "null": None}  # JSON's, beside Python's own


class Change(NamedTuple):
    """One assignment, with the part of its path that is still to be followed.

    Attributes:
      keys: fields, names, keys or indices, from here to the value.
      text: the new value.
      source: the assignment, for messages; of a long one its beginning.
    """

    keys: tuple[str, ...]
    text: str
    source: str


def override(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """A configuration with some of its values replaced.

    An assignment is `path=value`. The path goes through fields of dataclasses, keys of mappings,
    and elements of tuples, by index or by their `name`: `stages.0.steps`, `stages.main.steps`,
    `stages.main.objectives.sigmoid.weight`. A path that begins with a field of a stage that a run
    does not have (`batch_size`, `steps`, `data`, `optim` and so on) stands for that field of every
    stage; `model` and `compute` are the run's. Setting a stage's `steps` unsets its `examples`, and
    the other way round. Below a field that is None, the path fills in the fields of what may stand
    there: `logging.profile.start=5`; a stage's `model` and `compute` are then the run's but for
    what is set.

    The value is a Python or JSON literal, or a bare word for text, of the type that the field is
    annotated with; an integer will do for a float. All assignments apply together, the last one
    to the same place wins, and what they give is checked as a configuration file is.

    Args:
      config: what to change; it stays as it is.
      assignments: such as `["model.vision.depth=2", "optim.schedule.warmup=0"]`.

    Raises:
      ValueError: a path leads nowhere, a value has the wrong type, or the result makes no sense.
    """
    run_fields, stage_fields = field_hints(TrainConfig), field_hints(Stage)
    changes = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        source = _shorten(assignment)
        keys = tuple(path.strip().split("."))
        if not equals or not all(keys):
            raise ValueError(f"{source!r} is no assignment; expected path=value")
        if keys[0] in stage_fields and keys[0] not in run_fields:
            every = range(len(config.stages))
            changes += [Change(("stages", str(i), *keys), text.strip(), source) for i in every]
        elif keys[0] not in run_fields and (places := _places(config, keys[0])):
            raise ValueError(
                f"{source!r}: {keys[0]!r} is not a field of a run or a stage; did you mean "
                f"{' or '.join(places)}?"
            )
        else:
            changes.append(Change(keys, text.strip(), source))
    config = _with_own(config, changes)
    return _apply(config, [*_other_lengths(changes), *changes], TrainConfig)


def _with_own(config: TrainConfig, changes: Sequence[Change]) -> TrainConfig:
    """Gives stages that use the run's model or compute their own, where a part of it changes."""
    hints = field_hints(TrainConfig)
    parts = {change.keys[:3] for change in changes if len(change.keys) > 3}
    for i, stage in enumerate(config.stages):
        for name in ("model", "compute"):
            paths = {("stages", key, name) for key in (str(i), stage.name)}
            if getattr(stage, name) is None and not parts.isdisjoint(paths):
                of_run = [x._replace(keys=x.keys[1:]) for x in changes if x.keys[0] == name]
                own = _apply(getattr(config, name), of_run, hints[name])
                stages = list(config.stages)
                stages[i] = dataclasses.replace(stages[i], **{name: own})
                config = dataclasses.replace(config, stages=tuple(stages))
    return config


def _shorten(text: str) -> str:
    """A text on one line, or the beginning of a long one, for messages."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _other_lengths(changes: Sequence[Change]) -> Iterator[Change]:
    """Changes to None of the other length of a stage, where `steps` or `examples` is set."""
    other = {"steps": "examples", "examples": "steps"}
    for change in changes:
        if change.text in ("None", "null"):
            continue
        if change.keys[0] == "stages" and len(change.keys) == 3 and change.keys[2] in other:
            keys = (*change.keys[:2], other[change.keys[2]])
            if not any(keys == explicit.keys for explicit in changes):
                yield Change(keys, "None", change.source)


def _places(config: TrainConfig, name: str) -> list[str]:
    """Paths to fields of this name, one level below a run or its first stage."""
    return [
        f"{field.name}.{name}"
        for parent in (config, config.stages[0])
        for field in dataclasses.fields(parent)
        if dataclasses.is_dataclass(value := getattr(parent, field.name))
        and name in field_hints(type(value))
    ]


def split_arguments(
    assignments: Iterable[str], function: Callable[..., Any]
) -> tuple[dict[str, Any], list[str]]:
    """Parts assignments to parameters of a function from all others.

    Args:
      assignments: such as `["scale=1e-6", "optim.peak_lr=1e-4"]`.
      function: whose parameters are annotated, or have defaults that tell their types.

    Returns:
      Arguments by name, as values of the parameters' types; and the other assignments.

    Raises:
      ValueError: a value has the wrong type.
    """
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    arguments, remainder = {}, []
    for source in assignments:
        name, equals, text = (part.strip() for part in source.partition("="))
        if equals and name in parameters:
            hint = hints.get(name, type(parameters[name].default))
            arguments[name] = _parse(Change((name,), text, _shorten(source)), hint)
        else:
            remainder.append(source)
    return arguments, remainder


def _apply(value: Any, changes: Sequence[Change], hint: Hint) -> Any:
    """`value` with all changes below it."""
    if not changes:
        return value
    if not all(change.keys for change in changes):
        if any(change.keys for change in changes):
            first, second = changes[0].source, changes[-1].source
            raise ValueError(
                f"{first!r} and {second!r} set a value and a part of the same value; keep one"
            )
        return _parse(changes[-1], hint)
    if value is None:
        return _make(changes, hint)
    if dataclasses.is_dataclass(value):
        return _apply_fields(value, changes)
    if isinstance(value, Mapping):
        return dict(value) | {
            key: _apply(value[key], below, element(hint))
            for key, below in _group(changes, {str(key): key for key in value}, "a key").items()
        }
    if isinstance(value, tuple):
        names = {str(index): index for index in range(len(value))}
        names |= {item.name: i for i, item in enumerate(value) if hasattr(item, "name")}
        groups = _group(changes, names, "an element")
        return tuple(
            _apply(item, groups.get(index, ()), element(hint, index))
            for index, item in enumerate(value)
        )
    raise ValueError(
        f"{changes[0].source!r}: cannot set {changes[0].keys[0]!r} of {value!r}, which is of type "
        f"{type(value).__name__} and has no fields"
    )


def _apply_fields(value: Any, changes: Sequence[Change]) -> Any:
    hints = field_hints(type(value))
    groups = _group(changes, {name: name for name in hints}, f"a field of {type(value).__name__}")
    return dataclasses.replace(
        value,
        **{
            name: _apply(getattr(value, name), below, hints[name]) for name, below in groups.items()
        },
    )


def _make(changes: Sequence[Change], hint: Hint) -> Any:
    """Makes the value that takes the place of None, from the changes alone."""
    source = changes[0].source
    classes: list[Any] = [option for option in options(hint) if dataclasses.is_dataclass(option)]
    if len(classes) != 1:
        raise ValueError(f"{source!r}: cannot set {changes[0].keys[0]!r} of None")
    (cls,) = classes
    hints = field_hints(cls)
    groups = _group(changes, {name: name for name in hints}, f"a field of {cls.__name__}")
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - groups.keys()):
        raise ValueError(
            f"{source!r}: there is no {cls.__name__} yet, and a new one needs {', '.join(missing)}"
        )
    return cls(**{name: _apply(None, below, hints[name]) for name, below in groups.items()})


def _group(
    changes: Sequence[Change], names: Mapping[str, Any], kind: str
) -> dict[Any, list[Change]]:
    """Changes by what their first key stands for, each with the rest of its path."""
    groups: dict[Any, list[Change]] = {}
    for change in changes:
        key, *rest = change.keys
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"{change.source!r}: {key!r} is not {kind} ({hint}there are {', '.join(names)})"
            )
        groups.setdefault(names[key], []).append(change._replace(keys=tuple(rest)))
    return groups


def _parse(change: Change, hint: Hint) -> Any:
    """The value of an assignment, of the field's type; text may go without quotes."""
    literals = [change.text]
    if change.text in WORDS:
        literals.insert(0, WORDS[change.text])
    try:
        literals.insert(0, ast.literal_eval(change.text))
    except (ValueError, SyntaxError, TypeError):
        pass
    for literal in literals:
        try:
            return fit(literal, hint)
        except TypeMismatch:
            continue
    found = _shorten(change.text)
    raise ValueError(f"{change.source!r}: expected {describe(hint)}, found {found}")
