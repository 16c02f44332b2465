"""The vocabulary loss against float64 NumPy, on any mesh; and what it holds in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import logsumexp

from siglip2_jax.objectives.vocabulary import vocabulary_loss
from siglip2_jax.sharding import BATCH, device_put_global, make_mesh, put_batch

P = PartitionSpec
ROWS, LENGTH, WIDTH, VOCABULARY = 8, 5, 12, 36
FLOAT32 = {"dtype": "float32"}


@functools.cache
def inputs(seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((ROWS, LENGTH, WIDTH), np.float32)
    kernel = rng.standard_normal((WIDTH, VOCABULARY), np.float32)
    targets = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    weights = rng.random((ROWS, LENGTH), np.float32) * (rng.random((ROWS, LENGTH)) > 0.4)
    return hidden, kernel, targets, weights.astype(np.float32)


def by_hand(hidden, kernel, targets, weights):
    """Sum, cross-entropy of each token, and derivatives by hidden and kernel, in float64."""
    hidden, kernel = hidden.astype(np.float64), kernel.astype(np.float64)
    logits = hidden @ kernel
    log_sum = logsumexp(logits, axis=-1, keepdims=True)
    right = np.eye(kernel.shape[1])[targets]
    losses = (log_sum - logits)[right == 1].reshape(targets.shape)
    d_logits = weights[..., None] * (np.exp(logits - log_sum) - right)
    d_kernel = np.einsum("ntd,ntv->dv", hidden, d_logits)
    return (weights * losses).sum(), losses * (weights != 0), d_logits @ kernel.T, d_kernel


@pytest.fixture(params=["xla", "pallas"])
def impl(request) -> str:
    return request.param


def derived(chunk: int, **options):
    loss = functools.partial(vocabulary_loss, chunk=chunk, **FLOAT32 | options)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def assert_near(found, expected, tolerance=2e-6):
    (loss, losses), grads = found
    for x, wanted in zip((loss, losses, *grads), expected, strict=True):
        atol = tolerance * max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(x, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("chunk", "impl"), [*((chunk, "xla") for chunk in (1, 7, 20, 64)), (1, "pallas")]
)
def test_value_and_gradients(chunk, impl):
    """Chunks need not divide the 40 tokens: all at once, or one by one; kernels take 128."""
    assert_near(jax.jit(derived(chunk, impl=impl))(*inputs()), by_hand(*inputs()))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((1, 1), P()),
        ((1, 4), P("fsdp", None)),
        *(((2, 2), spec) for spec in (P(None, "fsdp"), P("fsdp", None), P())),
    ],
    ids=str,
)
def test_on_a_mesh(shape, spec, impl):
    """The same as without one, however the kernel is split; its gradient is split likewise."""
    hidden, kernel, targets, weights = inputs()
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        kernel = device_put_global(kernel, NamedSharding(mesh, spec))
        hidden, targets, weights = put_batch((hidden, targets, weights), mesh)
        found = jax.jit(derived(3, impl=impl))(hidden, kernel, targets, weights)
        d_hidden, d_kernel = found[1]
        assert d_kernel.sharding.is_equivalent_to(kernel.sharding, 2)
        assert d_hidden.sharding.is_equivalent_to(hidden.sharding, 3)
        assert found[0][1].sharding.is_equivalent_to(weights.sharding, 2)
    assert_near(found, by_hand(*inputs()))


def test_finite_differences(impl):
    """Differences of the loss itself, as it is computed where no gradient is taken."""
    hidden, kernel, targets, weights = map(jnp.asarray, inputs())
    options = {"chunk": 7, "impl": impl}
    loss = jax.jit(lambda *x: vocabulary_loss(*x, targets, weights, **options, **FLOAT32)[0])
    grads = jax.jit(derived(**options))(*inputs())[1]
    rng = np.random.default_rng(1)
    for _ in range(3):
        moves = [rng.standard_normal(x.shape).astype(np.float32) * 5e-3 for x in (hidden, kernel)]
        up, down = (
            float(loss(hidden + s * moves[0], kernel + s * moves[1])) for s in (np.float32(1), -1)
        )
        expected = sum(float(np.vdot(a, b)) for a, b in zip(moves, grads, strict=True))
        np.testing.assert_allclose((up - down) / 2, expected, rtol=2e-3, atol=2e-4)


def test_gradient_is_scaled_by_what_follows():
    def after(*inputs):
        return 3 * vocabulary_loss(*inputs, chunk=7, **FLOAT32)[0] - 1

    found = jax.jit(jax.grad(after, argnums=(0, 1)))(*inputs())
    for x, wanted in zip(found, by_hand(*inputs())[2:], strict=True):
        np.testing.assert_allclose(x, 3 * wanted, atol=3e-5)


def test_large_logits(impl):
    """Logits of some thousands: the loss stays finite and right."""
    hidden, kernel, targets, weights = inputs()
    found = jax.jit(derived(7, impl=impl))(1000 * hidden, kernel, targets, weights)
    assert_near(found, by_hand(1000 * hidden, kernel, targets, weights), 5e-6)


def test_weightless_tokens_are_not_looked_at(impl):
    """Neither what they hold nor what they should be; all may be weightless."""
    hidden, kernel, targets, weights = inputs()
    targets = np.where(weights == 0, -1, targets)
    hidden = np.where(weights[..., None] == 0, np.nan, hidden).astype(np.float32)
    expected = by_hand(*inputs())
    program = jax.jit(derived(7, impl=impl))
    assert_near(program(hidden, kernel, targets, weights), expected)
    (loss, losses), grads = program(hidden, kernel, targets, 0 * weights)
    assert loss == 0 and not any(np.any(x) for x in (losses, *grads))


def test_bfloat16():
    """Products of bfloat16 factors; sums, losses and gradients are float32."""
    (loss, losses), grads = jax.jit(derived(7, dtype="bfloat16"))(*inputs())
    assert {x.dtype for x in (loss, losses, *grads)} == {jnp.dtype("float32")}
    assert_near(((loss, losses), grads), by_hand(*inputs()), 2e-2)
    hidden, kernel = (x.astype(jnp.bfloat16).astype(np.float32) for x in inputs()[:2])
    np.testing.assert_allclose(loss, by_hand(hidden, kernel, *inputs()[2:])[0], rtol=2e-6)


def compiled(program, tokens: int, chunk: int, width: int = 8, vocabulary: int = 4096):
    shapes = (
        jax.ShapeDtypeStruct((tokens, width), np.float32),
        jax.ShapeDtypeStruct((width, vocabulary), np.float32),
        jax.ShapeDtypeStruct((tokens,), np.int32),
        jax.ShapeDtypeStruct((tokens,), np.float32),
    )
    return jax.jit(program(chunk)).lower(*shapes).compile()


def test_memory_is_that_of_a_chunk():
    """Neither value nor gradient holds the logits of all tokens: 64 MB here, of a chunk 0.5 MB."""

    def plain(chunk):
        return functools.partial(vocabulary_loss, chunk=chunk, **FLOAT32)

    for program in (plain, derived):
        small, large = (
            compiled(program, 4096, chunk).memory_analysis().temp_size_in_bytes
            for chunk in (32, 4096)
        )
        assert small < 6 * 2**20 < 2**26 <= large, (program, small, large)


def test_value_alone_takes_one_product():
    def products(program) -> int:
        return str(jax.make_jaxpr(program)(*inputs())).count("dot_general")

    assert products(functools.partial(vocabulary_loss, chunk=7, **FLOAT32)) == 1
    assert products(derived(7)) == 3


def test_chunks_are_positive():
    with pytest.raises(ValueError, match="chunk is 0, but at least 1"):
        vocabulary_loss(*map(jnp.asarray, inputs()), chunk=0, **FLOAT32)


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("topology", "width", "vocabulary"), [("v5e:2x2", 768, 5120), ("v6e:2x2", 1152, 5000)]
)
def test_tpus_run_the_kernels(topology, width, vocabulary):
    """One for the value, two with a gradient, where factors are bfloat16; else none."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.topology import compile_only, topology_mesh

    mesh = topology_mesh(topology)
    batch, split = NamedSharding(mesh, BATCH), NamedSharding(mesh, P("fsdp", None))
    shapes = (
        jax.ShapeDtypeStruct((64, 64, width), np.float32, sharding=batch),
        jax.ShapeDtypeStruct((width, vocabulary), np.float32, sharding=split),
        jax.ShapeDtypeStruct((64, 64), np.int32, sharding=batch),
        jax.ShapeDtypeStruct((64, 64), np.float32, sharding=batch),
    )

    def kernels(program) -> int:
        with jax.set_mesh(mesh):
            text = compile_only(jax.jit(program).lower(*shapes)).as_text()
        return text.count('custom_call_target="tpu_custom_call"')

    options = {"chunk": 512, "dtype": "bfloat16"}
    assert kernels(functools.partial(vocabulary_loss, **options)) == 1
    assert kernels(derived(**options)) == 2
    assert kernels(derived(**options | {"dtype": "float32"})) == 0
