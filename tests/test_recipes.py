"""Recipes: found by name, listed, derived from one another."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from siglip2_jax.cli import main
from siglip2_jax.config import Continue, load_config
from siglip2_jax.config.optim import in_steps
from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Mixture
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.config import two_towers
from siglip2_jax.models.flops import vision_flops
from siglip2_jax.recipes import (
    b16_256,
    b16_naflex,
    curating_teacher,
    g_opt_256,
    l16_256,
    locate,
    refer_on_frozen,
    siglip2_b16,
    siglip2_g_opt,
    siglip2_so400m,
    siglip2_tips,
    so400m_256,
    so400m_naflex,
    summaries,
)
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.step import Program

CONFIGS = Path(__file__).parents[1] / "configs"


def test_names_are_modules():
    assert load_config(locate("b16_256")) == b16_256.config()
    assert locate("configs/mine.py") == "configs/mine.py"
    assert locate("mine.runs:large") == "mine.runs:large"
    assert locate("/tmp/tiny/config.json") == "/tmp/tiny/config.json"
    with pytest.raises(ValueError, match="'b16_naflx' is no recipe; did you mean b16_naflex\\? "):
        locate("b16_naflx")


@pytest.mark.parametrize("name", summaries())
def test_every_recipe_makes_a_run(name, monkeypatch):
    monkeypatch.setenv("SIGLIP2_DATA", "/data")
    assert load_config(locate(name)).stages


def warmups(config) -> set[tuple[int, int]]:
    """Steps of warm-up of each stage's schedule, and where that ends."""
    ends = [(x.optim.schedule, x.optim.schedule.end(x.num_steps)) for x in config.resolved]
    return {(in_steps(schedule.warmup, end), end) for schedule, end in ends}


WHOLE = {(20_000, 1_220_703)}  # 40 billion examples in batches of 32,768
CURATED = {(0, 122_070)}
WARMUPS = {
    **dict.fromkeys(("b16_256", "l16_256", "so400m_256", "g_opt_256"), {(20_000, 1_220_704)}),
    **dict.fromkeys(("b16_naflex", "so400m_naflex", "siglip2_so400m", "siglip2_g_opt"), WHOLE),
    "siglip2_b16": WHOLE | CURATED,
    "siglip2_tips": WHOLE | CURATED,
    "decoder_on_frozen": {(10_000, 61_036)},
    "refer_on_frozen": {(1000, 20_000)},
    "curating_teacher": {(0, 30_518)},
    "lit": {(10_000, 219_727)},
    "finetune": {(100, 2000)},
    "finetune_lora": {(100, 2000)},
    "own_pairs": {(15, 300)},
    "small_caltech101": {(100, 3000)},
    "small_decoder": {(100, 2500)},
    "small_flickr8k": {(250, 2500)},
    "tiny": {(30, 300)},
}


@pytest.mark.parametrize("name", summaries())
def test_warmups_have_their_published_length_and_shrink_with_a_stage(name, monkeypatch):
    monkeypatch.setenv("SIGLIP2_DATA", "/data")
    assert warmups(load_config(locate(name))) == WARMUPS[name]
    short = load_config(locate(name), ["steps=2"])
    assert all(stage.num_steps == 2 for stage in short.resolved)


@pytest.mark.parametrize(
    ("recipe", "size", "compute"),
    [
        (l16_256, "L", {"remat": 0.5}),
        (so400m_256, "So400m", {"remat": 0.63}),
        (g_opt_256, "g-opt", {"remat": 0.87}),
    ],
)
def test_larger_first_stages_differ_in_size_and_compute_alone(recipe, size, compute):
    base = b16_256.config()
    model = two_towers(size, patch_size=16, image_size=256)
    compute = dataclasses.replace(base.compute, **compute)
    assert recipe.config() == dataclasses.replace(base, model=model, compute=compute)


def test_larger_naflex_continues_its_own_size():
    base, made = b16_naflex.config(), so400m_naflex.config()
    (stage,) = made.stages
    assert stage.start == Continue(workdir="gs://BUCKET/so400m_256", stage="main", fraction=0.9)
    assert (dataclasses.replace(stage, start=base.stages[0].start),) == base.stages
    assert made.model == two_towers("So400m", patch_size=16, image_size=None)


