"""libtpu, the extra `tpu`, on machines without a TPU."""

from __future__ import annotations

import os
from pathlib import Path

# libtpu asks a cloud's metadata server for these and prints errors where there is none. Any values
# will do: without a chip they have no effect.
_UNASKED = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


def quieten_libtpu(devices: Path = Path("/dev")) -> None:
    """Prevents libtpu's errors where there is no TPU; call it before JAX is imported.

    JAX loads libtpu all the same, and a TPU is never hidden: a chip can only be reached through
    `accel*` or `vfio/`, and where either exists, or `JAX_FORCE_TPU_INIT` is set, nothing changes.

    Args:
      devices: the directory of device files.
    """
    if any(devices.glob("accel*")) or any(devices.glob("vfio/*")):
        return
    if "JAX_FORCE_TPU_INIT" in os.environ:
        return
    for variable, value in _UNASKED.items():
        os.environ.setdefault(variable, value)
