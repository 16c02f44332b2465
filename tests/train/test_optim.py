"""The optimizers against float64 NumPy, and sharded against unsharded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from siglip2_jax.config import Group, Optim, Schedule
from siglip2_jax.train.adafactor import scale_by_adafactor
from siglip2_jax.train.optim import begin_stage, learning_rate, make_optimizer, trainable

STEPS = 10
SHAPES = {
    "heads/sd/out/kernel": (40, 6),
    "t": (),
    "text/embed/table": (48, 36),
    "vision/encoder/blocks/attn/query/kernel": (3, 36, 2, 40),
    "vision/encoder/blocks/norm/scale": (3, 36),
    "vision/patch/kernel": (33, 64),
}
GROUPS = (
    Group(pattern="heads/.*", lr_scale=2.0, weight_decay=0.5),
    Group(pattern="vision/.*|t", lr_scale=0.25),
    Group(pattern="vision/patch/.*", lr_scale=100.0),  # never reached
)


def arrays(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        path: np.asarray(scale * rng.standard_normal(shape), np.float32)
        for path, shape in SHAPES.items()
    }


def run(optim: Optim, params, grads, specs=None):
    """The parameters after each update, and how often the update was traced."""
    put = lambda leaves: {  # noqa: E731
        path: jnp.asarray(x) if specs is None else jax.device_put(x, specs[path])
        for path, x in leaves.items()
    }
    tx = make_optimizer(optim, STEPS, tuple(params))
    params = put(params)
    state = jax.jit(tx.init)(params)

    traces = []

    @jax.jit
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    history = []
    for grad in grads:
        params, state = step(params, state, put(grad))
        history.append({path: np.asarray(x) for path, x in params.items()})
    return history, state, len(traces)


def by_hand(optim: Optim, params, grads, direction) -> list[dict[str, np.ndarray]]:
    """The chain in float64; `direction(path, gradients so far)` is Adam's or Adafactor's part."""
    params = {path: x.astype(np.float64) for path, x in params.items()}
    seen = {path: [] for path in params}
    history = []
    for index, grad in enumerate(grads):
        grad = {path: x.astype(np.float64) for path, x in grad.items()}
        norm = np.sqrt(sum((x**2).sum() for x in grad.values()))
        clip = 1.0 if optim.clip_norm is None else min(1.0, optim.clip_norm / norm)
        schedule = 0.5 * (1 + np.cos(np.pi * (index - 2) / (STEPS - 2))) if index > 2 else index / 2
        for path in params:
            seen[path].append(clip * grad[path])
            rate, decay = optim.peak_lr, optim.weight_decay
            if optim.groups:
                head = path.startswith("heads/")
                rate *= 2 if head else 1 if path.startswith("text") else 0.25
                decay = 0.5 if head else decay
            change = rate * direction(path, seen[path])
            change += decay * params[path] * path.endswith("/kernel")
            params[path] = params[path] - schedule * change
        history.append(dict(params))
    return history


def adam(path: str, grads: list[np.ndarray]) -> np.ndarray:
    """Adam as an explicit weighted sum over all gradients, b1 0.9, b2 0.95, eps 1e-8."""
    ages = range(len(grads))[::-1]
    mean = sum(0.1 * 0.9**age * g for age, g in zip(ages, grads, strict=True))
    square = sum(0.05 * 0.95**age * g**2 for age, g in zip(ages, grads, strict=True))
    count = len(grads)
    return mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.95**count)) + 1e-8)


def adafactor(path: str, grads: list[np.ndarray], kept=jnp.bfloat16) -> np.ndarray:
    """Every layer of a stack by itself, rows and columns by name of the dimension."""
    if "/blocks/" in path:
        layers = zip(*grads, strict=True)
        return np.stack([adafactor("one", list(layer), kept) for layer in layers])
    sizes = sorted(grads[0].shape)
    factored = len(sizes) > 1 and sizes[-2] >= 32
    order = np.argsort(grads[0].shape, kind="stable")
    square, momentum = 0.0, 0.0
    for count, grad in enumerate(grads, start=1):
        decay = min(0.95, 1 - count**-0.8)
        square = decay * square + (1 - decay) * (grad**2 + 1e-30)
        estimate = square
        if factored:  # averaging over a dimension and over time can be swapped
            row = square.mean(order[-1], keepdims=True)
            column = square.mean(order[-2], keepdims=True)
            estimate = row * column / row.mean(order[-2], keepdims=True)
        momentum = 0.9 * momentum + 0.1 * grad / np.sqrt(estimate)
        if count < len(grads):
            momentum = np.asarray(jnp.asarray(momentum, kept), np.float64)
    return momentum


@pytest.mark.parametrize("kind", ["adam", "adafactor"])
@pytest.mark.parametrize("scale", [1e-3, 1.0], ids=["clip inactive", "clip active"])
@pytest.mark.parametrize("groups", [(), GROUPS], ids=["one group", "groups"])
def test_three_updates(kind, scale, groups):
    optim = Optim(
        kind=kind, peak_lr=0.1, weight_decay=0.02, schedule=Schedule(warmup=2), groups=groups
    )
    params, grads = arrays(0), [arrays(seed, scale) for seed in (1, 2, 3, 4)]
    norm = np.sqrt(sum((x**2).sum() for x in grads[0].values()))
    assert (norm > 1) == (scale == 1)
    found, _, _ = run(optim, params, grads)
    expected = by_hand(optim, params, grads, adam if kind == "adam" else adafactor)
    # bfloat16 rounds a momentum to 2^-9 of it, now and then to the other side than float64 does.
    atol = 2e-6 if kind == "adam" else 2e-4
    for step, (have, want) in enumerate(zip(found, expected, strict=True)):
        for path in SHAPES:
            np.testing.assert_allclose(
                have[path], want[path], rtol=1e-6, atol=atol, err_msg=f"{path} at {step}"
            )


def test_adafactor_s_momentum_may_be_float32():
    optim = Optim(
        kind="adafactor", momentum_dtype="float32", peak_lr=0.1, schedule=Schedule(warmup=2)
    )
    params, grads = arrays(0), [arrays(seed) for seed in (1, 2, 3, 4)]
    found, state, _ = run(optim, params, grads)
    expected = by_hand(optim, params, grads, functools.partial(adafactor, kept=jnp.float32))
    for path in SHAPES:
        assert state.moments[1].momentum[path].dtype == jnp.float32
        np.testing.assert_allclose(found[-1][path], expected[-1][path], rtol=1e-6, atol=2e-6)


def test_adam_s_momentum_may_be_bfloat16():
    optim = Optim(momentum_dtype="bfloat16", peak_lr=0.1, schedule=Schedule(warmup=2))
    params, grads = arrays(0), [arrays(seed) for seed in (1, 2, 3, 4)]
    found, state, _ = run(optim, params, grads)
    expected = by_hand(optim, params, grads, adam)
    for path in SHAPES:
        assert state.moments[1].mu[path].dtype == jnp.bfloat16
        assert state.moments[1].nu[path].dtype == jnp.float32
        np.testing.assert_allclose(found[-1][path], expected[-1][path], atol=2e-3)


def test_weight_decay_alone():
    """Not multiplied by the learning rate, only by the schedule, and only on the mask."""
    optim = Optim(peak_lr=0.0, weight_decay=0.25, schedule=Schedule(kind="constant"))
    params = arrays(0)
    found, _, _ = run(optim, params, [arrays(1)])
    for path, param in params.items():
        kept = 0.75 if path.endswith("/kernel") else 1.0
        np.testing.assert_array_equal(found[0][path], np.float32(kept) * param)


def test_adafactor_is_optax_s_on_single_layers():
    params = {path: jnp.asarray(x) for path, x in arrays(0).items() if "/blocks/" not in path}
    ours = scale_by_adafactor(momentum=0.0, max_decay=0.999)
    theirs = optax.scale_by_factored_rms(
        min_dim_size_to_factor=32, decay_rate_fn=lambda i, e: 1 - (i + 1.0) ** -e
    )
    states = ours.init(params), theirs.init(params)
    updates = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in (1, 2, 3):
        grads = {path: jnp.asarray(x) for path, x in arrays(seed).items() if path in params}
        have, state = updates[0](grads, states[0], params)
        want, other = updates[1](grads, states[1], params)
        states = state, other
        for path in params:
            np.testing.assert_allclose(have[path], want[path], rtol=2e-6)


def test_shapes_of_factored_moments():
    tx = make_optimizer(Optim(kind="adafactor"), STEPS, tuple(SHAPES))
    state = jax.eval_shape(tx.init, arrays(0)).moments[1]
    shapes = jax.tree.map(lambda x: x.shape, state.squares)
    assert shapes == {
        "heads/sd/out/kernel": {"full": (40, 6)},
        "t": {"full": ()},
        "text/embed/table": {"row": (36,), "column": (48,)},
        "vision/encoder/blocks/attn/query/kernel": {"row": (3, 36, 2), "column": (3, 2, 40)},
        "vision/encoder/blocks/norm/scale": {"full": (3, 36)},
        "vision/patch/kernel": {"row": (33,), "column": (64,)},
    }
    assert {x.dtype for x in state.momentum.values()} == {jnp.dtype("bfloat16")}


SPECS = {
    "heads/sd/out/kernel": (("fsdp"), None),
    "t": (),
    "text/embed/table": ("fsdp", None),
    "vision/encoder/blocks/attn/query/kernel": (None, None, None, "fsdp"),
    "vision/encoder/blocks/norm/scale": (None, "fsdp"),
    "vision/patch/kernel": (None, "fsdp"),
}


@pytest.mark.parametrize("kind", ["adam", "adafactor"])
def test_sharded(kind):
    """Moments are sharded like their parameters, nothing is compiled twice, values are the same."""
    optim = Optim(kind=kind, groups=GROUPS, peak_lr=0.1)
    params, grads = arrays(0), [arrays(seed) for seed in (1, 2, 3)]
    alone, _, _ = run(optim, params, grads)
    mesh = jax.make_mesh(
        (1, 4), ("replica", "fsdp"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:4]
    )
    specs = {path: PartitionSpec(*spec) for path, spec in SPECS.items()}
    with jax.set_mesh(mesh):
        found, state, compilations = run(optim, params, grads, specs)
        tx = make_optimizer(optim, STEPS, tuple(params))
        sharded = {path: jax.device_put(x, specs[path]) for path, x in params.items()}
        first = jax.jit(tx.init)(sharded)
    assert compilations == 1
    atol = 2e-6 if kind == "adam" else 2e-4  # bfloat16, as above
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, first)
    for have, want in zip(found, alone, strict=True):
        for path in SHAPES:
            np.testing.assert_allclose(have[path], want[path], rtol=1e-6, atol=atol, err_msg=path)
    of = lambda leaves: {path: x.sharding.spec for path, x in leaves.items()}  # noqa: E731
    if kind == "adam":
        adam_state = first.moments[1]
        assert of(adam_state.mu) == of(adam_state.nu) == specs
        assert {x.dtype for x in adam_state.mu.values()} == {jnp.dtype("float32")}
        return
    moments = first.moments[1]
    assert of(moments.momentum) == specs
    # Rows miss the largest dimension, columns the second largest.
    assert of(moments.squares["text/embed/table"]) == {
        "row": PartitionSpec(None),
        "column": PartitionSpec("fsdp"),
    }
    assert of(moments.squares["vision/encoder/blocks/attn/query/kernel"]) == {
        "row": PartitionSpec(None, None, None),
        "column": PartitionSpec(None, None, "fsdp"),
    }
    assert of(moments.squares["heads/sd/out/kernel"]) == {"full": PartitionSpec("fsdp", None)}


def test_continued_stage_keeps_moments_and_restarts_its_schedule():
    optim = Optim(schedule=Schedule(warmup=2))
    _, state, _ = run(optim, arrays(0), [arrays(1), arrays(2)])
    assert int(state.count) == int(state.moments[1].count) == 2
    begun = begin_stage(state)
    assert int(begun.count) == 0 and begun.count.dtype == jnp.int32
    assert begun.moments is state.moments


def test_learning_rate():
    optim = Optim(peak_lr=0.5, schedule=Schedule(warmup=4))
    np.testing.assert_array_equal(learning_rate(optim, STEPS)(jnp.arange(5)), np.arange(5) / 8)


def test_trainable():
    groups = (
        Group(pattern="t", lr_scale=0.5),
        Group(pattern="t|text/.*", frozen=True),
        Group(pattern="vision/.*/kernel"),
    )
    expected = [path for path in SHAPES if path != "text/embed/table"]
    assert trainable(Optim(groups=groups), SHAPES) == expected
    with pytest.raises(ValueError, match="'vison/.\\*' matches no parameter"):
        trainable(Optim(groups=(Group(pattern="vison/.*", frozen=True),)), SHAPES)
    with pytest.raises(ValueError, match="freeze every parameter"):
        trainable(Optim(groups=(Group(pattern=".*", frozen=True),)), SHAPES)


def test_update_needs_parameters():
    tx = make_optimizer(Optim(), STEPS, tuple(SHAPES))
    with pytest.raises(ValueError, match="needs the parameters"):
        jax.eval_shape(lambda leaves: tx.update(leaves, tx.init(leaves)), arrays(0))
