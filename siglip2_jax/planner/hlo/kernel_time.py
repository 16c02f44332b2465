"""Run time of Pallas kernels: each is compiled alone, and the bundles of its code are counted.

The compiler puts no time on a kernel. It can be read off the instructions that libtpu dumps (see
`bundles` for what that leaves out), but dumps must be asked for before libtpu is loaded and are
then made of every program. So kernels are compiled a second time, each alone, in a process of its
own. There all operands lie in HBM, of which a whole program may keep some in VMEM.

(libtpu also simulates operations on request, `xla_jf_dump_static_llo_profile_to`: 2 KB of memory
for each cycle of every operation, which no real program leaves room for.)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from siglip2_jax.planner.hlo.bundles import kernel_cycles
from siglip2_jax.planner.hlo.kernels import TARGET, Kernel, kernel_of
from siglip2_jax.planner.hlo.parse import parse
from siglip2_jax.planner.results import NO_RESULTS, Results, digest_code, key_of
from siglip2_jax.planner.topology import compile_only, tpu_topology
from siglip2_jax.sharding import Device
from siglip2_jax.train.chips import Chip

_TOPOLOGIES = {"v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1"}
_SECONDS = 900
_FLAGS = {
    "xla_jf_dump_to": "{}",
    "xla_jf_dump_llo_text": "true",
    "xla_jf_dump_llo_pass_label_regex": "final_bundles",  # gigabytes otherwise
}
_TYPES = {"bf": "bfloat", "f": "float", "s": "int", "u": "uint"}

_log = logging.getLogger(__name__)


def cycles_of(
    kernels: tuple[Kernel, ...], chip: Chip, results: Results = NO_RESULTS
) -> tuple[int | None, ...]:
    """Cycles of one call of each kernel on one core, at one bundle a cycle.

    Takes some seconds, and what compiling the kernels takes.

    Args:
      kernels: any number; none take no time.
      chip: a TPU.
      results: of earlier compilations.

    Returns:
      One number for each; None where it cannot be told: a loop of unknown length, another chip, a
      kernel that does not compile alone, or a libtpu that dumps something else.
    """
    if chip.name not in _TOPOLOGIES:
        return (None,) * len(kernels)
    code = digest_code("planner/hlo")
    keys = {kernel: key_of("kernel", repr(kernel), chip.name, code) for kernel in kernels}
    cycles = {kernel: results.get(key) for kernel, key in keys.items()}
    new = [kernel for kernel in kernels if cycles[kernel] is None]
    for kernel, number in zip(new, _compile_alone(new, chip), strict=True):
        cycles[kernel] = number
        if number is not None:
            results.put(keys[kernel], number)
    return tuple(cycles[kernel] for kernel in kernels)


def _compile_alone(kernels: list[Kernel], chip: Chip) -> list[int | None]:
    if not kernels:
        return []
    with tempfile.TemporaryDirectory(prefix="siglip2-kernels-") as directory:
        jobs = {
            "topology": _TOPOLOGIES[chip.name],
            "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        }
        try:
            return _in_a_process(Path(directory), jobs)
        except subprocess.CalledProcessError as error:
            why = error.stderr.strip().rpartition("\n")[2] or str(error)
        except (subprocess.TimeoutExpired, OSError) as error:
            why = str(error)
    _log.warning("kernels could not be compiled alone to be timed: %s", why)
    return [None] * len(kernels)


def _in_a_process(work: Path, jobs: dict[str, Any]) -> list[int | None]:
    (work / "dump").mkdir()
    (work / "jobs.json").write_text(json.dumps(jobs))
    flags = [f"--{name}={value.format(work / 'dump')}" for name, value in _FLAGS.items()]
    # A libtpu that no longer knows a flag is to ignore it rather than to exit.
    flags.insert(0, f"--undefok={','.join(_FLAGS)}")
    user_flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    subprocess.run(
        [sys.executable, "-m", "siglip2_jax.planner.hlo.kernel_time", str(work)],
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": " ".join([user_flags, *flags]).strip()},
        timeout=_SECONDS,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads((work / "cycles.json").read_text())


def _main(work: Path) -> None:
    """Compiles, in a process of its own, the kernels that `jobs.json` lists."""
    jobs = json.loads((work / "jobs.json").read_text())
    device = tpu_topology(jobs["topology"])[0]
    cycles = [_measure(Kernel(**kernel), device, work / "dump") for kernel in jobs["kernels"]]
    (work / "cycles.json").write_text(json.dumps(cycles))


def _measure(kernel: Kernel, device: Device, dump: Path) -> int | None:
    try:
        name = _compile(kernel, device)
        (path,) = (
            path
            for path in dump.glob(f"*-{name}-*-final_bundles.txt")
            if "schedule-analysis" not in path.name
        )
        return kernel_cycles(path.read_text())
    except (ValueError, jax.errors.JaxRuntimeError):
        return None
    finally:
        for path in dump.iterdir():
            path.unlink()


def _compile(kernel: Kernel, device: Device) -> str:
    """Compiles a program that is only this kernel; returns what the call is named there."""
    call = jax.ffi.ffi_call(
        TARGET,
        [jax.ShapeDtypeStruct(dims, _dtype(kind)) for kind, dims in kernel.results],
        custom_call_api_version=1,  # as Pallas calls them
        legacy_backend_config=kernel.config,
    )
    here = SingleDeviceSharding(device)
    operands = [
        jax.ShapeDtypeStruct(dims, _dtype(kind), sharding=here) for kind, dims in kernel.operands
    ]
    compiled = compile_only(jax.jit(lambda *operands: call(*operands)).lower(*operands))
    (name,) = (
        x.name
        for computation in parse(compiled.as_text() or "").computations.values()
        for x in computation.instructions.values()
        if kernel_of(x, computation)
    )
    return name


def _dtype(kind: str) -> str:
    """JAX's name of an HLO element type."""
    if kind == "pred":
        return "bool"
    prefix = kind.rstrip("0123456789")
    if prefix not in _TYPES or prefix == kind:
        raise ValueError(f"kernels with arrays of {kind} cannot be compiled alone")
    return _TYPES[prefix] + kind[len(prefix) :]


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
