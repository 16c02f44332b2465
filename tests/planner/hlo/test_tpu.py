"""Programs compiled for four v5e chips, whose FLOPs and collectives are known from the shapes."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from siglip2_jax.planner.hlo.kernel_time import cycles_of
from siglip2_jax.planner.hlo.kernels import Kernel
from siglip2_jax.planner.hlo.program import AMOUNTS, Analysis, allocated_bytes, analyse, memory, top
from siglip2_jax.planner.topology import compile_only, topology_mesh
from siglip2_jax.train.chips import V5E, find_chip

pytest.importorskip("libtpu")
pytestmark = pytest.mark.tpu


@pytest.fixture(scope="module")
def mesh():
    return topology_mesh("v5e:2x2")


def compiled(mesh, function, *arguments):
    """Compiles for the mesh; arguments are (shape, dtype, axes of the mesh)."""
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))
        for shape, dtype, axes in arguments
    ]
    with jax.set_mesh(mesh):
        return compile_only(jax.jit(function).lower(*shapes))


def on_tpu(mesh, function, *arguments) -> Analysis:
    return analyse(compiled(mesh, function, *arguments).as_text(), V5E)


SQUARE = ((512, 512), jnp.bfloat16, ())
PRODUCT = 2 * 512**3


def test_one_matmul_on_tpu(mesh):
    result = on_tpu(mesh, lambda x, w: x @ w, SQUARE, SQUARE)
    assert result.flops == PRODUCT
    assert result.hbm_bytes == 3 * 512 * 512 * 2
    assert result.collectives == {}
    assert result.not_estimated == ()
    # Not faster than the matrix units are, and not absurdly slow.
    assert 1 < result.seconds * V5E.flops / PRODUCT < 10
    slowest = top(result.operations, AMOUNTS["time"])[0]
    assert slowest.op_name.endswith("dot_general")
    assert f"{Path(__file__).name}:" in slowest.source


def test_batched_matmul_on_tpu(mesh):
    def heads(q, k):
        return jnp.einsum("bqhc,bkhc->bhqk", q, k)

    one = ((8, 256, 4, 64), jnp.bfloat16, ("fsdp",))
    assert on_tpu(mesh, heads, one, one).flops == 2 * 2 * 4 * 256 * 256 * 64


def test_scan_on_tpu(mesh):
    def scan(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=10)[0]

    result = on_tpu(mesh, scan, SQUARE, SQUARE)
    assert result.flops == 10 * PRODUCT
    assert max(op.trips for op in result.operations) == 10


def test_scan_over_stacked_weights_on_tpu(mesh):
    depth, width = 10, 2048

    def scan(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    result = on_tpu(
        mesh, scan, ((128, width), jnp.bfloat16, ()), ((depth, width, width), jnp.bfloat16, ())
    )
    assert result.flops == depth * 2 * 128 * width * width
    weights = depth * width * width * 2
    assert weights <= result.hbm_bytes < 1.1 * weights  # a slice of the stack at a time


def test_nested_scans_on_tpu(mesh):
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w) / 2, None), x, None, length=5)[0]

    assert on_tpu(mesh, outer, SQUARE, SQUARE).flops == 15 * PRODUCT


def test_loops_that_do_not_start_at_zero_or_have_no_bound_on_tpu(mesh):
    def known(x, w):
        return jax.lax.fori_loop(2, 10, lambda i, x: x @ w * i.astype(x.dtype), x)

    def unknown(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ w, x)

    assert on_tpu(mesh, known, SQUARE, SQUARE).flops == 8 * PRODUCT
    result = on_tpu(mesh, unknown, SQUARE, SQUARE)
    assert result.flops == PRODUCT
    assert len(result.loops) == 1


def test_cond_on_tpu(mesh):
    def cond(p, x, w):
        return jax.lax.cond(p > 0, lambda x: jnp.tanh(x @ w) @ w, lambda x: x + 1, x)

    assert on_tpu(mesh, cond, ((), jnp.int32, ()), SQUARE, SQUARE).flops == 2 * PRODUCT


def test_sharded_matmul_on_tpu(mesh):
    def fsdp(x, w):
        return x @ jax.reshard(w, P(None, None))

    result = on_tpu(
        mesh, fsdp, ((1024, 512), jnp.bfloat16, ("fsdp",)), ((512, 256), jnp.bfloat16, ("fsdp",))
    )
    assert result.flops == 2 * 256 * 512 * 256
    assert result.collectives == {"all-gather": 3 * 128 * 256 * 2}
    assert top(result.operations, AMOUNTS["collectives"])[0].op_name.endswith("reshard")


@pytest.mark.parametrize(
    ("kind", "operation", "out", "sent"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), P(), 2 * 3 / 4),
        (
            "reduce-scatter",
            lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True),
            P("fsdp"),
            3 / 4,
        ),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True),
            P(None, "fsdp"),
            3 / 4,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
            P("fsdp"),
            1,
        ),
    ],
)
def test_collectives_on_tpu(mesh, kind, operation, out, sent):
    mapped = jax.shard_map(operation, mesh=mesh, in_specs=(P("fsdp"),), out_specs=out)
    result = on_tpu(mesh, mapped, ((4096, 512), jnp.bfloat16, ("fsdp",)))
    assert result.collectives == {kind: 1024 * 512 * 2 * sent}


def test_layers_with_gathered_weights_on_tpu(mesh):
    """Forward and backward of a scan, as training does: all is known but the schedule."""
    depth, width, batch = 4, 512, 4096

    def loss(ws, x):
        def layer(x, w):
            return jnp.tanh(x @ jax.reshard(w.astype(x.dtype), P(None, None))), None

        return jax.lax.scan(layer, x, ws)[0].astype(jnp.float32).sum()

    result = on_tpu(
        mesh,
        jax.grad(loss),
        ((depth, width, width), jnp.float32, (None, "fsdp")),
        ((batch, width), jnp.bfloat16, ("fsdp",)),
    )
    product = 2 * (batch // 4) * width * width
    # Forward, and for each factor backward.
    assert result.flops == depth * 3 * product
    weights = depth * width * width * 2
    sent = result.collectives
    # Gathered forward, gathered again or kept for the backward pass.
    assert sent["all-gather"] in (weights * 3 // 4, 2 * weights * 3 // 4)
    assert sent.get("all-reduce", 0) / 2 + sent.get("reduce-scatter", 0) == weights * 3 // 4


def test_two_slices_hand_bytes_to_the_network(mesh):
    slices = topology_mesh("v5e:2x2", slices=2)
    mapped = jax.shard_map(
        lambda x: jax.lax.psum(x, "replica"), mesh=slices, in_specs=(P("replica"),), out_specs=P()
    )
    result = on_tpu(slices, mapped, ((2048, 512), jnp.bfloat16, ("replica",)))
    assert result.collectives == {"dcn": 1024 * 512 * 2}


def test_traffic_of_elementwise_work_on_tpu(mesh):
    shape = (65536, 1024)
    result = on_tpu(mesh, lambda x: x * 2 + 1, (shape, jnp.float32, ()))
    assert result.hbm_bytes == 2 * math.prod(shape) * 4
    assert result.seconds > result.hbm_bytes / V5E.hbm_bandwidth


def test_kernels_without_a_timer_are_not_estimated(mesh):
    def kernel(x, y):
        y[...] = x[...] * 2

    shape = (1024, 512)
    double = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(shape, jnp.float32))
    mapped = jax.shard_map(double, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)

    def twice(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: mapped(x), x)

    result = on_tpu(mesh, twice, (shape, jnp.float32, ()))
    (op,) = result.not_estimated
    assert (op.opcode, op.trips, op.cycles) == ("custom-call", 3, None)
    assert op in result.not_counted


def products(grid, loops, flops):
    """Squares 256 x 256 matrices, one for each program, several times; so many FLOPs are said."""

    def kernel(x, y):
        def body(i, total):
            product = jnp.dot(x[0], x[0], preferred_element_type=jnp.float32)
            return total + product * i.astype(jnp.float32)

        y[0] = jax.lax.fori_loop(2, 2 + loops, body, jnp.zeros((256, 256), jnp.float32))

    block = pl.BlockSpec((1, 256, 256), lambda *at: (at[0], 0, 0))
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct((grid[0], 256, 256), jnp.float32),
        cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=0),
    )


def test_kernels_are_timed_by_what_they_are_compiled_to(mesh):
    """The number of programs and the loops within, known from the code, are all that differs."""
    kernels = {
        (16, 12): products((16,), 12, 5),
        (32, 12): products((32,), 12, 5),
        (64, 12): products((64,), 12, 5),
        (16, 24): products((16,), 24, 5),
        (16, 48): products((16,), 48, 5),
    }

    def everything(*arrays):
        return [kernel(x) for kernel, x in zip(kernels.values(), arrays, strict=True)]

    mapped = jax.shard_map(everything, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    shapes = [((programs, 256, 256), jnp.bfloat16, ()) for programs, _ in kernels]
    result = analyse(compiled(mesh, mapped, *shapes).as_text(), V5E, cycles_of)
    calls = {}
    for op in result.operations:
        if op.kernel:
            programs = op.kernel.operands[0][1][0]
            calls.setdefault(programs, []).append(op)
    assert {op.timed_by for ops in calls.values() for op in ops} == {"bundles"}
    assert result.not_estimated == () and result.flops == 5 * 5
    short, middle, long = sorted(op.cycles for op in calls[16])
    assert long - middle == 2 * (middle - short)
    (twice,), (four,) = ([op.cycles for op in calls[programs]] for programs in (32, 64))
    assert four - twice == 2 * (twice - short)
    floor = 16 * 12 * 2 * 256**3 / V5E.flops * V5E.clock_hz
    assert floor < short < 3 * floor
    # Operands and results in HBM, or one of them in VMEM.
    for programs, ops in calls.items():
        assert all(op.hbm_bytes <= programs * 256 * 256 * (2 + 4) for op in ops)


def test_traffic_of_a_kernel_on_tpu(mesh):
    def kernel(x, y):
        y[...] = x[...].astype(jnp.bfloat16)

    shape = (65536, 1024)
    block = pl.BlockSpec((512, 1024), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        grid=(128,),
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(shape, jnp.bfloat16),
    )
    mapped = jax.shard_map(call, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    text = compiled(mesh, mapped, (shape, jnp.float32, ())).as_text()
    result = analyse(text, V5E, lambda kernels, chip: (1,))
    assert result.hbm_bytes == math.prod(shape) * (4 + 2)
    assert result.seconds == pytest.approx(result.hbm_bytes / V5E.hbm_bandwidth, rel=1e-4)


def test_kernels_of_other_chips_are_not_timed():
    assert cycles_of((), V5E) == ()
    kernel = Kernel("{}", (), ())
    assert cycles_of((kernel,), find_chip("TPU v4")) == (None,)


def test_memory(mesh):
    program = compiled(mesh, functools.partial(jnp.add, 1), SQUARE)
    parts = memory(program)
    assert parts["arguments"] == parts["outputs"] == 512 * 512 * 2
    assert parts["aliases"] == 0
    assert parts["peak"] == 2 * 512 * 512 * 2 + parts["temporaries"] + parts["code"]


def test_memory_of_a_loop_is_what_the_compiler_allocates(mesh, tmp_path):
    """Not the size of temporaries among its statistics, which would be refused if it were needed.

    Of 2**17 tokens the loop keeps 12 inputs of 768 features.
    """

    def loss(kernels, x):
        block = jax.checkpoint(lambda x, k: x + jax.nn.gelu(x @ k[0]) @ k[1])
        return jax.lax.scan(lambda x, k: (block(x, k), None), x, kernels)[0].sum()

    one = Mesh(mesh.devices.flat[:1], "x")
    place = NamedSharding(one, P())
    up, down, x = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
        for shape in ((12, 768, 3072), (12, 3072, 768), (2**17, 768))
    )
    lowered = jax.jit(jax.grad(loss)).lower((up, down), x)
    program = compile_only(lowered, tmp_path)
    allocated = allocated_bytes(tmp_path)
    parts, least = memory(program, allocated), memory(program)
    assert parts["peak"] == allocated + parts["code"]
    assert 12 * 2**17 * 768 * 2 < least["temporaries"] <= parts["temporaries"]
    assert parts["temporaries"] < program.memory_analysis().temp_size_in_bytes
    assert allocated_bytes(tmp_path / "nothing") is None
