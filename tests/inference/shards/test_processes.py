"""Processes under JAX's distributed runtime: each takes its share, and none waits for another."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from inference.shards.shard_inputs import IMAGES, OPTIONS, shards  # noqa: E402

from siglip2_jax.inference.shards import (  # noqa: E402
    Options,
    embed_shards,
    merge,
    read_shards,
)
from siglip2_jax.testing import tiny_embedder  # noqa: E402

pytestmark = [pytest.mark.search, pytest.mark.slow]
SIZES = 2, 3, 1, 3, 2
PROGRAM = """
import sys
import jax
from inference.shards.shard_inputs import OPTIONS, shards
from siglip2_jax.inference.shards import Options, embed_shards
from siglip2_jax.testing import tiny_embedder

address, number, out = sys.argv[1:]
jax.distributed.initialize(address, 2, int(number))
assert jax.process_count() == 2 and len(jax.devices()) == 4
model = tiny_embedder()
model.replicate_over(jax.local_devices())
print(embed_shards(model, shards(*{sizes}), out, Options(**OPTIONS)).shards, flush=True)
"""


def start(address: str, number: int, out: Path) -> subprocess.Popen:
    program = PROGRAM.replace("{sizes}", repr(SIZES))
    command = [sys.executable, "-c", program, address, str(number), str(out)]
    places = [*map(str, Path(__file__).parents[2:4]), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(places),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_each_process_takes_its_share_on_its_own_devices(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    running = [start(address, number, tmp_path / "two") for number in range(2)]
    ends = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], ends
    assert [int(out.split()[-1]) for out, _ in ends] == [3, 2]
    assert merge(tmp_path / "two").images == IMAGES
    embed_shards(tiny_embedder(), shards(*SIZES), tmp_path / "one", Options(**OPTIONS))
    merge(tmp_path / "one")
    np.testing.assert_allclose(
        read_shards(tmp_path / "two").embeddings(),
        read_shards(tmp_path / "one").embeddings(),
        atol=2**-11,
    )
