"""Low-rank adapters in a step: what learns, on every mesh, against gradients of plain kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.builders import TINY
from train.test_step import batches, config, plain_loss
from xla import QUICK

from siglip2_jax.config import Adapters, Group, Schedule
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.flops import training_flops
from siglip2_jax.models.low_rank import attach, is_pair, kernel_of, merge, split_pairs
from siglip2_jax.models.siglip2 import abstract_model, flatten, unflatten
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings, put_batch
from siglip2_jax.testing import random_params
from siglip2_jax.train.checkpoint import by_path
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Program

EVERYWHERE = (Adapters(pattern=".*", rank=2, alpha=3.0),)
QUERIES = (Adapters(pattern=".*/query/kernel", rank=3),)
UNROLLED, SCANNED = Compute(scan=False), Compute()


def program(adapters=EVERYWHERE, compute=SCANNED, **optim) -> Program:
    run = config(compute=compute, schedule=Schedule(), **optim)
    stage = dataclasses.replace(run.stages[0], adapters=adapters)
    return Program(dataclasses.replace(run, stages=(stage,)).resolved[0])


def start(made: Program) -> dict[str, np.ndarray]:
    """The random model with fresh adapters."""
    params = {path: np.asarray(x) for path, x in flatten(random_params(TINY)).items()}
    return params | jax.device_get(made.pairs.init(jax.random.key(0)))


def with_changes(made: Program, scale: float = 0.1) -> dict[str, np.ndarray]:
    """The same with pairs that change every kernel."""
    rng = np.random.default_rng(1)
    return {
        path: np.float32(scale) * rng.standard_normal(x.shape, np.float32)
        if is_pair(path) and x.ndim
        else x
        for path, x in start(made).items()
    }


@functools.cache
def run(shape: tuple[int, int] | None = None, **fields) -> tuple[list[dict], list[dict]]:
    """Parameters before the first of three updates and after each, and moments after each."""
    made = program(**fields)
    params = start(made)
    if shape is None:
        return _run(made, params, lambda batch: jax.tree.map(jnp.asarray, batch))
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        shardings = param_shardings(mesh, made.shapes)
        params = {path: device_put_global(x, shardings[path]) for path, x in params.items()}
        return _run(made, params, lambda batch: put_batch(batch, mesh))


def _run(made: Program, params: dict, place) -> tuple[list[dict], list[dict]]:
    state = jax.jit(made.init_state)(unflatten(params))
    step = jax.jit(made.step, compiler_options=QUICK)
    history, moments = [host(state.params)], []
    for batch in batches():
        state, _ = step(state, place(batch))
        history.append(host(state.params))
        moments.append(means(state))
    return history, moments


def host(params) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in flatten(params).items()}


def means(state: TrainState) -> dict[str, np.ndarray]:
    """The optimizer's means of gradients, by path of the parameter."""
    name = "moments/1/mu/"
    leaves = {path: np.asarray(x) for path, x in by_path(state.optimizer).items() if name in path}
    return {path.rpartition(name)[2]: x for path, x in leaves.items()}


@pytest.mark.slow
def test_adapters_learn_and_nothing_else_changes():
    (before, *_, after), moments = run()
    leaves = [path for path in before if is_pair(path) and not path.endswith("scale")]
    assert {kernel_of(path) for path in leaves} == {p for p in before if p.endswith("kernel")} - {
        path for path in before if is_pair(path)
    }
    for path, x in before.items():
        assert np.array_equal(after[path], x) == (path not in leaves), path
    # `b` is 0 at first, and with it the gradient of `a`.
    for path in leaves:
        x = before[path]
        first, second = (np.abs(step[path]) for step in moments[:2])
        assert first.any() == path.endswith("/b"), path
        layers = second.reshape(-1, *x.shape[-2:]).max((1, 2))
        assert (layers > 0).all(), path
    assert moments[0].keys() == set(leaves)


def test_groups_say_what_else_learns():
    groups = (Group(pattern="t|b"), Group(pattern="adapters/text/.*", frozen=True))
    made = program(QUERIES, groups=groups)
    query = "adapters/vision/encoder/blocks/attn/query/kernel"
    pool = "adapters/vision/pool/attn/query/kernel"
    assert {*made.trainable} == {"t", "b", *(f"{x}/{leaf}" for x in (query, pool) for leaf in "ab")}


@pytest.mark.slow
def test_gradients_are_those_of_the_merged_kernels():
    """By the chain rule, from the gradient of a plain model's kernels."""
    made = program()
    params, batch = with_changes(made), jax.tree.map(jnp.asarray, batches()[0])
    state = jax.jit(made.init_state)(unflatten(params))
    step = jax.jit(made.step, compiler_options=QUICK)
    found = means(step(state, batch)[0])
    plain, pairs = split_pairs(params)
    merged = {
        kernel: plain[kernel] + (1.5 * pair["a"] @ pair["b"]).reshape(plain[kernel].shape)
        for kernel, pair in pairs.items()
    }
    gradients = jax.device_get(jax.jit(jax.grad(lambda x: plain_loss(x, batch)[0]))(plain | merged))
    expected = {}
    for kernel, pair in pairs.items():
        a, b = pair["a"], pair["b"]
        gradient = gradients[kernel].reshape(*a.shape[:-1], b.shape[-1])
        expected[f"adapters/{kernel}/a"] = 1.5 * gradient @ np.swapaxes(b, -1, -2)
        expected[f"adapters/{kernel}/b"] = 1.5 * np.swapaxes(a, -1, -2) @ gradient
    norm = np.sqrt(sum(np.square(x).sum() for x in expected.values()))
    assert expected.keys() == found.keys()
    for path, x in expected.items():
        mean = 0.1 * x / max(norm, 1)  # clipped, (1 - b1) of it
        np.testing.assert_allclose(found[path], mean, rtol=0, atol=1e-6, err_msg=path)
        assert np.abs(mean).max() > 1e-5, path


