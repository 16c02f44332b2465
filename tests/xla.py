"""XLA options under which tests compile several times faster, and processes that compile once."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

PROGRAMS = "SIGLIP2_TEST_PROGRAMS"  # names a directory of compiled programs

QUICK: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
"""Compiler options. Nothing in the tests runs long enough to need the optimisations."""

# Newer versions have no other emitters, and an option that XLA does not know ends the process.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False

QUICK_FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
"""The same options for the environment variable `XLA_FLAGS`."""


def keep_programs() -> str:
    """The directory for programs of this process and of those it starts, until it ends."""
    if PROGRAMS not in os.environ:
        os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="siglip2_jax_programs_")
        atexit.register(shutil.rmtree, os.environ[PROGRAMS], ignore_errors=True)
    return os.environ[PROGRAMS]


def environment(devices: int = 1, processes: int = 1, scans: bool = True) -> dict[str, str]:
    """The environment of processes with simulated devices.

    A CPU program that XLA reads back from its cache no longer orders the collectives inside a scan
    with those outside of it, and devices wait for each other for ever. Programs of a single device
    or without a scan are kept.

    Args:
      devices: of each process.
      processes: that train together.
      scans: whether their programs may hold a scan.
    """
    flags = (
        f"--xla_force_host_platform_device_count={devices} {QUICK_FLAGS} "
        "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    )
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",
        "XLA_FLAGS": flags,
        "JAX_ENABLE_COMPILATION_CACHE": str(devices * processes == 1 or not scans).lower(),
        "JAX_COMPILATION_CACHE_DIR": keep_programs(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def plain_environment() -> dict[str, str]:
    """The environment of a user: one device, and programs that XLA optimises."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}
