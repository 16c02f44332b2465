"""Stages with adapters among others: what they begin with, and what the next one takes of them."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from train.runs import SMALL, Sevens, numbers, run, save_run, stage

import siglip2_jax
from siglip2_jax.checkpoints.resize import resize_patches
from siglip2_jax.config import Adapters, Continue, Group, Optim, load_config
from siglip2_jax.models.config import find_variant, two_towers
from siglip2_jax.models.low_rank import is_pair, merge
from siglip2_jax.models.siglip2 import flatten, unflatten
from siglip2_jax.recipes import finetune, finetune_lora
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.branch import check_shapes, check_towers
from siglip2_jax.train.checkpoint import RunCheckpoints
from siglip2_jax.train.loop import train
from siglip2_jax.train.start import abstract_state, initialize_stage
from siglip2_jax.train.step import Program

MESH = make_mesh(2, jax.devices()[:4])
PAIRS = (Adapters(pattern="(vision|text)/encoder/.*|vision/embed/kernel", rank=2, alpha=3.0),)
OPTIM = Optim(ema=0.9, groups=(Group(pattern="t|b"),))
LORA = {"adapters": PAIRS, "optim": OPTIM, "start": Continue()}
CONFIG = run(
    stage("full"),
    stage("lora", **LORA),
    stage("again", **LORA),
    stage("after", start=Continue(stage="lora")),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def saved(workdir):
    """The ends of the first two stages."""
    return save_run(workdir, CONFIG, [10, 20], MESH)


def start(index: int, workdir, config=CONFIG):
    return initialize_stage(Sevens(config.resolved[index]), config, MESH, workdir)


def merged(params) -> dict[str, np.ndarray]:
    with jax.set_mesh(MESH):
        return numbers(merge(params))


def assert_params(found, expected) -> None:
    assert {path for path in found if not is_pair(path)} == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.mark.slow
def test_adapters_begin_on_what_a_stage_continues(workdir, saved):
    state = start(1, workdir)
    assert_params(numbers(state.params), numbers(saved[10].params))
    pairs = {path: x for path, x in numbers(state.params).items() if is_pair(path)}
    assert len(pairs) == 3 * 13 and all((x == 7).all() for x in pairs.values())
    moments = [path for path, x in numbers(state.optimizer).items() if x.any() and x.ndim]
    assert {path.rpartition("/")[2] for path in moments} == set()
    learned = {path.split("/mu/")[1] for path in numbers(state.optimizer) if "/mu/" in path}
    assert learned == {"t", "b", *(path for path in pairs if not path.endswith("scale"))}


@pytest.mark.parametrize("index", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_next_stage_merges_them(workdir, saved, index):
    state = start(index, workdir)
    before = saved[20]
    expected = merged(before.params)
    assert not np.array_equal(
        expected["vision/embed/kernel"], numbers(before.params)["vision/embed/kernel"]
    )
    assert_params(numbers(state.params), expected)
    assert_params(numbers(state.ema_params), merged(before.ema_params))
    pairs = {path for path in numbers(state.params) if is_pair(path)}
    assert bool(pairs) == (index == 2)
    for path in pairs:  # also where they have the shapes of those before
        assert (numbers(state.params)[path] == 7).all(), path
    moments, earlier = numbers(state.optimizer), numbers(before.optimizer)
    for path, x in moments.items():
        if re.search("/(mu|nu)/[tb]$", path):
            np.testing.assert_array_equal(x, earlier[path], err_msg=path)
        elif x.ndim:
            assert not x.any(), path


@pytest.mark.slow
def test_what_a_stage_continues_is_checked_before(workdir, saved):
    """Pairs of another rank are no reason to refuse."""
    wide = (Adapters(pattern=".*", rank=5),)
    third = dataclasses.replace(CONFIG.stages[2], adapters=wide)
    config = dataclasses.replace(CONFIG, stages=(*CONFIG.stages[:2], third))
    before, after = (Sevens(config.resolved[i]).shapes for i in (1, 2))
    check_towers(before, after, "the stage before")
    check_shapes(before, after, "the stage before")
    assert_params(numbers(start(2, workdir, config).params), merged(saved[20].params))


@pytest.mark.slow
def test_a_patch_embedding_is_merged_before_it_is_resized(workdir, saved):
    fine = dataclasses.replace(
        SMALL, vision=dataclasses.replace(SMALL.vision, patch_size=14, grid=32, image_size=448)
    )
    plain = stage("other", start=Continue(workdir=str(workdir), stage="lora"), model=fine)
    found = numbers(start(0, "nowhere", run(plain)).params)["vision/embed/kernel"]
    expected = resize_patches(merged(saved[20].params)["vision/embed/kernel"], 14)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_a_state_is_restored_to_the_bit(workdir, saved):
    checkpoints = RunCheckpoints(workdir)
    state = checkpoints.restore(20, abstract_state(Sevens(CONFIG.resolved[1]), MESH))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, numbers(state), numbers(saved[20]))


@pytest.mark.slow
def test_a_resumed_run_ends_the_same(tmp_path):
    """And it is loaded as what it has become."""
    config = load_config(
        Path(__file__).parent / "configs" / "small.py",
        ["stages.main.steps=4", "checkpoints.every=2", "stages.main.optim.schedule.warmup=0"],
    )
    (only,) = config.stages
    adapters = (Adapters(pattern=".*", rank=2),)
    config = dataclasses.replace(config, stages=(dataclasses.replace(only, adapters=adapters),))
    assert train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/4")
    assert train(config, tmp_path / "cut")
    states = []
    for name in ("whole", "cut"):
        checkpoints = RunCheckpoints(tmp_path / name)
        states.append(checkpoints.restore(4, abstract_state(Program(config.resolved[0]), MESH)))
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, *map(numbers, states))
    leaves = {path: x for path, x in numbers(states[0].params).items() if "heads/" not in path}
    expected = flatten(merge(unflatten(leaves)))
    found = flatten(siglip2_jax.load(tmp_path / "whole").params)
    assert_params(found, expected)


@pytest.mark.parametrize("size", ["B", "So400m"])
def test_the_recipe_is_finetune_with_adapters(size):
    base, made = (x.config(size) for x in (finetune, finetune_lora))
    assert made.model == base.model == two_towers(size, patch_size=16, image_size=None)
    release = find_variant(base.model)
    (base,), (made,) = base.stages, made.stages
    assert release is not None and base.start.source == release.hf
    assert dataclasses.replace(made, adapters=(), optim=base.optim) == base
    (group,), (theirs,) = made.optim.groups, base.optim.groups
    rates = [x.optim.peak_lr * x.optim.groups[0].lr_scale for x in (made, base)]
    assert group.pattern == theirs.pattern and rates[0] == pytest.approx(rates[1])


def test_the_recipe_trains_adapters_and_logits():
    (resolved,) = finetune_lora.config(rank=8).resolved
    program = Program(resolved)
    assert {path.split("/")[0] for path in program.trainable} == {"adapters", "t", "b"}
    sizes = [np.prod(program.shapes[path].shape) for path in program.trainable]
    # 12 blocks a tower: 4 x (768 + 768) + 2 x (768 + 3,072), times the rank; t and b.
    assert sum(sizes) == 2 * 12 * 8 * (4 * 1536 + 2 * 3840) + 2