@pytest.mark.parametrize(
    "compute",
    [SCANNED, pytest.param(UNROLLED, marks=pytest.mark.slow)],
    ids=["scan", "unrolled"],
)
def test_a_merged_model_is_the_same_function(compute):
    made = program()
    params, batch = unflatten(with_changes(made)), batches()[0]
    graphdef = abstract_model(TINY, compute)[0]

    @jax.jit
    def embed(params, batch):
        features = nnx.merge(graphdef, params).encode(batch.image, batch.text)
        return features.image, features.text

    merged = merge(params)
    bare = {name: x for name, x in params.items() if name != "adapters"}
    embedded = (embed(x, batch) for x in (attach(params), merged, bare))
    for beside, together, without in zip(*embedded, strict=True):
        np.testing.assert_allclose(beside, together, rtol=0, atol=1e-6)
        assert np.abs(together - without).max() > 1e-2
    assert flatten(merged).keys() == flatten(random_params(TINY)).keys()
    assert merge(bare) is bare and attach(bare) is bare


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"compute": UNROLLED}, marks=pytest.mark.slow),
        pytest.param({"shape": (1, 8)}, marks=pytest.mark.slow),
        pytest.param({"shape": (8, 1)}, marks=pytest.mark.slow),
        pytest.param({"shape": (2, 2), "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"shape": (2, 4), "compute": UNROLLED}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_way_to_run_it_is_one(fields):
    (_, *found), (_, *expected) = run(**fields)[0], run()[0]
    for step, (have, want) in enumerate(zip(found, expected, strict=True)):
        for path, x in want.items():
            np.testing.assert_allclose(have[path], x, rtol=0, atol=1e-5, err_msg=f"{path} {step}")


def test_merging_is_the_same_on_a_mesh():
    made = program()
    params = with_changes(made)
    expected = flatten(merge(unflatten(params)))
    mesh = make_mesh(2, jax.devices()[:8])
    with jax.set_mesh(mesh):
        shardings = param_shardings(mesh, made.shapes)
        placed = {path: device_put_global(x, shardings[path]) for path, x in params.items()}
        merged = flatten(merge(unflatten(placed)))
    for path, x in expected.items():
        assert merged[path].sharding == shardings[path], path
        np.testing.assert_allclose(merged[path], x, rtol=0, atol=1e-7, err_msg=path)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("vision/encoder/.*/q/kernel", "matches no parameter; .* such as 'text/encoder/blocks"),
        ("text/embed/table|t", "matches text/embed/table|matches t, which is no kernel; "),
        (".*/query/.*", "matches only kernels of entries before it; remove it, or put it first"),
        ("(", "is not a regular expression"),
    ],
)
def test_a_pattern_must_match_kernels(pattern, reason):
    with pytest.raises(ValueError, match=f"Adapters.pattern.*{reason}") as error:
        program((*QUERIES, Adapters(pattern=pattern)))
    assert "\n" not in str(error.value)


def test_the_first_entry_that_matches_counts():
    made = program((*QUERIES, *EVERYWHERE))
    block = "vision/encoder/blocks/attn"
    assert made.pairs.kernels[f"{block}/query/kernel"] == QUERIES[0]
    assert made.pairs.kernels[f"{block}/key/kernel"] == EVERYWHERE[0]
    assert made.shapes[f"adapters/{block}/query/kernel/a"].shape == (2, 48, 3)
    assert made.shapes[f"adapters/{block}/out/kernel/a"].shape == (2, 48, 2)
    assert made.shapes[f"adapters/{block}/out/kernel/b"].shape == (2, 2, 48)
    pairs = made.pairs.init(jax.random.key(0))
    assert pairs[f"adapters/{block}/query/kernel/scale"] == 1
    assert pairs[f"adapters/{block}/key/kernel/scale"] == 1.5
    drawn = pairs[f"adapters/{block}/query/kernel/a"]
    assert 0.9 * 48**-0.5 < np.abs(drawn).max() <= 48**-0.5
    assert not np.array_equal(drawn[0], drawn[1])


def test_a_kernel_learns_by_its_pair_alone():
    with pytest.raises(ValueError, match="group of the optimizer trains text/.*has an adapter"):
        program(groups=(Group(pattern="text/.*", weight_decay=0.0),))
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        Adapters(pattern=".*", rank=0)
    with pytest.raises(ValueError, match="alpha is 0.0; it must be greater than 0"):
        Adapters(pattern=".*", alpha=0.0)


@pytest.mark.slow
def test_a_tower_with_adapters_is_counted_as_trained():
    """Gradients of its merged kernels are computed."""
    whole, both = program(()), program()
    vision = program((Adapters(pattern="vision/.*"),))
    assert both.flops(16, 8) == whole.flops(16, 8)
    text = training_flops(TINY, 16, idle=("vision",)) // 3
    assert both.flops(16, 8) - vision.flops(16, 8) == 8 * 2 * text