@pytest.mark.parametrize(("recipe", "size"), [(siglip2_so400m, "So400m"), (siglip2_g_opt, "g-opt")])
def test_larger_whole_recipes_are_the_same_function(recipe, size):
    for arguments in ([], ["scale=1e-6", "data=/x/*.arrayrecord", "tokenizer=/x/t.model"]):
        made = load_config(f"{recipe.__name__}:config", arguments)
        expected = load_config(f"{siglip2_b16.__name__}:config", [*arguments, f"size={size}"])
        assert made == expected != siglip2_b16.config()


@pytest.mark.parametrize("size", ["B", "L", "So400m", "g-opt"])
def test_stages_that_were_planned_are_unrolled(size):
    """A name in the table that no stage has would go unnoticed."""
    stages = {stage.name: stage for stage in siglip2_b16.config(size=size).stages}
    planned = siglip2_b16.UNROLLED.get(size, {})
    assert planned.keys() <= stages.keys()
    for name, stage in stages.items():
        if name == "trunk":
            name = "main"  # the same program
        expected = planned.get(name)
        assert (stage.compute is None) == (expected is None)
        if stage.compute is not None:
            found = dataclasses.asdict(stage.compute)
            assert found["dtype"] == "bfloat16" and not found["scan"]
            assert expected == {field: found[field] for field in expected}
    for stage in siglip2_b16.config(scale=1e-6, size=size).stages:
        assert stage.compute is None


@pytest.mark.parametrize("arguments", [{}, {"size": "L", "data": "/x/*", "scale": 1e-6}])
def test_the_changes_of_tipsv2_are_all_that_differs(arguments):
    """They are in every stage that they apply to, and nowhere else."""
    base, made = siglip2_b16.config(**arguments), siglip2_tips.config(**arguments)
    undone, taught = [], []
    for stage in made.stages:
        captions, *transforms = stage.data.transforms
        assert captions == siglip2_tips.CAPTIONS
        objectives = dict(stage.objectives)
        assert stage.optim.ema_heads == (stage.optim.ema is not None) == ("masked" in objectives)
        if "masked" in objectives:
            assert objectives["masked"].targets == "all"
            objectives["masked"] = dataclasses.replace(objectives["masked"], targets="hidden")
            taught.append(stage.name)
        data = dataclasses.replace(stage.data, transforms=tuple(transforms))
        optim = dataclasses.replace(stage.optim, ema_heads=False)
        undone.append(dataclasses.replace(stage, data=data, objectives=objectives, optim=optim))
    assert dataclasses.replace(made, stages=tuple(undone)) == base
    assert taught[:1] == ["distill"] and len(taught) > 2


def test_the_shipped_images_have_captions_of_all_granularities():
    stage = siglip2_tips.config(scale=1e-7).stages[0]
    describe, captions, _ = stage.data.transforms
    rng, (example, *_) = np.random.default_rng(0), stage.data.source.open()
    example |= {"text": example["captions"][0]}
    described = describe(example, rng)
    assert described["caption_short"].startswith("dog and potted plant and chair")
    assert described["caption_long"].count(". ") == len(example["captions"]) - 1 == 4
    texts = {captions(described, rng)["text"] for _ in range(200)}
    long_and_short = {described["caption_short"], described["caption_long"]}
    assert texts == {*example["captions"], *long_and_short}


def names(**arguments) -> list[str]:
    return [stage.name for stage in siglip2_b16.config(**arguments).stages]


def test_naflex_is_trained_where_it_was_released():
    branch = ["trunk", "naflex"]
    for size in ("B", "So400m", "L", "g-opt"):
        released = size in ("B", "So400m")
        with_it, without = names(size=size, naflex=True), names(size=size, naflex=False)
        assert [name for name in with_it if name not in branch] == without
        assert names(size=size) == (with_it if released else without)
        assert set(with_it) - set(without) == set(branch)


@pytest.mark.parametrize(
    ("arguments", "patterns"),
    [
        ({}, ("/data/english/*.arrayrecord", "/data/others/*.arrayrecord")),
        ({"data": "/x/*"}, ("/x/*",)),
        ({"other_languages": "/y/*"}, ("/data/english/*.arrayrecord", "/y/*")),
        ({"data": "/x/*", "other_languages": "/y/*"}, ("/x/*", "/y/*")),
        ({"data": "/x/*", "other_languages": "/y/*", "scale": 1e-6}, ("/x/*", "/y/*")),
    ],
)
def test_nine_tenths_of_the_pairs_are_english(arguments, patterns):
    sources = {stage.data.source for stage in siglip2_b16.config(**arguments).stages}
    parts = tuple(map(Records, patterns))
    mixture = Mixture(tuple(zip(parts, (0.9, 0.1), strict=False)))
    assert sources == {mixture if len(parts) > 1 else parts[0]}


