"""Plans of many steps: in processes side by side, as memory allows, and only what is new."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from siglip2_jax.config import Origin, ResolvedStage, load_config
from siglip2_jax.data.workers.machine import free_memory, usable_cores
from siglip2_jax.planner.estimate import DoesNotFit, has_all_times
from siglip2_jax.planner.plan import StepPlan, plan_step
from siglip2_jax.planner.processes import in_processes
from siglip2_jax.planner.results import (
    Results,
    describe_mesh,
    digest_code,
    digest_user_code,
    key_of,
)
from siglip2_jax.planner.topology import topology_mesh

Answer = StepPlan | DoesNotFit
"""The plan of a step, or the reason why there is none."""

LOOP_BYTES, UNROLLED_BYTES = 7 * 2**30, 12 * 2**30
"""Memory that compiling a step of many chips may take, with layers in a loop or unrolled."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A step to plan, in another process.

    Attributes:
      origin: of the config.
      stage: name of the stage.
      budget: patches an image may have.
      topology: of one slice.
      slices: how many of those.
    """

    origin: Origin
    stage: str
    budget: int
    topology: str
    slices: int

    def load(self) -> tuple[ResolvedStage, Mesh]:
        """The stage, and the mesh that it trains on."""
        config = load_config(*self.origin)
        mesh = topology_mesh(self.topology, self.slices, config.replica)
        return config.find_stage(self.stage), mesh

    def unrolls(self) -> bool:
        """True where the stage's layers are no loop."""
        return not load_config(*self.origin).find_stage(self.stage).compute.scan


def plan_all(
    jobs: Sequence[Job], results: Results, at_once: int | None = None
) -> Iterator[tuple[Job, Answer]]:
    """Plans every job; those that were planned before come first, at once.

    Args:
      jobs: each once.
      results: of earlier compilations.
      at_once: processes; None takes one for each core as far as memory allows.

    Yields:
      Each job when it is done.

    Raises:
      ValueError: a stage cannot be planned.
      RuntimeError: a process failed, as its output says, or was killed.
    """
    keys = {job: _key(job) for job in jobs}
    new: list[Job] = []
    for job, key in keys.items():
        answer = None if key is None else results.get(key)
        if answer is None:
            new.append(job)
        else:
            yield job, answer
    work = functools.partial(_plan, results)
    for job, answer in in_processes(work, new, at_once or _processes(new)):
        key = keys[job]
        if key and (isinstance(answer, DoesNotFit) or has_all_times(answer.operations)):
            results.put(key, answer)
        yield job, answer


def _key(job: Job) -> str | None:
    """Key of a job's plan, known without tracing the step; None if the config has no digest."""
    stage, mesh = job.load()
    try:
        settings = pickle.dumps(stage)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None  # such as a lambda
    code = digest_code(), digest_user_code()
    return key_of("step", settings, str(job.budget), describe_mesh(mesh), *code)


def _processes(jobs: Sequence[Job]) -> int:
    """Processes that this machine has room for."""
    free, most = free_memory(), usable_cores()
    if free is not None:
        unrolled = any(job.unrolls() for job in jobs)
        most = min(most, free // (UNROLLED_BYTES if unrolled else LOOP_BYTES))
    return max(1, most)


def _plan(results: Results, job: Job) -> Answer:
    """Compiles the step of a job."""
    stage, mesh = job.load()
    try:
        return plan_step(stage, job.budget, mesh, results=results)
    except DoesNotFit as error:
        return error
