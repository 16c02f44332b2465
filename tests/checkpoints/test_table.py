import numpy as np
import pytest

from siglip2_jax.checkpoints import ConversionError, Lazy, big_vision, huggingface, table
from siglip2_jax.checkpoints.checkpoint import param_shapes
from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES

TRANSFORMS = {
    "SAME": (5, 7),
    "FLAT": (3, 4),
    "ROWS": (4, 4, 7),
    "ONE_BATCH": (6, 7),
    "DENSE": (5, 7),
    "DENSE_TO_HEADS": (6, 2, 3),
    "DENSE_FROM_HEADS": (2, 3, 5),
    "CONV_HWIO": (48, 7),
    "CONV_OIHW": (48, 7),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_have_an_inverse(name):
    transform, shape = getattr(table, name), TRANSFORMS[name]
    ours = np.arange(np.prod(shape)).reshape(shape)
    theirs = transform.to_theirs(ours)
    assert theirs.shape == transform.shape(shape)
    np.testing.assert_array_equal(transform.to_ours(theirs, shape), ours)


@pytest.mark.parametrize("release", RELEASES + SIGLIP1_RELEASES, ids=lambda release: release.name)
def test_tables_fill_every_parameter_once_and_lose_no_element(release):
    shapes = param_shapes(release.config)
    config = release.config
    tables = [big_vision.rules(config, vision, "stacked") for vision in ("unrolled", "stacked")]
    for rules in (*tables, huggingface.rules(config.native_resolution)):
        ours = [path for rule in rules for path in rule.ours]
        assert sorted(ours) == sorted(shapes)
        theirs = table.their_shapes(rules, shapes)
        assert len(theirs) == sum(len(rule.names(shapes[rule.ours[0]])) for rule in rules)
        assert sum(map(np.prod, theirs.values())) == sum(map(np.prod, shapes.values()))


def test_all_problems_are_reported_together():
    rules = [table.Rule((path,), name) for path, name in zip("abc", "xyz", strict=True)]
    shapes = {"a": (2,), "b": (3,), "c": (4,), "d": (5,)}
    tensors = {
        "x": Lazy.of(np.zeros((2, 2), np.float32)),
        "y": Lazy.of(np.zeros(3, np.int32)),
        "other": Lazy.of(np.zeros(1, np.float32)),
    }
    with pytest.raises(ConversionError) as error:
        table.to_ours(rules, {path: shapes[path] for path in "abc"}, tensors)
    assert error.value.problems == (
        "z is missing",
        "x has shape (2, 2), expected (2,)",
        "y is int32, expected a float type",
        "other is not a tensor of this model",
    )
    with pytest.raises(ConversionError, match="the table fills d 0 times"):
        table.to_ours(rules, shapes, tensors)


def test_long_reports_are_cut_but_kept():
    error = ConversionError([f"problem {i}" for i in range(100)], "file")
    assert len(error.problems) == 100
    assert "and 80 more" in str(error) and "problem 20" not in str(error)
