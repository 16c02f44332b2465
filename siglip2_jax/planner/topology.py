"""Meshes of absent TPUs to compile for: one CPU machine plans for a pod.

libtpu holds the whole TPU compiler and can describe any slice by name. Programs lowered for a mesh
of such devices compile to exactly what the slice would run, memory and schedule included; they
cannot be run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from siglip2_jax.sharding import Device, make_mesh

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a cloud's metadata server what machine this is
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any; without one libtpu prints a warning
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock file: no chip is opened
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_NAME = re.compile(r"(v5e|v6e|v5p):(\d+(?:x\d+){1,2})")


def tpu_topology(name: str = "v5e:16x16", slices: int = 1) -> list[Device]:
    """Describes slices of TPUs; opens no device and no connection.

    The process that calls this should be one that only plans: variables that libtpu reads are set
    in its environment where they are not, and JAX is told to compute on the CPU unless a platform
    was chosen. Takes less than a second the first time and milliseconds later, whether or not JAX
    has been used before.

    Args:
      name: generation and shape in chips: "v5e:16x16" or "v6e:2x4" (also one chip, "v5e:1x1"), and
        "v5p:4x4x4". v4 is left out because libtpu describes its cores rather than its chips.
      slices: how many such slices, connected by the data-centre network.

    Returns:
      The chips, in libtpu's order; with more than one slice they have a `slice_index`.

    Raises:
      ValueError: libtpu knows no such topology, or `slices` is less than 1.
      OSError: libtpu is not installed.
    """
    if slices < 1:
        raise ValueError(f"slices is {slices}, expected 1 or more")
    unknown = ValueError(
        f"unknown TPU topology {name!r}, expected v5e, v6e or v5p and an existing shape in chips, "
        "such as 'v5e:16x16', 'v6e:2x4', 'v5e:1x1' or 'v5p:4x4x4'"
    )
    match = _NAME.fullmatch(name)
    if match is None:
        raise unknown
    shape = [int(side) for side in match[2].split("x")]
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if jax.config.values["jax_platforms"] is None:
        jax.config.update("jax_platforms", "cpu")
    try:
        topology = topologies.get_topology_desc(
            name,
            platform="tpu",
            num_slices=slices,
            # The default of 2x2 chips per host does not divide slices smaller than a host.
            chips_per_host_bounds=[min(2, side) for side in shape[:2]] + [1],
        )
    except jax.errors.JaxRuntimeError as error:
        raise unknown from error
    except RuntimeError as error:
        raise OSError(
            "compiling for TPUs needs libtpu, which is not installed; "
            "run: pip install 'siglip2_jax[tpu]'"
        ) from error
    return list(topology.devices)


def topology_mesh(name: str = "v5e:16x16", slices: int = 1, replica: int | None = None) -> Mesh:
    """The mesh that a training run makes on these slices (see `sharding.make_mesh`).

    Args:
      name: of one slice, as in `tpu_topology`.
      slices: how many.
      replica: size of the "replica" axis, a multiple of `slices`; None as in `make_mesh`.

    Raises:
      ValueError: as `tpu_topology`, or the chips cannot be divided so.
      OSError: libtpu is not installed.
    """
    return make_mesh(replica, tpu_topology(name, slices))


def compile_only(lowered: jax.stages.Lowered, reports: Path | None = None) -> jax.stages.Compiled:
    """Compiles a program for absent chips.

    As `lowered.compile()`, but leaves nothing in JAX's persistent compilation cache, which writes
    such programs and then fails, with a warning, to read them.

    Args:
      lowered: a program lowered for devices of `tpu_topology`.
      reports: a folder that the compiler's own reports go to.

    Returns:
      The compiled program, to be looked at.
    """
    option = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[option]
    jax.config.update(option, 1e9)
    try:
        return lowered.compile(reports and {"xla_dump_to": str(reports)})
    finally:
        jax.config.update(option, before)
