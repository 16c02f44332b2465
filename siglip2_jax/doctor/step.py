"""One real step of a stage: random parameters of its sizes, a batch of random images."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from PIL import Image

from siglip2_jax.config import ResolvedStage
from siglip2_jax.data.collate import collate
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.doctor.check import Finding, Findings, at_most, failed, passed, skipped
from siglip2_jax.planner.estimate import Estimate, local_bytes
from siglip2_jax.planner.hlo.program import analyse, memory
from siglip2_jax.sharding import BATCH, put_batch
from siglip2_jax.train.chips import GIB, find_chip
from siglip2_jax.train.compiler import jit_step
from siglip2_jax.train.feed import BATCHES_WAITING
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.start import abstract_state
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Program
from siglip2_jax.types import Batch

SLOWER = 2.0
"""Times the estimate that a step may take; the estimate leaves out what waits for other work."""
TPU = "tpu"  # the platform whose compiler writes estimates into its programs
_STEPS = 3
_IMAGES = 8  # different ones in the batch


class Step(NamedTuple):
    """Results of a few steps.

    Attributes:
      loss: of the last.
      seconds: of the fastest.
      batch_size: examples that it reads, over all devices.
      budget: patches an image may have.
      flops: of the model, analytic, over all devices.
      compiled: the program.
      waiting: bytes a device, of the batches that wait while it runs.
    """

    loss: float
    seconds: float
    batch_size: int
    budget: int
    flops: int
    compiled: Any
    waiting: int


def run_step(stage: ResolvedStage, mesh: Mesh, prepare: Prepare) -> Step:
    """Compiles the step of the stage's shortest length as training does, and runs it.

    The program is the same, so that training finds it among the compiled ones.

    Args:
      stage: whose step to run.
      mesh: all devices.
      prepare: makes rows of its examples.
    """
    program, budget = Program(stage), min(stage.lengths.budgets)
    size = stage.lengths.batch_size(budget, stage.read_size)
    with jax.set_mesh(mesh):
        shapes = abstract_state(program, mesh)
        split = NamedSharding(mesh, BATCH)
        inputs = abstract_batch(stage, budget, size, split)
        lowered = jit_step(program.step).lower(shapes, inputs)
        compiled = lowered.compile()
        state = _random_state(program, shapes)
        batch = put_batch(random_batch(prepare, budget, size // jax.process_count()), mesh)
        jax.block_until_ready(batch)
        seconds, loss = float("inf"), float("nan")
        for _ in range(_STEPS):
            start = time.perf_counter()
            state, metrics = compiled(state, batch)
            loss = float(metrics["loss"])  # waits for the step
            seconds = min(seconds, time.perf_counter() - start)
    waiting = BATCHES_WAITING * local_bytes(inputs)
    return Step(loss, seconds, size, budget, program.flops(budget, size), compiled, waiting)


def _random_state(program: Program, shapes: TrainState) -> TrainState:
    params = jax.jit(program.init_params)(jax.random.key(0))
    teacher = jax.tree.map(
        lambda x: jax.jit(
            lambda: 0.02 * jax.random.normal(jax.random.key(0), x.shape, x.dtype),
            out_shardings=x.sharding,
        )(),
        shapes.teacher_params,
    )
    return jax.jit(program.init_state)(params, teacher)


def random_batch(prepare: Prepare, budget: int, size: int) -> Batch:
    """Rows of a few random images with captions, again and again.

    Args:
      prepare: makes a row of an example.
      budget: patches an image may have.
      size: number of rows.
    """
    rng = np.random.default_rng(0)
    side = 4 * prepare.preprocess.patch_size * max(1, round(budget**0.5))
    items = []
    for i in range(min(size, _IMAGES)):
        image = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        example = {"image": image, "captions": [f"random image {i}"], "name": f"random/{i}"}
        items.append(prepare(example, rng, budget))
    rows = collate(items, prepare.num_tokens(budget), prepare.pixels)
    order = np.arange(size) % len(items)
    return jax.tree.map(lambda x: x[order], rows)


def judge_step(
    step: Step,
    mesh: Mesh,
    estimate: Callable[[Step, Mesh], float | None],
    least_memory: str,
) -> Findings:
    """Findings on the loss of a step, and on its time against an estimate.

    Args:
      step: what was run.
      mesh: on which devices.
      estimate: seconds that the compiler expects; None where it tells nothing.
      least_memory: options with which the step needs less.
    """
    check, expected = "step: loss", "a finite number"
    if np.isfinite(step.loss):
        yield passed(check, f"{step.loss:.4g}", expected)
    else:
        yield failed(
            check,
            f"{step.loss}",
            expected,
            "--set compute.attention=xla --set compute.norm=xla, or lower optim.peak_lr",
        )
    yield _judge_time(step, mesh, estimate(step, mesh))
    sizes, chip = memory(step.compiled), find_chip(mesh.devices.flat[0].device_kind)
    needed = (sizes["peak"] + step.waiting) / GIB
    if chip is None:
        yield skipped("step: memory", f"{needed:.2f} GiB; that of the device is not known")
        return
    yield at_most(
        "step: memory",
        needed,
        chip.hbm_bytes / GIB,
        "{:.2f} GiB",
        least_memory,
    )


def _judge_time(step: Step, mesh: Mesh, estimated: float | None) -> Finding:
    kind = mesh.devices.flat[0].device_kind
    shown = f"{step.seconds * 1e3:,.1f} ms at {step.budget} patches, batch {step.batch_size:,}"
    if chip := find_chip(kind):
        shown += f", MFU {step.flops / mesh.size / step.seconds / chip.flops:.3f}"
    if estimated is None:
        return skipped("step: time", f"{shown}; there is no estimate for a {kind}")
    return at_most(
        "step: time",
        step.seconds * 1e3,
        SLOWER * estimated * 1e3,
        "{:,.1f} ms",
        f"see where the time goes: --set logging.profile.start=10; the estimate is "
        f"{estimated * 1e3:,.1f} ms, as `siglip2 plan` reads it off the compiled program",
    )


def estimate_of(step: Step, mesh: Mesh) -> float | None:
    """Seconds of a step as `siglip2 plan` estimates them, read off the program that ran.

    Only a TPU's program holds the compiler's estimates; kernels count by their own.
    """
    device = mesh.devices.flat[0]
    chip = find_chip(device.device_kind)
    if device.platform != TPU or chip is None:
        return None
    analysis = analyse(step.compiled.as_text() or "", chip)
    return Estimate(
        batch_size=step.batch_size,
        chips=mesh.size,
        chip=chip,
        memory=memory(step.compiled),
        model_flops=step.flops / mesh.size,
        flops=analysis.flops,
        hbm_bytes=analysis.hbm_bytes,
        collectives=analysis.collectives,
        scheduled=analysis.seconds,
    ).seconds
