"""The step against a plain one on one device: features, loss, optax; and what a step may not do."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models.builders import TINY, patches
from xla import QUICK

from siglip2_jax.config import Data, Group, Optim, Schedule, Stage, TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.siglip2 import abstract_model, flatten, unflatten
from siglip2_jax.objectives.base import Objective, View
from siglip2_jax.objectives.sigmoid import Sigmoid
from siglip2_jax.sharding import device_put_global, gather, make_mesh, param_shardings, put_batch
from siglip2_jax.testing import random_params
from siglip2_jax.train.checkpoint import by_path
from siglip2_jax.train.state import TrainState
from siglip2_jax.train.step import Program
from siglip2_jax.types import Batch

STEPS, UPDATES = 10, 3
# A large eps: gradients that are 0 but for rounding (biases of keys) would give random directions.
OPTIM = Optim(peak_lr=0.01, weight_decay=0.02, eps=1e-3, schedule=Schedule(warmup=2))
GROUPS = (
    Group(pattern="vision/.*", frozen=True),
    Group(pattern="text/.*", lr_scale=0.25, weight_decay=0.1),
    Group(pattern="t", lr_scale=3.0),
)


@dataclasses.dataclass(frozen=True)
class Colour(Objective):
    """Guesses the mean colour of each patch: a loss of single examples, with a head of its own."""

    weight: float = 0.5

    def head(self, model, compute, *, rngs):
        return nnx.Linear(model.vision.width, 3, rngs=rngs)

    def loss(self, head, view: View):
        assert view.batch is not None and view.features.tokens is not None
        image = view.batch.image
        pixels = jnp.where(image.valid[..., None], image.pixels, 0)  # padding may be NaN
        colour = pixels.reshape(*pixels.shape[:2], -1, 3).mean(2)
        kernel = gather(head.kernel[...], jnp.float32)
        error = jnp.square(view.features.tokens @ kernel + head.bias[...] - colour).mean(-1)
        error = jnp.where(image.valid, error, 0).sum(1) / image.valid.sum(1)
        draw = jax.random.normal(view.key)  # constant, as far as gradients go
        return error.mean(), {"draw": draw, "square": draw**2}


FLOAT32 = Compute()
DENSE, RING = Sigmoid(), Sigmoid(implementation="ring")


def config(sigmoid=DENSE, colour=None, compute=FLOAT32, **optim) -> TrainConfig:
    objectives = {"sigmoid": sigmoid} | ({"colour": colour} if colour else {})
    stage = Stage(
        name="main",
        data=Data(source=Folder("nowhere")),
        batch_size=8,
        steps=STEPS,
        objectives=objectives,
        optim=dataclasses.replace(OPTIM, **optim),
    )
    return TrainConfig(model=TINY, stages=(stage,), tokenizer="", compute=compute)


@functools.cache
def batches() -> tuple[Batch, ...]:
    grids = [(2, 3), (3, 2), (1, 5), (3, 3), (2, 2), (1, 1), (3, 2), (2, 4)]
    rng = np.random.default_rng(0)
    ids = rng.integers(0, TINY.text.vocab_size, (UPDATES, 8, TINY.text.length)).astype(np.int32)
    return tuple(Batch(patches(grids, 9, seed=i, fill=np.nan), ids[i]) for i in range(UPDATES))


@dataclasses.dataclass
class Ran:
    """Results of three updates on the host, and the last state where it lives."""

    params: list[dict]
    metrics: list[dict]
    kinds: dict
    last: TrainState | None


@functools.cache
def run(shape: tuple[int, int] | None, **fields) -> Ran:
    """Three updates of the random model by one compiled step, on a mesh of this shape."""
    program = Program(config(**fields).resolved[0])
    params = fresh(program)
    if shape is None:
        return _run(program, params, lambda batch: jax.tree.map(jnp.asarray, batch))
    mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
    with jax.set_mesh(mesh):
        shardings = param_shardings(mesh, program.shapes)
        params = {path: device_put_global(x, shardings[path]) for path, x in params.items()}
        return _run(program, params, lambda batch: put_batch(batch, mesh))


def fresh(program: Program) -> dict:
    """The random model, with heads of zeros but for their first entries."""
    params = {path: np.array(x) for path, x in flatten(random_params(TINY)).items()}
    for path in program.shapes.keys() - params.keys():
        params[path] = np.full(program.shapes[path].shape, 0.1, np.float32)
    return {path: params[path] for path in program.shapes}


def _run(program, params, place) -> Ran:
    state = jax.jit(program.init_state)(unflatten(params))
    traces = []

    def traced(state, batch):
        traces.append(1)
        return program.step(state, batch)

    step = jax.jit(traced, donate_argnums=0, compiler_options=QUICK)
    kinds, history, metrics = types(state), [], []
    for batch in batches():
        batch = place(batch)
        with jax.transfer_guard("disallow"):
            state, values = step(state, batch)
        history.append({path: np.asarray(x) for path, x in flatten(state.params).items()})
        metrics.append({name: np.asarray(x) for name, x in values.items()})
    assert types(state) == kinds and len(traces) == 1
    return Ran(history, metrics, kinds, state)


def types(state: TrainState) -> dict:
    """Shape, dtype and sharding of every array of a state."""
    return {path: jax.typeof(x) for path, x in by_path(state).items()}


VALID = [np.asarray(valid) for valid in batches()[0].image.valid]


def plain_loss(params: dict, batch: Batch) -> tuple:
    """The sum of the losses, and the sigmoid loss, in their simplest form."""
    params = unflatten(params)
    head = params.pop("heads", None)
    features = nnx.merge(abstract_model(TINY)[0], params).encode(batch.image, batch.text)
    logits = jnp.exp(params["t"]) * features.image @ features.text.T + params["b"]
    labels = 2 * jnp.eye(8) - 1
    loss = -jnp.log(jax.nn.sigmoid(labels * logits)).sum() / 8
    if head is None:
        return loss, loss
    head, colours = head["colour"], batch.image.pixels.reshape(8, 9, 16, 3).mean(2)
    errors = features.tokens @ head["kernel"] + head["bias"] - colours
    errors = [jnp.square(e[valid]).mean() for e, valid in zip(errors, VALID, strict=True)]
    return loss + 0.5 * sum(errors) / 8, loss


def group_of(optim: Optim, path: str) -> Group:
    return next((g for g in optim.groups if re.fullmatch(g.pattern, path)), Group(pattern=""))


def plain_optimizer(optim: Optim) -> optax.GradientTransformation:
    """Parts of optax, with the learning rate and the weight decay of each parameter."""

    def scaled(updates, params):
        changed = {}
        for path, update in updates.items():
            group = group_of(optim, path)
            decay = optim.weight_decay if group.weight_decay is None else group.weight_decay
            changed[path] = optim.peak_lr * group.lr_scale * update
            changed[path] += decay * params[path] if path.endswith("kernel") else 0
        return changed

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(0.9, 0.95, 1e-3),
        optax.stateless(scaled),
        optax.scale_by_schedule(optax.warmup_cosine_decay_schedule(0, 1, 2, STEPS)),
        optax.scale(-1.0),
    )


@functools.cache
def plain(**fields) -> Ran:
    """The same on one device, knowing nothing of the step."""
    optim = config(**fields).stages[0].optim
    program = Program(config(**fields).resolved[0])
    params = {path: jnp.asarray(x) for path, x in fresh(program).items()}
    frozen = {path: params.pop(path) for path in list(params) if group_of(optim, path).frozen}
    tx = plain_optimizer(optim)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state, batch):
        total = lambda params: plain_loss(params | frozen, batch)  # noqa: E731
        (loss, sigmoid), grads = jax.value_and_grad(total, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        values = {"loss": loss, "loss/sigmoid": sigmoid, "grad_norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, updates), state, values

    state, history, metrics = jax.jit(tx.init)(params), [], []
    for batch in batches():
        params, state, values = step(params, state, jax.tree.map(jnp.asarray, batch))
        history.append({path: np.asarray(x) for path, x in (params | frozen).items()})
        metrics.append(values)
    return Ran(history, metrics, {}, None)


def assert_same(found: Ran, expected: Ran, atol: float = 1e-5) -> None:
    for step, (have, want) in enumerate(zip(found.metrics, expected.metrics, strict=True)):
        for name in ("loss", "loss/sigmoid", "grad_norm"):
            np.testing.assert_allclose(have[name], want[name], rtol=atol, err_msg=f"{name} {step}")
    for step, (have, want) in enumerate(zip(found.params, expected.params, strict=True)):
        assert have.keys() == want.keys()
        for path in want:
            np.testing.assert_allclose(
                have[path], want[path], rtol=0, atol=atol, err_msg=f"{path} after step {step}"
            )


ONE, FSDP, SLICES = None, (1, 4), (2, 2)
LOCKED = {"groups": GROUPS, "ema": 0.9}
TWO_LOSSES = {"colour": Colour()}


@pytest.mark.parametrize(
    "mesh, sigmoid, accumulate",
    [
        (ONE, DENSE, 1),
        pytest.param(ONE, DENSE, 2, marks=pytest.mark.slow),
        pytest.param((1, 1), RING, 2, marks=pytest.mark.slow),
        pytest.param((1, 8), DENSE, 1, marks=pytest.mark.slow),
        pytest.param(FSDP, DENSE, 2, marks=pytest.mark.slow),
        pytest.param(SLICES, DENSE, 1, marks=pytest.mark.slow),
        pytest.param(SLICES, RING, 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_three_updates(mesh, sigmoid, accumulate):
    assert_same(run(mesh, sigmoid=sigmoid, accumulate=accumulate), plain())


@pytest.mark.slow
def test_with_the_kernels_of_tpus():
    """Interpreted: attention and LayerNorm in both towers, in a loop and split over a mesh."""
    compute = Compute(attention="pallas", norm="pallas", remat=("attn_out", "x_mid"))
    assert_same(run(SLICES, compute=compute), plain())


def test_metrics():
    for step, values in enumerate(run(ONE, sigmoid=DENSE, accumulate=1).metrics):
        names = {"loss", "loss/sigmoid", "sigmoid/temperature", "sigmoid/bias", "grad_norm"}
        assert values.keys() == names | {"learning_rate"}
        rate = [0, 0.005, 0.01][step]
        np.testing.assert_allclose(values["learning_rate"], rate, rtol=1e-6)
        assert {x.dtype for x in values.values()} == {np.dtype("float32")}


@pytest.mark.slow
def test_groups_and_frozen_tower():
    """Rates and decay by group; a frozen tower keeps its bits and has no moments (LiT)."""
    found = run(FSDP, **LOCKED)
    assert_same(found, plain(**LOCKED))
    start = flatten(random_params(TINY))
    for path, x in found.params[-1].items():
        assert np.array_equal(x, start[path]) == path.startswith("vision/"), path
    kinds = found.kinds
    assert not [path for path in kinds if path.startswith("optimizer/") and "vision" in path]


@pytest.mark.slow
def test_moments_are_split_like_their_parameters():
    kinds = run(FSDP, **LOCKED).kinds
    of = {path: kind for path, kind in kinds.items() if path.startswith("params/text")}
    assert len(of) > 10 and {str(kind.sharding.spec) for kind in of.values()} != {"P()"}
    for path, kind in of.items():
        path = path.removeprefix("params/")
        for moment in ("mu", "nu"):
            assert kinds[f"optimizer/moments/1/{moment}/{path}"] == kind
        assert kinds[f"ema_params/{path}"] == kind


@pytest.mark.slow
def test_moving_average():
    found = run(FSDP, **LOCKED)
    average = {path: np.float64(x) for path, x in flatten(random_params(TINY)).items()}
    for params in found.params:
        average = {path: 0.9 * x + 0.1 * params[path] for path, x in average.items()}
    for path, x in flatten(found.last.ema_params).items():
        np.testing.assert_allclose(x, average[path], rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh, sigmoid, accumulate",
    [
        (FSDP, RING, 2),
        pytest.param(SLICES, DENSE, 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_objective_of_single_examples(mesh, sigmoid, accumulate):
    """The core knows nothing of it: its head trains, with accumulated gradients too."""
    found = run(mesh, sigmoid=sigmoid, accumulate=accumulate, **TWO_LOSSES)
    assert_same(found, plain(**TWO_LOSSES))
    assert {path for path in found.params[0] if path.startswith("heads/")} == {
        "heads/colour/kernel",
        "heads/colour/bias",
    }
    assert np.ptp([params["heads/colour/kernel"] for params in found.params], axis=0).min() > 0
    for values in found.metrics:
        total = values["loss/sigmoid"] + 0.5 * values["loss/colour"]
        np.testing.assert_allclose(values["loss"], total, rtol=1e-6)


@pytest.mark.slow
def test_each_part_of_a_batch_draws_anew():
    draws = run(FSDP, sigmoid=RING, accumulate=2, **TWO_LOSSES).metrics
    assert len({float(values["colour/draw"]) for values in draws}) == UPDATES
    for values in draws:
        assert values["colour/square"] - values["colour/draw"] ** 2 > 1e-6


@pytest.mark.slow
def test_bfloat16():
    """Parameters and moments stay float32, and the loss is near."""
    found, expected = run(FSDP, compute=Compute(dtype="bfloat16")), plain()
    kinds = {path: kind.dtype for path, kind in found.kinds.items() if kind.ndim}
    assert set(kinds.values()) == {jnp.dtype("float32")}
    for have, want in zip(found.metrics, expected.metrics, strict=True):
        np.testing.assert_allclose(have["loss"], want["loss"], rtol=5e-3)
        np.testing.assert_allclose(have["grad_norm"], want["grad_norm"], rtol=3e-2)
        assert have["loss"] != want["loss"]


@pytest.mark.slow
def test_unrolled_and_rematerialised():
    compute = Compute(scan=False, remat="full")
    assert_same(run(FSDP, compute=compute), plain())


@pytest.mark.slow
def test_randomness_does_not_depend_on_other_objectives():
    """Fresh heads and draws of one are the same beside another that sorts before it."""
    (stage,) = config(colour=Colour()).resolved

    def begun(**objectives: Objective) -> tuple[dict, dict]:
        program = Program(dataclasses.replace(stage, objectives=objectives))
        params = jax.jit(program.init_params, compiler_options=QUICK)(jax.random.key(0))
        state = program.init_state(params)
        loss = jax.jit(program.losses.differentiate, compiler_options=QUICK)
        (_, (metrics, _)), _ = loss(flatten(params), {}, state, batches()[0])
        return params["heads"], metrics

    (heads, metrics), (more, values) = begun(colour=Colour()), begun(also=Colour(), colour=Colour())
    np.testing.assert_array_equal(heads["colour"]["kernel"], more["colour"]["kernel"])
    assert metrics["colour/draw"] == values["colour/draw"] != values["also/draw"]
    assert (more["also"]["kernel"] != more["colour"]["kernel"]).any()


@pytest.mark.slow
def test_an_objective_that_fails_is_named():
    class Broken(Colour):
        def loss(self, head, view):
            raise ValueError("too small")

    program = Program(config(colour=Broken()).resolved[0])
    state = jax.eval_shape(program.init_state, program.init_params(jax.random.key(0)))
    with pytest.raises(ValueError, match="too small") as raised:
        jax.eval_shape(program.step, state, batches()[0])
    assert "in the loss of the objective 'colour'" in raised.value.__notes__


@pytest.mark.slow
def test_embeddings_keep_their_order():
    program = Program(config(accumulate=2).resolved[0])
    params, batch = jax.tree.map(jnp.asarray, (random_params(TINY), batches()[0]))
    image, text = jax.jit(program.embed, compiler_options=QUICK)(params, batch)
    encode = nnx.merge(abstract_model(TINY)[0], params).encode
    features = jax.jit(encode, compiler_options=QUICK)(batch.image, batch.text)
    np.testing.assert_allclose(image, features.image, atol=2e-6)
    np.testing.assert_allclose(text, features.text, atol=2e-6)
