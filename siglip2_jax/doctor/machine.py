"""Devices, their memory, free memory and disk of the host, and clocks of all hosts."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from siglip2_jax.config import TrainConfig
from siglip2_jax.data.workers.machine import free_memory, usable_cores
from siglip2_jax.doctor.check import Finding, Findings, at_least, at_most, failed, passed, skipped
from siglip2_jax.doctor.examine import SECONDS_TO_MEET
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.chips import GIB, find_chip
from siglip2_jax.train.distributed import gather
from siglip2_jax.train.inputs import check_batches, open_tokenizer, stage_pipeline, stage_reading

LEAST_MEMORY = 2.0 * GIB  # of a host, for the training process itself
LEAST_DISK = 2.0 * GIB  # for programs and logs
MEMORY_SHARE = 0.5  # of a device's memory; JAX takes three quarters of a GPU's
CLOCK_SECONDS = 2.0
_FILES = re.compile(r"accel\d+|vfio/\d+|nvidia\d+")  # of accelerators, in /dev


def check_devices(config: TrainConfig | None, files: Path = Path("/dev")) -> Findings:
    """Devices that JAX finds, that no accelerator is left out, and the mesh of the config."""
    devices = jax.devices()
    kinds = Counter(device.device_kind for device in devices)
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    hosts = Counter(device.process_index for device in devices)
    words = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    yield _alike(f"{words}, processes: {len(hosts)}, slices: {len(slices)}", (kinds, slices, hosts))
    names = (f"{path.relative_to(files)}" for path in (*files.glob("*"), *files.glob("vfio/*")))
    accelerators = sorted(filter(_FILES.fullmatch, names))
    if devices[0].platform == "cpu" and accelerators and not os.environ.get("JAX_PLATFORMS"):
        yield failed(
            "accelerator",
            f"JAX computes on the CPU, though there is {files / accelerators[0]}",
            "all accelerators in use",
            "install siglip2_jax[tpu] or siglip2_jax[cuda], and end other processes that use it",
        )
    else:
        yield passed("accelerator", f"JAX computes on {devices[0].platform}")
    if config is not None:
        mesh = make_mesh(config.replica)
        check_batches(config, mesh.size)
        yield passed("mesh", ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items()))


def _alike(words: str, counts: Sequence[Counter]) -> Finding:
    """PASS where there is one kind of device, as many in every slice and process."""
    kinds, *places = counts
    if len(kinds) == 1 and all(len(set(count.values())) == 1 for count in places):
        return passed("devices", words, "alike in all processes and slices")
    uneven = "; ".join(str(dict(count)) for count in counts)
    return failed(
        "devices",
        f"{words}: {uneven}",
        "alike in all processes and slices",
        "create the slices again with one --type",
    )


def check_device_memory(devices: Sequence[Any]) -> Findings:
    """Memory of this process's devices that is free for it."""
    for device in devices:
        stats, chip = device.memory_stats() or {}, find_chip(device.device_kind)
        name = f"memory of device {device.id}"
        if chip is None or "bytes_limit" not in stats:
            yield skipped("memory of devices", f"a {device.device_kind} does not tell it")
            return
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        yield at_least(
            name,
            free / GIB,
            MEMORY_SHARE * chip.hbm_bytes / GIB,
            "{:.1f} GiB",
            "end other processes that use the device",
        )


def check_memory(config: TrainConfig | None) -> Findings:
    """Free memory of the host against what batches that are prepared ahead need."""
    need = LEAST_MEMORY
    if config is not None:
        tokenizer = open_tokenizer(config)
        need += max(
            stage_pipeline(stage, tokenizer).memory(stage_reading(stage))
            for stage in config.resolved
        )
    free = free_memory()
    if free is None:
        yield skipped("memory", "the system does not tell how much is free")
        return
    yield at_least(
        "memory",
        free / GIB,
        need / GIB,
        "{:.1f} GiB",
        "--set data.prefetch=1, or give the container more",
    )
    yield passed("cores", f"{usable_cores()}")


def check_disk(places: dict[str, float]) -> Findings:
    """Free disk space of local directories, which need not exist yet.

    Args:
      places: bytes that each will hold.
    """
    for place, need in places.items():
        folder = epath.Path(place)
        if "://" in place:
            yield skipped(f"disk of {place}", "a store has no end")
            continue
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        yield at_least(
            f"disk of {place}",
            free / GIB,
            need / GIB,
            "{:.1f} GiB",
            "free some, choose another directory, or --set checkpoints.keep_last=1",
        )


def check_clocks() -> Findings:
    """Clocks of all hosts, read after all have met."""
    gather("", SECONDS_TO_MEET)
    yield compare_clocks([float(x) for x in gather(repr(time.time()), SECONDS_TO_MEET) if x])


def compare_clocks(times: Sequence[float]) -> Finding:
    """The spread of clocks that were read at one time."""
    if len(times) < 2:
        return skipped("clocks", "there is one process")
    return at_most(
        "clocks",
        max(times) - min(times),
        CLOCK_SECONDS,
        "{:.2f} s apart",
        "run chrony or ntpd on all hosts",
    )
