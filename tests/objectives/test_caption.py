"""The captioning loss against torch, written from the formulas; on one device and many."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.builders import TINY, patches

from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.models.decoder import Decoder
from siglip2_jax.models.siglip2 import SigLIP2, flatten, unflatten
from siglip2_jax.objectives.base import View
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.sharding import device_put_global, make_mesh, param_shardings, put_batch
from siglip2_jax.types import Batch, Features, Patches

MODEL = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=96, mlp_dim=48))
B, R, S, N = 8, 3, 6, 5
TASKS = "caption", "refer", "ground"
WIDTH, HEADS, VOCABULARY = MODEL.text.width, MODEL.text.num_heads, 96
OBJECTIVE = Captioning(depth=2, length=S, chunk=7)
KEY = jax.random.key(7)
DRAWN = np.asarray(jax.random.bernoulli(KEY, 0.5, (B, 1)))[:, 0]
assert 0 < DRAWN.sum() < B


@functools.cache
def graphdef(objective: Captioning):
    head = nnx.eval_shape(lambda: objective.head(MODEL, Compute(), rngs=nnx.Rngs(0)))
    return nnx.split(head)


@functools.cache
def student() -> SigLIP2:
    return nnx.eval_shape(lambda: SigLIP2(MODEL, rngs=nnx.Rngs(0)))


@functools.cache
def params() -> dict[str, np.ndarray]:
    """A decoder in which nothing is zero or one, by path."""
    rng = np.random.default_rng(0)
    made = {}
    for path, leaf in flatten(nnx.to_pure_dict(graphdef(OBJECTIVE)[1])).items():
        x = rng.standard_normal(leaf.shape, np.float32)
        scale = leaf.shape[-2] ** -0.5 if path.endswith("kernel") else 0.5
        made[path] = x * np.float32(scale) + np.float32(path.endswith("scale"))
    return made


@dataclasses.dataclass(frozen=True)
class Inputs:
    targets: np.ndarray
    prefix: np.ndarray
    tokens: np.ndarray
    valid: np.ndarray


@functools.cache
def inputs() -> Inputs:
    """Sentences of 2 to 6 ids, of which 1 or 2 are given; some referring and grounded absent."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, S + 1, (B, R, 1))
    lengths[1:4, 1] = lengths[3:5, 2] = 0
    targets = np.where(np.arange(S) < lengths, rng.integers(1, VOCABULARY, (B, R, S)), 0)
    prefix = np.where(lengths[..., 0] > 0, rng.integers(1, 3, (B, R)), 0)
    valid = np.arange(N) < rng.integers(1, N + 1, (B, 1))
    tokens = rng.standard_normal((B, N, MODEL.vision.width), np.float32)
    tokens = np.where(valid[..., None], tokens, np.float32(np.nan))
    return Inputs(targets.astype(np.int32), prefix.astype(np.int32), tokens, valid)


def loss(params, tokens, valid, targets, prefix, objective=OBJECTIVE, tasks=TASKS):
    """Loss and report, from what the step shows of a batch with these tasks."""
    head = nnx.merge(graphdef(objective)[0], unflatten(params))
    yx, pooled = jnp.zeros((*valid.shape, 2), int), tokens[:, 0]
    features = Features(tokens=tokens, pooled=pooled, image=pooled, valid=valid, grid=yx[:, 0])
    fields = {
        name: {task: x[:, r] for r, task in enumerate(tasks)}
        for name, x in (("targets", targets), ("prefix", prefix))
    }
    batch = Batch(Patches(tokens, yx, valid), prefix, fields)
    return objective.loss(head, View(student(), None, features, batch, KEY, jnp.int32(0)))


derive = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnames="objective"
)


def on(shape: tuple[int, int] | None, objective=OBJECTIVE):
    """Loss, report, and derivatives by parameters and image tokens, on a mesh of this shape."""
    given = inputs()
    batch = given.tokens, given.valid, given.targets, given.prefix
    if shape is None:
        found = derive(params(), *batch, objective=objective)
    else:
        mesh = make_mesh(shape[0], jax.devices()[: shape[0] * shape[1]])
        with jax.set_mesh(mesh):
            paths = {f"heads/caption/{path}": x for path, x in params().items()}
            shardings = param_shardings(mesh, paths)
            placed = {
                k: device_put_global(x, shardings[f"heads/caption/{k}"])
                for k, x in params().items()
            }
            found = derive(placed, *put_batch(batch, mesh), objective=objective)
            gradients = found[1][0]
            for path, x in placed.items():
                assert gradients[path].sharding.is_equivalent_to(x.sharding, x.ndim), path
    return jax.tree.map(np.asarray, found)


@functools.cache
def plain():
    return on(None)


def assert_same(found, expected) -> None:
    """Loss and report to 2e-6, derivatives to 5e-5 of the largest magnitude of each array."""
    (loss, report), gradients = found
    (wanted, names), derivatives = expected
    np.testing.assert_allclose(loss, wanted, rtol=2e-6)
    assert report.keys() == names.keys()
    for name in names:
        np.testing.assert_allclose(report[name], names[name], rtol=2e-6, err_msg=name)
    for a, b in zip(*map(jax.tree.leaves, (gradients, derivatives)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 4), (2, 2)], ids=str)
