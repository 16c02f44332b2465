"""Needs of the input side of a host: cores, bandwidth, requests and memory, for a planned step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from siglip2_jax.config import ResolvedStage
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.data.pipeline import PLACING
from siglip2_jax.planner.host_cores import (
    CHIPS_PER_HOST,
    IMAGES_PER_CORE_SECOND,
    host_cores_needed,
)
from siglip2_jax.planner.plan import StepPlan


@dataclass(frozen=True)
class Assumptions:
    """Assumptions on the data and the store, which a plan does not look at.

    Attributes:
      images_per_core_second: what one CPU core prepares.
      image_bytes: size of an image's file with its captions, on average.
      images_per_request: examples of a block, which is read at once.
      dollars_per_request: price of a read; of Cloud Storage's class B operations unless told
        otherwise.
    """

    images_per_core_second: float = IMAGES_PER_CORE_SECOND
    image_bytes: float = 264e3
    images_per_request: int = 128
    dollars_per_request: float = 0.0004 / 1000


@dataclass(frozen=True)
class HostInput:
    """Needs of a host while it trains steps of a plan.

    Attributes:
      stage: name of the stage.
      budget: patches an image may have.
      chips: of the host.
      images_per_second: images that its chips train on.
      cores: CPU cores that prepare these.
      bytes_per_second: of the images' files.
      requests_per_second: to a store.
      window_bytes: memory, or local disk, for blocks that are read ahead from a store.
      buffer_bytes: shared memory for batches on their way to the chips.
    """

    stage: str
    budget: int
    chips: int
    images_per_second: float
    cores: int
    bytes_per_second: float
    requests_per_second: float
    window_bytes: float
    buffer_bytes: int


def host_input(plan: StepPlan, stage: ResolvedStage, assumed: Assumptions) -> HostInput:
    """Needs of one host.

    Args:
      plan: of a step.
      stage: what it is a step of.
      assumed: what is not known of the data.
    """
    chips = min(CHIPS_PER_HOST, plan.chips)
    images = plan.examples_per_second * chips
    shuffle = stage.data.shuffle
    order = shuffle if isinstance(shuffle, BlockShuffle) else BlockShuffle()
    sizes = [stage.lengths.batch_size(x, stage.read_size) for x in stage.lengths.budgets]
    lanes, window = order.resolve(tuple(sizes))
    # Of each lane one window is in use and the next one comes in.
    held = 2 * window * assumed.images_per_request * lanes * chips / plan.chips
    return HostInput(
        stage=plan.stage,
        budget=plan.budget,
        chips=chips,
        images_per_second=images,
        cores=host_cores_needed(plan.examples_per_second, assumed.images_per_core_second, chips),
        bytes_per_second=images * assumed.image_bytes,
        requests_per_second=images / assumed.images_per_request,
        window_bytes=held * assumed.image_bytes,
        buffer_bytes=plan.memory.get("inputs", 0) * chips * (stage.data.prefetch + PLACING),
    )


def request_dollars(plans: Sequence[StepPlan], assumed: Assumptions) -> float:
    """Price of all requests of the steps of some plans, where the data is in a store."""
    images = sum(plan.batch_size * plan.share * plan.steps for plan in plans)
    return images / assumed.images_per_request * assumed.dollars_per_request


def describe(needs: HostInput, assumed: Assumptions) -> list[str]:
    """Lines of a report on the needs of a host."""
    indent = " " * 15
    return [
        f"  input        host of {needs.chips} chips: {needs.images_per_second:,.0f} images/s, "
        f"{needs.cores} CPU cores at {assumed.images_per_core_second:g} images/s a core",
        f"{indent}{needs.bytes_per_second / 1e6:,.0f} MB/s at {assumed.image_bytes / 1e3:g} KB an "
        f"image, {needs.buffer_bytes / 1e9:.1f} GB for batches on their way",
        f"{indent}from a store: {needs.requests_per_second:,.1f} requests/s of "
        f"{assumed.images_per_request:g} images, {needs.window_bytes / 1e9:,.1f} GB of memory or "
        "local disk (Data.cache)",
    ]
