"""Plan of embedding images on absent TPUs: rates, memory, needs of a host, hours and cost.

Hosts do not talk to each other, so one host's program is planned, and a slice is many of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip2_jax.inference.programs import programs
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import ModelConfig
from siglip2_jax.models.flops import vision_flops
from siglip2_jax.models.siglip2 import abstract_model
from siglip2_jax.planner.estimate import Estimate, chip_of, local_bytes, measure
from siglip2_jax.planner.host_cores import host_cores_needed
from siglip2_jax.planner.host_input import Assumptions
from siglip2_jax.planner.results import NO_RESULTS, Results
from siglip2_jax.planner.topology import topology_mesh
from siglip2_jax.preprocess.patches import pad_and_stack
from siglip2_jax.sharding import BATCH

TOKENS = (8_192, 16_384, 32_768, 65_536)
"""Patches of a chip's batch that are tried, in images of the budget."""
HOUR = 3600.0
_WAITING = 2  # batches on a chip beside the one that runs: one is next, one is being placed


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedPlan(Estimate):
    """One batch of one host; bytes, FLOPs and seconds are per chip.

    Its memory has the parts "parameters", "inputs", "activations" (and every other temporary) and
    "code", and beside them "waiting". All parameters are counted, those of the text tower too.

    Attributes:
      patches: of an image, padding included.
      image_bytes: what travels to a chip for an image.
      untimed: how many operations the schedule has no time for.
    """

    patches: int
    image_bytes: int
    untimed: int


def plan_embed(
    config: ModelConfig,
    mesh: Mesh,
    *,
    max_num_patches: int,
    batch_size: int,
    dtype: str = "bfloat16",
    results: Results = NO_RESULTS,
) -> EmbedPlan:
    """Compiles the program that embeds images, and measures it; touches no device.

    Args:
      config: sizes of the model.
      mesh: of one host's chips, each of which holds all parameters.
      max_num_patches: patches an image may have, at native resolution.
      batch_size: images of a batch on one chip.
      dtype: of the matrix products.
      results: of earlier compilations.

    Raises:
      DoesNotFit: the program needs so much memory that the compiler refuses it.
      ValueError: the chips are unknown.
    """
    vision, size = config.vision, batch_size * mesh.size
    patches = vision.num_patches or max_num_patches
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, BATCH)

    _, params = abstract_model(config, Compute(dtype=dtype))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params)
    patch = np.zeros((1, vision.patch_size**2 * 3), np.float32), (1, 1)
    image = pad_and_stack([patch], patches)
    image = dataclasses.replace(image, pixels=np.asarray(image.pixels).astype(dtype))
    images = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=split), image
    )
    embed_image = programs(config, dtype).embed_image
    with jax.set_mesh(mesh):
        lowered = embed_image.lower(params, images, normalize=True)
    analysis, sizes = measure(
        lowered,
        mesh,
        f"embedding {batch_size:,} images of {patches:,} patches a chip",
        "use a smaller batch",
        results,
    )
    inputs, parameters = local_bytes(images), local_bytes(params)
    unused = parameters + inputs - sizes["arguments"]  # the compiler leaves out the text tower
    return EmbedPlan(
        patches=patches,
        image_bytes=inputs // batch_size,
        untimed=len(analysis.not_estimated),
        batch_size=size,
        chips=mesh.size,
        chip=chip_of(mesh),
        memory={
            "parameters": parameters,
            "inputs": inputs,
            "activations": sizes["temporaries"],
            "code": sizes["code"],
            "peak": sizes["peak"] + max(0, unused),
            "waiting": _WAITING * inputs,
        },
        model_flops=float(batch_size * vision_flops(vision, patches)),
        flops=analysis.flops,
        hbm_bytes=analysis.hbm_bytes,
        collectives=analysis.collectives,
        scheduled=analysis.seconds,
    )


def batch_sizes(patches: int) -> list[int]:
    """Batch sizes of a chip that are worth trying, smallest first."""
    return sorted({max(1, tokens // patches) for tokens in TOKENS})


def fastest(plans: Sequence[EmbedPlan]) -> EmbedPlan | None:
    """The plan with most images per second among those that fit; the smaller of equal ones."""
    fitting = [plan for plan in plans if plan.fits]
    return max(fitting, key=lambda x: (x.examples_per_second, -x.batch_size), default=None)


@dataclasses.dataclass(frozen=True)
class Job:
    """Embedding of many images on a slice: needs of each host, hours and cost.

    Attributes:
      items: number of images.
      hosts: of the slice.
      chips: of the slice.
      images_per_second: of one host: what its chips embed, or what its cores prepare if that is
        less.
      cores: CPU cores of a host that keep its chips busy.
      bytes_per_second: of a host's image files.
      requests_per_second: of a host, to a store.
      transfer_bytes_per_second: of patches from a host to its chips.
      hours: for all images, on all hosts.
      chip_hours: paid meanwhile.
      dollars: their price; None where none is known.
      request_dollars: price of all reads from a store.
    """

    items: int
    hosts: int
    chips: int
    images_per_second: float
    cores: int
    bytes_per_second: float
    requests_per_second: float
    transfer_bytes_per_second: float
    hours: float
    chip_hours: float
    dollars: float | None
    request_dollars: float


def plan_job(
    plan: EmbedPlan,
    hosts: int,
    assumed: Assumptions,
    *,
    items: int = 1_000_000,
    dollars_per_chip_hour: float | None = None,
    host_cores: int | None = None,
) -> Job:
    """Needs and cost of embedding so many images.

    Args:
      plan: of a batch of one host.
      hosts: how many there are.
      assumed: what is not known of the images and the store.
      items: number of images.
      dollars_per_chip_hour: price of a chip; None leaves the cost out.
      host_cores: CPU cores that a host has; None takes as many as its chips need.
    """
    rate = plan.examples_per_second * plan.chips
    if host_cores is not None:
        rate = min(rate, host_cores * assumed.images_per_core_second)
    hours = items / (rate * hosts) / HOUR
    chip_hours = hours * hosts * plan.chips
    return Job(
        items=items,
        hosts=hosts,
        chips=hosts * plan.chips,
        images_per_second=rate,
        cores=host_cores_needed(
            plan.examples_per_second, assumed.images_per_core_second, plan.chips
        ),
        bytes_per_second=rate * assumed.image_bytes,
        requests_per_second=rate / assumed.images_per_request,
        transfer_bytes_per_second=rate * plan.image_bytes,
        hours=hours,
        chip_hours=chip_hours,
        dollars=None if dollars_per_chip_hour is None else chip_hours * dollars_per_chip_hour,
        request_dollars=math.ceil(items / assumed.images_per_request) * assumed.dollars_per_request,
    )


def split_into_hosts(topology: str, chips: int) -> tuple[str, int]:
    """The topology of one host of a slice, and the number of its hosts.

    Up to eight chips of v5e and v6e are one host; of larger slices, and of v5p, four are.

    Args:
      topology: name of the slice.
      chips: how many it has.
    """
    kind = topology.partition(":")[0]
    if chips <= (4 if kind == "v5p" else 8):
        return topology, 1
    return f"{kind}:2x2x1" if kind == "v5p" else f"{kind}:2x2", chips // 4


def host_mesh(topology: str) -> tuple[Mesh, int]:
    """The mesh of one host of a slice, with all parameters on each chip, and how many hosts it has.

    Raises:
      ValueError: libtpu knows no such topology.
      OSError: libtpu is not installed.
    """
    host, hosts = split_into_hosts(topology, topology_mesh(topology).size)
    return topology_mesh(host, replica=topology_mesh(host).size), hosts
