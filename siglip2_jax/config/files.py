"""Configs by file, import name or the record of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from siglip2_jax.config.modules import call_function, is_file, load_function
from siglip2_jax.config.override import override, split_arguments
from siglip2_jax.config.record import to_json
from siglip2_jax.config.run import TrainConfig
from siglip2_jax.data.text import read_json


class Origin(NamedTuple):
    """Arguments of `load_config` that make a config again, from any working directory.

    Attributes:
      source: a Python file, or an import name and a function.
      assignments: changes to what it makes.
    """

    source: str
    assignments: tuple[str, ...] = ()


def load_config(source: str | os.PathLike[str], assignments: Sequence[str] = ()) -> TrainConfig:
    """Imports the module of a config, calls its function, and applies the changes to the result.

    Args:
      source: a Python file with a `config()`, local or remote (`gs://`); `package.module:function`;
        or the `config.json` of a run, which stands for that run's source and assignments.
      assignments: `name=value`. Where `name` is a parameter of the function, it is passed to it:
        that is how configs offer choices from which much else follows, such as a scale. All others
        are changes to the result, as in `override`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no such function, running it failed, it does not return a `TrainConfig`,
        an assignment leads nowhere, or the source no longer makes what `config.json` records; one
        sentence, with the line of the file where it failed.
    """
    source, assignments = find_origin(source, assignments)
    make = load_function(source, "config", TrainConfig)
    arguments, changes = split_arguments(assignments, make)
    return override(call_function(make, arguments, source, TrainConfig), changes)


def find_origin(source: str | os.PathLike[str], assignments: Sequence[str] = ()) -> Origin:
    """The origin of the config that `load_config` makes of the same arguments."""
    source = os.fspath(source)
    if source.endswith(".json"):
        recorded = _recorded_origin(source)
        return Origin(recorded.source, (*recorded.assignments, *assignments))
    local = is_file(source) and "://" not in source
    return Origin(os.path.abspath(source) if local else source, tuple(assignments))


def to_record(config: TrainConfig, origin: Origin | None) -> dict[str, object]:
    """Contents of `config.json`: the resolved config, and its origin where there is one."""
    return to_json(config) | {"origin": origin and origin._asdict()}


def _recorded_origin(path: str) -> Origin:
    """The origin that a `config.json` records, checked to make the same config today."""
    file = epath.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the config.json of a run")
    record = read_json(path)
    if not isinstance(record, dict) or not record.get("origin"):
        raise ValueError(
            f"{path} records no origin: its run was not started by `siglip2 train`; give a Python "
            "file or package.module:function instead"
        )
    origin = _read_origin(record["origin"], path)
    now = json.loads(json.dumps(to_json(load_config(*origin))))
    if differences := [name for name in now if now[name] != record.get(name)]:
        raise ValueError(
            f"{path} differs from the config that {origin.source} makes now, in "
            f"{', '.join(differences)}; undo that change, or give {origin.source} itself to train "
            "the config that it makes now"
        )
    return origin


def _read_origin(value: object, path: str) -> Origin:
    """The origin in a record.

    Raises:
      ValueError: it is none.
    """
    match value:
        case {"source": str(source), "assignments": list(assignments)}:
            if source.isprintable() and all(isinstance(x, str) for x in assignments):
                return Origin(source, tuple(assignments))
    raise ValueError(
        f"{path} is damaged: its origin is {value!r:.100}, expected an object with a text "
        '"source" and a list of texts "assignments"; give the config\'s Python file instead'
    )
