import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

pytest.importorskip("libtpu")
pytestmark = pytest.mark.tpu

from siglip2_jax.planner.topology import compile_only, topology_mesh, tpu_topology  # noqa: E402
from siglip2_jax.sharding import make_mesh  # noqa: E402


@pytest.mark.parametrize(
    ("name", "slices", "chips", "kind"),
    [
        ("v5e:16x16", 1, 256, "TPU v5 lite"),
        ("v5e:16x16", 8, 2048, "TPU v5 lite"),
        ("v5e:1x1", 1, 1, "TPU v5 lite"),
        ("v5e:2x4", 1, 8, "TPU v5 lite"),
        ("v6e:2x2", 2, 8, "TPU v6 lite"),
        ("v5p:4x4x4", 1, 64, "TPU v5"),
    ],
)
def test_topologies(name, slices, chips, kind):
    devices = tpu_topology(name, slices)
    assert len(devices) == chips
    assert {device.device_kind for device in devices} == {kind}
    if slices > 1:
        assert {device.slice_index for device in devices} == set(range(slices))


@pytest.mark.parametrize("name", ["v5e", "v5e:3x3", "v5e:0x0", "v4:2x2x1", "nonsense", "v5e:16"])
def test_unknown_topologies(name):
    with pytest.raises(ValueError, match=f"unknown TPU topology '{name}', expected v5e"):
        tpu_topology(name)


def test_slices_must_be_positive():
    with pytest.raises(ValueError, match="slices is 0"):
        tpu_topology("v5e:2x2", slices=0)


def test_one_slice_follows_the_torus():
    mesh = topology_mesh("v5e:4x4")
    assert mesh.axis_names == ("replica", "fsdp")
    assert mesh.axis_types == (AxisType.Explicit,) * 2
    assert mesh.devices.shape == (1, 16)
    coords = np.array([device.coords for device in mesh.devices[0]])
    steps = np.abs(np.roll(coords, -1, axis=0) - coords).sum(axis=1)
    assert (steps == 1).all()  # a ring of neighbours


@pytest.mark.parametrize(
    ("name", "slices", "shape"),
    [("v5e:2x4", 1, (1, 8)), ("v5e:16x16", 1, (16, 16)), ("v5e:8x16", 2, (16, 16))],
)
def test_parameters_are_split_over_few_chips_of_a_slice(name, slices, shape):
    mesh = topology_mesh(name, slices)
    assert mesh.devices.shape == shape
    rows = [{getattr(device, "slice_index", 0) for device in row} for row in mesh.devices]
    assert all(len(row) == 1 for row in rows)


@pytest.mark.parametrize("replica", [1, 2])
def test_one_slice_is_the_mesh_of_a_run(replica):
    mesh = topology_mesh("v5e:4x4", replica=replica)
    devices = sorted(mesh.devices.flat, key=lambda device: device.id)
    assert mesh == make_mesh(replica, devices)


@pytest.mark.parametrize("replica", [2, 4, 32])
def test_slices_are_rows_of_the_replica_axis(replica):
    mesh = topology_mesh("v5e:4x4", slices=2, replica=replica)
    assert mesh.devices.shape == (replica, 32 // replica)
    slice_of = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slice_of == np.repeat([0, 1], replica // 2)[:, None]).all()
    assert len(set(mesh.devices.flat)) == 32


@pytest.mark.parametrize("replica", [0, 1, 3, 64])
def test_replica_must_fit(replica):
    with pytest.raises(ValueError, match=f"cannot form {replica} replicas"):
        topology_mesh("v5e:4x4", slices=2, replica=replica)


def test_programs_compile_for_two_slices_and_are_not_cached():
    mesh = topology_mesh("v5e:2x2", slices=2)
    sharding = NamedSharding(mesh, PartitionSpec(("replica", "fsdp"), None))
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=sharding)
    for _ in range(2):  # a cached program would warn, which is an error here
        compiled = compile_only(jax.jit(lambda x: x.sum(axis=0)).lower(x))
    assert "f32[8,128]" in compiled.as_text()
    assert "xla_megascale_runtime" in compiled.as_text()


def run(code: str) -> subprocess.CompletedProcess:
    """Runs a program in a new process that knows nothing of JAX's platforms."""
    hidden = ("JAX_", "TPU_", "XLA_", "ALLOW_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_a_fresh_process_is_quiet_and_computes_on_the_cpu():
    done = run(
        "import jax\n"
        "from siglip2_jax.planner.topology import tpu_topology\n"
        "print(len(tpu_topology('v5e:2x2')), jax.numpy.ones(1).device.platform)"
    )
    assert (done.stdout, done.stderr) == ("4 cpu\n", "")


def test_without_libtpu():
    done = run(
        "import sys; sys.modules['libtpu'] = None\n"
        "from siglip2_jax.planner.topology import tpu_topology\n"
        "try: tpu_topology()\n"
        "except OSError as error: print(error)"
    )
    assert "needs libtpu, which is not installed; run: pip install 'siglip2_jax[tpu]'" in (
        done.stdout
    )
