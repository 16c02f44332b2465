"""Checkpoints of a run: asynchronous, atomic, restored on any mesh.

A workdir holds `checkpoints/<step>/` with Orbax trees `params/` (which `siglip2_jax.load` reads),
`optimizer/` and, where a stage keeps one, `average/`, and a record: sizes of the model, names of
the preprocessing, position in the data, resolved config, versions of the software, and digests of
all arrays. Orbax writes under a temporary name and renames, so what exists is whole.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from siglip2_jax import config as schema
from siglip2_jax.checkpoints.arrays import is_of_the_store
from siglip2_jax.checkpoints.damage import DIGESTS, find_damage, read_record, sealed
from siglip2_jax.checkpoints.digest import digests
from siglip2_jax.checkpoints.run_layout import AVERAGE, FOLDER, OPTIMIZER, PARAMS
from siglip2_jax.checkpoints.source import absolute
from siglip2_jax.errors import reason_of
from siglip2_jax.models.siglip2 import unflatten
from siglip2_jax.train.distributed import exchange, meet
from siglip2_jax.train.state import TrainState

log = logging.getLogger(__name__)

_digest_all = jax.jit(digests)


class RunCheckpoints:
    """The checkpoints of one workdir."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        settings: schema.Checkpoints | None = None,
        keep: Iterable[int] = (),
    ):
        """Opens a workdir; nothing is written yet.

        Args:
          workdir: where the run lives.
          settings: which checkpoints are kept; None opens what there is, to read.
          keep: steps that are kept in any case: ends of stages, and where stages branch off.
        """
        self.directory = absolute(workdir) / FOLDER
        policies = ocp.training.preservation_policies
        preserve = None
        if settings is not None:
            rules = [policies.LatestN(settings.keep_last), policies.CustomSteps(sorted(keep))]
            if settings.keep_every is not None:
                rules.append(policies.EveryNSteps(settings.keep_every))
            preserve = policies.AnyPreservationPolicy(rules)
        self._checkpointer = self._open(preserve, writes=settings is not None)
        # On several hosts Orbax would ask JAX's preemption service about the step it has just
        # written, from a thread of its own. Each question sets the count of steps that hosts
        # compare, so that one could pass by the step at which all others stop.
        self._checkpointer._manager.reached_preemption = lambda step: False

    def _open(self, preserve: Any, writes: bool) -> ocp.training.Checkpointer:
        """Orbax's part; to write, what it cannot open is set aside first.

        Raises:
          ValueError: it can open no checkpoint, or one, to read.
        """

        def attempt() -> ocp.training.Checkpointer | Exception:
            try:
                return ocp.training.Checkpointer(
                    self.directory, preservation_policy=preserve, cleanup_tmp_directories=writes
                )
            except (KeyError, RecursionError, TypeError, ValueError) as error:
                if is_of_the_store(error):
                    raise
                return error

        made = attempt()
        if writes and any(exchange("failed" if isinstance(made, Exception) else "")):
            # All look before any is renamed, and all do what the first process has found.
            for step in map(int, exchange(self._unreadable())[0].split()):
                place = self._rename(step)
                log.warning("step %d is damaged (Orbax cannot open it) and now in %s", step, place)
            made = attempt()
        if isinstance(made, Exception):
            raise ValueError(
                f"{self.directory} holds a checkpoint whose record is damaged "
                f"({reason_of(made)}); put back its files, or train in another workdir"
            ) from made
        return made

    def _unreadable(self) -> str:
        """Steps that Orbax cannot open, as words; none where it can open no step at all."""
        steps = [x for x in self.directory.iterdir() if x.name.isdecimal()]
        unreadable = [x.name for x in steps if not _is_readable(x)]
        return " ".join(unreadable) if len(unreadable) < len(steps) else ""

    @property
    def steps(self) -> list[int]:
        """Steps that can be restored, the earliest first."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    @property
    def latest(self) -> int | None:
        """The last step that can be restored."""
        return max(self.steps, default=None)

    def damage(self, step: int) -> str | None:
        """Phrase for the missing or damaged part of a checkpoint; None if the checkpoint is whole.

        All processes call it together, share the reading, and get the same answer.

        Raises:
          OSError: the store cannot be read.
        """
        share = jax.process_index(), jax.process_count()
        phrase = find_damage(self.directory / str(step), *share)
        if phrase is None and jax.process_index() == 0:
            phrase = self._misread(step)
        return next(filter(None, exchange(phrase or "")), None)

    def _misread(self, step: int) -> str | None:
        """Phrase for a checkpoint of which Orbax finds other arrays than were saved."""
        try:
            saved = self._checkpointer.checkpointables_metadata(step).metadata
            found = {tree: by_path(arrays) for tree, arrays in saved.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if is_of_the_store(error):
                raise
            return "what it says of its arrays is damaged"
        for tree, arrays in self.record(step).get(DIGESTS, {}).items():
            if found.get(tree, {}).keys() != arrays.keys():
                return f"what {tree}/ says of its arrays is damaged"
        return None

    def set_aside(self, step: int) -> epath.Path:
        """Renames a damaged checkpoint, which then is none; all processes call it together.

        Returns:
          The new path. What an earlier call left there is deleted.
        """
        path = self._rename(step)
        self._checkpointer.reload()
        return path

    def _rename(self, step: int) -> epath.Path:
        """Gives a damaged checkpoint another name, for which all processes wait."""
        path = self.directory / f"{step}.damaged"
        if jax.process_index() == 0:
            if path.exists():
                path.rmtree()
            (self.directory / str(step)).rename(path)
        meet()
        return path

    def save(self, state: TrainState, step: int, record: Mapping[str, Any]) -> None:
        """Starts to save in the background; every process calls it at the same step."""
        trees = {PARAMS: state.params, OPTIMIZER: unflatten(by_path(state.optimizer))}
        if state.ema_params is not None:
            trees[AVERAGE] = state.ema_params
        record = sealed({**record, DIGESTS: _digests(trees)})
        with _bare():
            self._checkpointer.save_checkpointables_async(
                step, trees, force=True, custom_metadata=record
            )

    def record(self, step: int) -> dict[str, Any]:
        """Reads the record that was saved beside the arrays.

        Raises:
          ValueError: there is none.
        """
        return read_record(self.directory / str(step))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """A whole state.

        Args:
          step: which one.
          like: shapes and shardings to restore to, of any mesh.

        Raises:
          ValueError: what was saved has other parameters or shapes.
        """
        params = self.read(step, PARAMS, by_path(like.params))
        optimizer = self.read(step, OPTIMIZER, by_path(like.optimizer))
        average = None
        if like.ema_params is not None:
            average = unflatten(self.read(step, AVERAGE, by_path(like.ema_params)))
        structure = jax.tree.structure(like.optimizer)
        return TrainState(
            params=unflatten(params),
            optimizer=jax.tree.unflatten(
                structure, [optimizer[k] for k in by_path(like.optimizer)]
            ),
            ema_params=average,
            step=jax.device_put(np.int32(step), like.step.sharding),
        )

    def shapes(self, step: int, tree: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what was saved of one tree, by path; empty if it was not saved."""
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        leaves = by_path(saved.get(tree) or {})
        return {k: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype) for k, x in leaves.items()}

    def read(
        self, step: int, tree: str, like: Mapping[str, jax.ShapeDtypeStruct]
    ) -> dict[str, jax.Array]:
        """Some leaves of one saved tree.

        Args:
          step: which checkpoint.
          tree: "params", "optimizer" or "average".
          like: what to read, by path, with shardings.

        Raises:
          ValueError: a leaf is not there, or has another shape.
        """
        saved = self.shapes(step, tree)
        for path, leaf in like.items():
            shape = saved[path].shape if path in saved else "nothing"
            if shape != leaf.shape:
                raise ValueError(
                    f"{self.directory / str(step)} holds {shape} for {tree}/{path} where this "
                    f"config needs {leaf.shape}; train in another workdir, or start from this "
                    "checkpoint with a Continue stage, which resizes"
                )
        request = dict.fromkeys(saved, ocp.PLACEHOLDER) | dict(like)
        try:
            trees = self._checkpointer.load_checkpointables(step, {tree: unflatten(request)})
        except (KeyError, ValueError) as error:  # Orbax tells of a lost file at great length
            folder = self.directory / str(step)
            raise ValueError(f"{folder}: files of {tree}/ are missing or damaged") from error
        leaves = by_path(trees[tree])
        return {path: leaves[path] for path in like}

    def wait(self) -> None:
        """Waits until everything is written."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits, and frees what the writer holds."""
        self._checkpointer.close()


def _bare() -> ocp.Context:
    """A context without the files that Orbax can do without, and would believe if damaged.

    They say how arrays are sharded, as restoring says too.
    """
    context = ocp.Context()
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.array_metadata_store = None
    return context


def _is_readable(step: epath.Path) -> bool:
    """True where Orbax can read the description of a checkpoint."""
    try:
        read_record(step)
        ocp.checkpointables_metadata(step)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return False
    return True


def _digests(trees: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Digests of all arrays by tree and path, of which every device computes its part."""
    leaves = {name: by_path(tree) for name, tree in trees.items()}
    numbers = iter(np.asarray(_digest_all([x for tree in leaves.values() for x in tree.values()])))
    return {name: {path: int(next(numbers)) for path in tree} for name, tree in leaves.items()}


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves of any pytree by their path, such as `1/mu/text/head/bias`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in leaves}


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Shapes with shardings of this mesh, from what `jax.eval_shape` gives under it."""

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = x.sharding.spec if x.sharding is not None else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, tree)
