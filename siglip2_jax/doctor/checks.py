"""Checks of a machine for a run, in the order in which they run: what is quick comes first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from siglip2_jax.cache_files import user_cache
from siglip2_jax.config import ResolvedStage, TrainConfig
from siglip2_jax.doctor import step as steps
from siglip2_jax.doctor.check import Check, Finding, Findings, passed, skipped
from siglip2_jax.doctor.examine import Phase
from siglip2_jax.doctor.input import check_reading, judge_input, measure_input, with_source
from siglip2_jax.doctor.kernels import check_attention, check_layer_norm
from siglip2_jax.doctor.links import check_links
from siglip2_jax.doctor.losses import check_prototypes, check_vocabulary
from siglip2_jax.doctor.machine import (
    LEAST_DISK,
    check_clocks,
    check_device_memory,
    check_devices,
    check_disk,
    check_memory,
)
from siglip2_jax.doctor.rates import check_rates
from siglip2_jax.doctor.shapes import Prototypes, Sequences, Shape, Streams, Vocabulary, shapes_of
from siglip2_jax.doctor.software import check_same_versions, check_versions
from siglip2_jax.doctor.storage import check_workdir
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.inputs import open_tokenizer, stage_pipeline
from siglip2_jax.train.requirements import check_stage
from siglip2_jax.train.start import abstract_state
from siglip2_jax.train.step import Program

SECONDS_OF_DATA = 6.0  # of reading and of preparing, for all sources together
SHARE_OF_KERNELS = 0.5  # of the time, before the step compiles
_NO_CONFIG = "no CONFIG was named"

_OF_SHAPES: dict[type, Callable[[Any, Sequence[str]], list[Finding]]] = {
    Sequences: check_attention,
    Streams: check_layer_norm,
    Vocabulary: check_vocabulary,
    Prototypes: check_prototypes,
}


class Doctor:
    """Checks of one process; all processes of a run make the same.

    Args:
      config: the run; None looks at the machine alone, and at the kernels of `shapes`.
      shapes: a run whose shapes the kernels are checked at, where there is no other.
      workdir: of the run, local or `gs://`; None checks none.
      stage: whose step and data are looked at; None is the first.
      data: files to read in place of the stage's.

    Raises:
      ValueError: there is no such stage.
    """

    def __init__(
        self,
        config: TrainConfig | None,
        shapes: TrainConfig,
        workdir: str | None = None,
        stage: str | None = None,
        data: str | None = None,
    ):
        self._config, self._workdir, self._data = config, workdir, data
        self._shapes = config or shapes
        self._stage = self._shapes.find_stage(stage) if stage else self._shapes.resolved[0]
        self._step: steps.Step | None = None

    def phases(self) -> list[Phase]:
        """Checks of the host, and those that need its devices."""
        return [lambda: [*self._of_host()], lambda: [*self._of_devices()]]

    def _of_host(self) -> Iterator[Check]:
        config = self._config
        yield Check("versions", check_versions)
        yield Check("versions of all hosts", check_same_versions)
        yield Check("disk", lambda: check_disk(self._places()))
        yield Check("clocks", check_clocks)
        yield Check("workdir", self._check_workdir)
        yield Check("memory", functools.partial(check_memory, config))
        yield Check("devices", functools.partial(check_devices, config))

    def _of_devices(self) -> Iterator[Check]:
        try:
            devices = jax.local_devices()
        except RuntimeError:  # which is what the check of the devices says
            return
        config = self._config
        for stage in config.resolved if config else ():
            name = f"needs of stage {stage.name}"
            yield Check(name, functools.partial(self._check_needs, name, stage))
        yield Check("memory of devices", lambda: check_device_memory(devices))
        yield Check("rates", lambda: check_rates(devices))
        yield Check("links", lambda: check_links(make_mesh(self._shapes.replica)))
        for shape, settings in shapes_of(self._shapes, jax.device_count()).items():
            run = functools.partial(_OF_SHAPES[type(shape)], shape, settings)
            yield Check(name_of(shape), run, late="SKIP", share=SHARE_OF_KERNELS)
        if config is None:
            yield Check("data", self._read_alone)
            yield Check("step", lambda: [skipped("step", _NO_CONFIG)], late="SKIP")
            return
        way_out = f"{self._stage.least_memory}, a smaller batch_size, or more devices"
        yield Check("step", self._check_step, "SKIP", way_out)
        yield Check("data", self._check_data)

    def _check_needs(self, name: str, stage: ResolvedStage) -> Findings:
        assert self._config is not None
        pipeline = stage_pipeline(with_source(stage, self._data), open_tokenizer(self._config))
        check_stage(Program(stage), pipeline, self._config, self._workdir or ".")
        yield passed(name, "its data and what it starts from are there")

    def _check_workdir(self) -> Findings:
        if self._workdir is None:
            return [skipped("workdir", "no --workdir was named")]
        return check_workdir(self._workdir)

    def _places(self) -> dict[str, float]:
        """Directories that will be written to, with the bytes that each needs."""
        places: dict[str, float] = {}
        if self._workdir is None:  # which would hold the compiled programs
            places[str(user_cache("programs"))] = LEAST_DISK
        if self._config is None:
            return places
        places |= {x.data.cache: LEAST_DISK for x in self._config.stages if x.data.cache}
        if self._workdir is not None:
            kept = self._config.checkpoints.keep_last + len(self._config.stages)
            places[self._workdir] = LEAST_DISK + kept * max(map(state_bytes, self._config.resolved))
        return places

    def _read_alone(self) -> Findings:
        if self._data is None:
            return [skipped("data", f"{_NO_CONFIG}, and no --data")]
        return check_reading(with_source(self._stage, self._data).data, SECONDS_OF_DATA / 2)

    def _check_step(self) -> Findings:
        assert self._config is not None
        mesh = make_mesh(self._config.replica)
        prepare = stage_pipeline(self._stage, open_tokenizer(self._config)).prepare
        self._step = steps.run_step(self._stage, mesh, prepare)
        yield from steps.judge_step(self._step, mesh, steps.estimate_of, self._stage.least_memory)

    def _check_data(self) -> Findings:
        assert self._config is not None
        stage = with_source(self._stage, self._data)
        if self._step is None:
            yield from check_reading(stage.data, SECONDS_OF_DATA / 2)
            return
        prepare = stage_pipeline(stage, open_tokenizer(self._config)).prepare
        rates = measure_input(stage, prepare, SECONDS_OF_DATA / 2)
        need = self._step.batch_size / jax.process_count() / self._step.seconds
        yield from judge_input(rates, need)


def name_of(shape: Shape) -> str:
    """Name of the check of a shape."""
    kinds = {Sequences: "attention", Streams: "LayerNorm", Vocabulary: "vocabulary loss"}
    return f"{kinds.get(type(shape), 'prototypes')}, {shape}"


def state_bytes(stage: ResolvedStage) -> int:
    """Size of a checkpoint of a stage."""
    state = abstract_state(Program(stage), make_mesh(1, jax.devices()[:1]))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
