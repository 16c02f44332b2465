"""libtpu, the extra `tpu`, on machines without a TPU."""

from __future__ import annotations

import os
from pathlib import Path

# libtpu asks a cloud's metadata server for these and prints errors where there is none. Any values
# do: without a chip nothing is made of them.
_UNASKED = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


def quieten_libtpu(devices: Path = Path("/dev")) -> None:
    """Keeps libtpu's errors away where there is no TPU; to be called before JAX is imported.

    JAX loads libtpu all the same, and a TPU is never hidden: a chip can only be reached through
    `accel*` or `vfio/`, and where there is either, or `JAX_FORCE_TPU_INIT`, nothing is changed.

    Args:
      devices: the directory of device files.
    """
    if any(devices.glob("accel*")) or any(devices.glob("vfio/*")):
        return
    if "JAX_FORCE_TPU_INIT" in os.environ:
        return
    for variable, value in _UNASKED.items():
        os.environ.setdefault(variable, value)