def test_meshes(shape):
    assert_same(on(shape), plain())


def test_report():
    """Tasks by name; each is a mean over the sentences that are there, the loss over examples."""
    (value, report), _ = plain()
    present = np.array([8, 5, 6]) / 8
    assert report.keys() == {*TASKS, *(f"{task}_present" for task in TASKS)}
    np.testing.assert_allclose([report[f"{task}_present"] for task in TASKS], present)
    means = [report[task] for task in TASKS]
    np.testing.assert_allclose(value, np.mean(means * present), rtol=1e-6)
    given = inputs()
    alone = given.tokens, given.valid, given.targets[:, :1], given.prefix[:, :1]
    value, report = jax.jit(functools.partial(loss, tasks=("caption",)))(params(), *alone)
    assert list(report) == ["caption"]
    np.testing.assert_allclose([value, report["caption"]], means[0], rtol=1e-6)


@pytest.mark.parametrize("tasks", [("refer",), ("ground", "caption"), ("refer", "ground")], ids=str)
def test_tasks_are_told_by_name(tasks):
    """Whichever there are, in any order: only captions are predicted in parallel."""
    given, (_, whole) = inputs(), plain()[0]
    rows = [TASKS.index(task) for task in tasks]
    batch = given.tokens, given.valid, given.targets[:, rows], given.prefix[:, rows]
    value, report = jax.jit(functools.partial(loss, tasks=tasks))(params(), *batch)
    for task in tasks:
        np.testing.assert_allclose(report[task], whole[task], rtol=2e-6)
    shares = {"caption": 1, "refer": 5 / 8, "ground": 6 / 8}
    expected = np.mean([whole[task] * shares[task] for task in tasks])
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    others = {f"{task}_present" for task in tasks} if len(tasks) > 1 else set()
    assert report.keys() == {*tasks, *others}


def test_summed_tokens():
    """Gradients and loss are those of the means, each times the tokens of its sentence."""
    given = inputs()
    batch = [given.tokens, given.valid, given.targets[:, :1], given.prefix[:, :1]]
    counts = np.count_nonzero(given.targets[:, 0], axis=1) - given.prefix[:, 0]
    assert len(set(counts)) > 1
    summed = dataclasses.replace(OBJECTIVE, tokens="sum", parallel=0.0)
    value, report = jax.jit(functools.partial(loss, objective=summed, tasks=("caption",)))(
        params(), *batch
    )
    causal = dataclasses.replace(OBJECTIVE, parallel=0.0)
    program = jax.jit(functools.partial(loss, objective=causal, tasks=("caption",)))
    each = [program(params(), *(x[i : i + 1] for x in batch))[0] for i in range(B)]
    np.testing.assert_allclose(value, np.mean(counts * np.array(each)), rtol=2e-6)
    np.testing.assert_allclose(report["caption"], np.mean(each), rtol=2e-6)


def test_halves_of_a_batch_add_up():
    """Exactly a mean over examples, whatever is absent; drawing nothing, which differs by part."""
    causal = dataclasses.replace(OBJECTIVE, parallel=0.0)
    given = inputs()
    batch = given.tokens, given.valid, given.targets, given.prefix
    program = jax.jit(functools.partial(loss, objective=causal))
    parts = [program(params(), *(x[half] for x in batch))[0] for half in np.split(np.arange(B), 2)]
    np.testing.assert_allclose(np.mean(parts), program(params(), *batch)[0], rtol=1e-6)


def test_fresh_decoder_knows_nothing():
    """Its output is zero, so that every entry is as likely as another."""
    fresh = params() | {"out/kernel": np.zeros_like(params()["out/kernel"])}
    given = inputs()
    _, report = jax.jit(loss)(fresh, given.tokens, given.valid, given.targets, given.prefix)
    for task in TASKS:
        np.testing.assert_allclose(report[task], np.log(VOCABULARY), rtol=1e-6)


def test_head_and_defaults():
    objective = Captioning()
    assert not objective.across_examples
    compute = Compute(dtype="bfloat16")
    head = nnx.eval_shape(lambda: objective.head(MODEL, compute, rngs=nnx.Rngs(0)))
    assert isinstance(head, Decoder) and head.dtype == jnp.bfloat16
    config = head.config
    assert (config.depth, config.length, config.memory_dim) == (1, 64, MODEL.vision.width)


@pytest.mark.parametrize(("own", "expected"), [(None, "dots"), ("full", "full")])
def test_the_decoder_may_compute_again_what_towers_keep(own, expected):
    compute = Compute(remat="dots", scan=False)
    objective = Captioning(remat=own)
    head = nnx.eval_shape(lambda: objective.head(MODEL, compute, rngs=nnx.Rngs(0)))
    assert head.compute == dataclasses.replace(compute, remat=expected)


