"""Fast programs against plain ones: equal as they are, and a FAIL where one is broken."""

import dataclasses

import jax.numpy as jnp
import pytest

from siglip2_jax.config import override
from siglip2_jax.doctor.compare import compare, noise
from siglip2_jax.doctor.kernels import check_attention, check_layer_norm
from siglip2_jax.doctor.losses import check_prototypes, check_vocabulary
from siglip2_jax.doctor.shapes import Prototypes, Sequences, Streams, Vocabulary, shapes_of
from siglip2_jax.models.kernels import attention, layer_norm
from siglip2_jax.objectives import prototypes, vocabulary
from siglip2_jax.recipes import siglip2_b16, tiny

VIEWS = Sequences(4, 36, 36, 2, 16, True, "bfloat16", "auto")
STREAMS = Streams(2, 24, 32, "bfloat16", "auto")
ENTRIES = Vocabulary(40, 32, 530, "bfloat16", "auto")
DIRECTIONS = Prototypes(12, 16, 530, (0.1, 0.04), "bfloat16", "auto")
PATHS = ("compute", "stages.b.compute")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "shape", "label", "count"),
    [
        (check_attention, VIEWS, "pallas", 4),  # alone, and in rows
        (check_layer_norm, STREAMS, "kernel", 2),
        (check_vocabulary, ENTRIES, "kernel", 2),
        (check_prototypes, DIRECTIONS, "kernel", 2),
    ],
)
def test_kernels_are_equal(check, shape, label, count):
    findings = check(shape, PATHS)
    assert [x.status for x in findings] == ["PASS"] * count
    assert findings[0].check.endswith(f"bfloat16: {label}: values")
    assert findings[1].check.endswith(f"{label}: gradients")
    assert all(x.value < x.limit / 2 for x in findings)
    assert max(x.value for x in findings) > 0  # it is not the same program


def off(x):
    """A value that is slightly wrong."""
    return x + 0.05 * jnp.abs(x).max()


def broken_attention(query, key, value, valid=None, *_, **__):
    return off(attention._xla(query, key, value, valid))


@pytest.mark.parametrize(
    ("impl", "name"),
    [("auto", "short_attention"), ("splash", "long_attention"), ("cudnn", "_cudnn")],
)
def test_broken_attention(monkeypatch, impl, name):
    monkeypatch.setattr(attention, name, broken_attention)
    monkeypatch.setattr(attention, "_lack", lambda query: None)
    findings = check_attention(dataclasses.replace(VIEWS, keys=40, impl=impl), PATHS)
    values, gradients = findings
    assert values.status == "FAIL" and 0.04 < values.value < 0.06 and values.limit == 0.02
    way_out = "--set compute.attention=xla --set stages.b.compute.attention=xla"
    assert values.way_out == way_out
    assert gradients.check.endswith("gradients")


def test_an_own_kernel_and_none():
    own = dataclasses.replace(VIEWS, keys=40, impl=broken_attention)
    assert check_attention(own, PATHS)[0].status == "FAIL"
    for check, shape in ((check_attention, VIEWS), (check_layer_norm, STREAMS)):
        (finding,) = check(dataclasses.replace(shape, impl="xla"), PATHS)
        assert finding.status == "SKIP"  # the way out leads to no FAIL
    for check, shape in ((check_vocabulary, ENTRIES), (check_prototypes, DIRECTIONS)):
        (finding,) = check(dataclasses.replace(shape, impl="xla"), PATHS)
        assert finding.status == "SKIP"


@pytest.mark.slow
def test_a_broken_layer_norm(monkeypatch):
    def branch(x, scale, bias, *_):
        return x, (x * scale + bias).astype(x.dtype)

    monkeypatch.setattr(layer_norm, "_branch", branch)
    values, gradients = check_layer_norm(STREAMS, PATHS)
    assert values.status == gradients.status == "FAIL"
    assert values.way_out == "--set compute.norm=xla --set stages.b.compute.norm=xla"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "shape", "module", "name"),
    [
        (check_vocabulary, ENTRIES, vocabulary, "_fused_softmax"),
        (check_prototypes, DIRECTIONS, prototypes, "_add_fused_part"),
    ],
)
def test_a_broken_loss(monkeypatch, check, shape, module, name):
    plain = {
        "_fused_softmax": lambda hidden, targets, *, kernel, **_: vocabulary._softmax(
            hidden, targets, kernel=off(kernel)
        ),
        "_add_fused_part": lambda rule, _, sums, *rest: prototypes._add_part(
            rule, sums, *rest[:-1], off(rest[-1]) + jnp.arange(len(rest[-1])) / 1e3
        ),
    }
    monkeypatch.setattr(module, name, plain[name])
    findings = check(shape, ("stages.b.objectives.x",))
    assert "FAIL" in [x.status for x in findings]
    assert "--set stages.b.objectives.x.implementation=xla" in [x.way_out for x in findings]


def test_gradients_and_numbers_that_are_none():
    x = noise(0, (8,), jnp.float32)

    def statuses(fast):
        return [finding.status for finding in compare("it", fast, jnp.sin, (x,), "")]

    assert statuses(jnp.sin) == ["PASS", "PASS"]
    assert statuses(lambda x: jnp.sin(x) + jnp.where(x > 9, jnp.nan, 0.0) * 0) == ["PASS", "PASS"]
    assert statuses(lambda x: jnp.sin(x) * jnp.nan) == ["FAIL", "FAIL"]
    constant = jnp.sin(x)
    assert statuses(lambda x: constant + 0 * x) == ["PASS", "FAIL"]


def test_shapes_of_a_recipe():
    config = override(siglip2_b16.config(scale=1e-6), ["compute.dtype=bfloat16"])
    shapes = shapes_of(config, 1)
    kinds = [type(shape) for shape in shapes]
    assert {Sequences, Streams, Vocabulary, Prototypes} == set(kinds)
    entries = [x for x in shapes if isinstance(x, Vocabulary)]
    path = shapes[entries[0]][0]
    changed = override(config, [f"{path}.implementation=xla"])
    assert any(x.impl == "xla" for x in shapes_of(changed, 1) if isinstance(x, Vocabulary))


def test_shapes_of_a_small_run():
    (pair, stream, text, *_), paths = zip(*shapes_of(tiny.config(), 8).items(), strict=True)
    assert pair == Sequences(4, 32, 32, 4, 32, True, "float32", "auto")
    assert stream == Streams(4, 32, 128, "float32", "auto")
    assert text.queries == 64 and not text.masked
    assert set(paths) == {("compute",)}