def test_the_curating_teacher_is_the_one_that_the_recipe_reads():
    released, tuned = (
        [stage for stage in siglip2_b16.config(**x).stages if stage.curation]
        for x in ({}, {"teacher": "/runs/teacher_p{patch_size}_{pixels}"})
    )
    assert len(released) == len(tuned) == 5
    for before, after in zip(released, tuned, strict=True):
        pixels = before.model.vision.image_size
        made = curating_teacher.config(pixels=pixels)
        (stage,) = made.stages
        assert made.model == before.curation.model == after.curation.model
        assert stage.start.source == before.curation.teacher.source
        patch = made.model.vision.patch_size
        assert after.curation.teacher.source == f"/runs/teacher_p{patch}_{pixels}"
        assert stage.examples == 1_000_000_000
        kept = {384: 0.85, 512: "full"}.get(pixels, 0.63)
        assert made.compute == Compute(dtype="bfloat16", scan=False, remat=kept)
        rate, decay = before.optim.peak_lr, before.optim.weight_decay
        assert (stage.optim.peak_lr, stage.optim.weight_decay) == (rate, decay) == (1e-5, 0.0)
    with pytest.raises(ValueError, match="pixels is 300; .* one of 224, 256, 384, 512"):
        curating_teacher.config(pixels=300)


def test_referring_expressions_have_six_layers_on_a_frozen_tower():
    made = refer_on_frozen.config(
        source="google/siglip2-large-patch16-384", tokenizer=str(TOKENIZER)
    )
    (stage,) = made.resolved
    assert made.model == two_towers("L", patch_size=16, image_size=384)
    (objective,) = stage.objectives.values()
    assert (objective.depth, objective.parallel) == (6, 0.0)
    (targets,) = stage.data.transforms
    assert (targets.tasks, targets.refer_loss) == (("refer",), "box")
    assert targets.tokenizer_path == str(TOKENIZER)
    program = Program(stage)
    assert {path.split("/")[0] for path in program.trainable} == {"heads"}
    towers = vision_flops(made.model.vision, 576)  # forward; the text tower does not run
    batch = abstract_batch(stage, 576, 256)
    assert program.flops(576, 256) == 256 * towers + objective.flops(made.model, batch)


def test_configs_lists_them(capsys):
    assert main(["configs", "--json"]) == 0
    listed = {row["name"]: row["summary"] for row in json.loads(capsys.readouterr().out)}
    files = {path.stem: path for path in Path(b16_256.__file__).parent.glob("[a-z]*.py")}
    assert listed.keys() == files.keys() and len(listed) >= 16
    for name, path in files.items():
        assert listed[name] == ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(None, 1) for line in lines] == [list(row) for row in listed.items()]


def test_the_list_is_light():
    code = (
        "import sys; from siglip2_jax.cli import main; main(['configs']); "
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_readers_table_is_the_list():
    text = (CONFIGS / "README.md").read_text()
    for name, line in summaries().items():
        assert f"| [`{name}`](../siglip2_jax/recipes/{name}.py) | {line} |\n" in text
    assert text.count("/recipes/") == len(summaries())


def test_the_template_derives_from_a_recipe():
    (stage,) = load_config(CONFIGS / "my_run.py", ["data=/x/*.arrayrecord"]).stages
    (base,) = b16_256.config().stages
    assert stage.data.source.pattern == "/x/*.arrayrecord"
    assert (stage.batch_size, stage.objectives) == (1024, base.objectives)


@pytest.mark.parametrize("command", [["train", "--workdir", "x"], ["plan"], ["data", "inspect"]])
def test_commands_know_recipes_by_name(command, capsys):
    if command == ["plan"]:
        command = ["plan", "--topology", "v5e:2x2"]
    assert main([*command, "tinny"]) == 2
    assert "'tinny' is no recipe; did you mean tiny?" in capsys.readouterr().err