def test_flops_of_b16_by_hand():
    """Three sentences of 64 ids and 256 image tokens, six layers."""
    image = patches([(1, 1)] * 2, 256, 1)
    ids = dict.fromkeys(TASKS, jax.ShapeDtypeStruct((2, 64), np.int32))
    batch = Batch(image, np.zeros((2, 64), np.int32), {"targets": ids})
    q, n, d, m, v = 3 * 64, 256, 768, 3072, 256_000
    layer = 4 * q * d * d + 2 * q * 64 * d  # projections; scores and mix
    layer += 2 * q * d * d + 2 * n * d * d + 2 * q * n * d  # on the image
    layer += 2 * q * d * m
    expected = 2 * 3 * 2 * (6 * layer + q * d * v)
    model = two_towers("B", patch_size=16, image_size=256)
    assert Captioning().flops(model, batch) == expected


def test_flops_agree_with_the_compilers_count():
    """FLOPs of a forward pass; the compiler counts elementwise work as well."""
    model = two_towers("B", patch_size=16, image_size=256)
    text = dataclasses.replace(
        model.text, width=256, depth=4, mlp_dim=512, num_heads=4, vocab_size=1024
    )
    model = dataclasses.replace(model, text=text)
    objective = Captioning()
    head = nnx.eval_shape(lambda: objective.head(model, Compute(scan=False), rngs=nnx.Rngs(0)))
    program, state = nnx.split(head)

    def logits(params, ids, tokens, valid, parallel):
        decoder = nnx.merge(program, params)
        return decoder.logits(decoder(ids, tokens, valid, parallel))

    ids = jax.ShapeDtypeStruct((2, 3, 64), np.int32)
    tokens = jax.ShapeDtypeStruct((2, 100, 768), np.float32)
    valid = jax.ShapeDtypeStruct((2, 100), bool)
    parallel = jax.ShapeDtypeStruct((2, 3), bool)
    compiled = jax.jit(logits).lower(nnx.to_pure_dict(state), ids, tokens, valid, parallel)
    found = compiled.compile().cost_analysis()["flops"]
    targets = dict.fromkeys(TASKS, jax.ShapeDtypeStruct((2, 64), np.int32))
    batch = Batch(patches([(1, 1)] * 2, 100, 1), np.zeros((2, 64), np.int32), {"targets": targets})
    assert objective.flops(model, batch) <= 3 * found <= 1.05 * objective.flops(model, batch)


def attention(torch, x, memory, p, seen):
    """Multi-head attention without biases."""
    heads = (
        torch.einsum("...d,dhc->...hc", source, p[name]["kernel"]).transpose(-3, -2)
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    found = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen)
    return torch.einsum("...hqc,hcd->...qd", found, p["out"]["kernel"])


def in_torch(torch, p, tokens, ids, parallel):
    """Logits of one sentence, in float64."""

    def norm(x, p):
        return torch.nn.functional.layer_norm(x, (WIDTH,), p["scale"], p["bias"], 1e-6)

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    before = torch.tensor([0, *ids[:-1]])
    x = p["embed"]["table"][torch.full((S,), VOCABULARY) if parallel else before]
    x = x + p["pos"]["table"]
    seen = torch.ones(S, S, dtype=bool)
    seen = seen if parallel else seen.tril()
    for i in range(OBJECTIVE.depth):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        y = norm(x, block["ln1"])
        x = x + attention(torch, y, y, block["attn"], seen)
        x = x + attention(torch, norm(x, block["ln2"]), tokens, block["cross"], None)
        y = linear(norm(x, block["ln3"]), block["mlp"]["fc1"])
        x = x + linear(torch.nn.functional.gelu(y, approximate="tanh"), block["mlp"]["fc2"])
    return norm(x, p["norm"]) @ p["out"]["kernel"]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of torch, on import
def test_loss_and_gradients_equal_torch():
    torch = pytest.importorskip("torch")
    given = inputs()
    leaves = {k: torch.tensor(x.astype(np.float64)).requires_grad_() for k, x in params().items()}
    images = torch.tensor(np.nan_to_num(given.tokens).astype(np.float64)).requires_grad_()
    losses = torch.zeros(B, R, dtype=torch.float64)
    for b, r in np.ndindex(B, R):
        ids, first = given.targets[b, r], given.prefix[b, r]
        last = np.count_nonzero(ids)
        if last:
            tokens = images[b][torch.tensor(given.valid[b])]
            logits = in_torch(torch, unflatten(leaves), tokens, ids, r == 0 and DRAWN[b])
            losses[b, r] = torch.nn.functional.cross_entropy(
                logits[first:last], torch.tensor(ids[first:last].astype(np.int64))
            )
    total = losses.mean()
    total.backward()
    (found, report), (gradients, by_tokens) = plain()
    np.testing.assert_allclose(found, total.item(), rtol=2e-6)
    there = np.count_nonzero(given.targets[..., 0], axis=0)
    for r, task in enumerate(TASKS):
        np.testing.assert_allclose(report[task], losses[:, r].sum().item() / there[r], rtol=2e-6)
    for path, x in gradients.items():
        expected = leaves[path].grad.numpy()
        atol = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(x, expected, rtol=0, atol=atol, err_msg=path)
    np.testing.assert_allclose(by_tokens, images.grad.numpy(), rtol=0, atol=1e-6)
