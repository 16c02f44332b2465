"""Configs in files and modules: importing, arguments, errors, and records of runs."""

import dataclasses
import json
import multiprocessing
import operator
import pickle

import numpy as np
import pytest
from etils import epath

from siglip2_jax.config import (
    Origin,
    find_origin,
    load_config,
    modules,
    override,
)
from siglip2_jax.config.files import to_record
from siglip2_jax.data.sources import Folder

CONFIG = """
from __future__ import annotations
import dataclasses
from typing import Literal
from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import tiny_config
from siglip2_jax.objectives.base import Objective

@dataclasses.dataclass(frozen=True)
class Mine(Objective):
    weight: float = 1.0
    mode: Literal["a", "b"] = "a"

    def loss(self, head, view):
        return view.features.image.sum(), {}

def config() -> TrainConfig:
    data = Data(source=Folder("photos"))
    stage = Stage(name="main", data=data, batch_size=8, steps=5, objectives={"mine": Mine()})
    return TrainConfig(model=tiny_config(), tokenizer="t", stages=(stage,))
"""


def test_file_with_its_own_objective(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    made = load_config(path)
    assert made.stages[0].steps == 5
    changed = override(made, ["objectives.mine.mode=b", "objectives.mine.weight=2"])
    assert dataclasses.astuple(changed.stages[0].objectives["mine"]) == (2.0, "b")
    with pytest.raises(ValueError, match="expected 'a' or 'b', found c"):
        override(made, ["objectives.mine.mode=c"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function config\\(\\)"),
        ("config = 1", "has no function config\\(\\)"),
        ("def config():\n    return {}", "must return a TrainConfig, not dict"),
        ("\n\nimport nothing_like_it", ":3: ModuleNotFoundError: No module named"),
        ("def config():\n    return {}['key']", ":2: KeyError: 'key'"),
        ("def config():\n    return (", ":2: SyntaxError: '\\(' was never closed"),
        ("def config(x):\n    return x", "TypeError: config\\(\\) missing 1 required"),
        (
            "from siglip2_jax.config import Optim\ndef config():\n    return Optim(b1=7.0)",
            ":3: Optim.b1 is 7.0; it must be less than 1$",
        ),
    ],
)
def test_file_that_fails(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(error.value).removeprefix("config() of ").startswith(str(path))
    assert "\n" not in str(error.value) and str(error.value).count(str(path)) == 1


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.py: no such file"):
        load_config(tmp_path / "missing.py")


ARGUMENTS = """
from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import tiny_config
from siglip2_jax.objectives.sigmoid import Sigmoid

def config(size: int = 8, path: str = "photos", rate=1.0) -> TrainConfig:
    stage = Stage(
        name="main", data=Data(source=Folder(path)), batch_size=size, steps=5,
        objectives={"sigmoid": Sigmoid(weight=rate)},
    )
    return TrainConfig(model=tiny_config(), tokenizer="t", stages=(stage,))
"""


def test_arguments_of_a_file(tmp_path):
    """Assignments to parameters of config() go there, all others change what it returns."""
    path = tmp_path / "mine.py"
    path.write_text(ARGUMENTS)
    changes = ["size=16", "path=elsewhere", "rate=0.5", "stages.main.steps=7"]
    (stage,) = load_config(path, changes).stages
    assert (stage.batch_size, stage.steps) == (16, 7)
    assert stage.data.source == Folder("elsewhere")
    assert stage.objectives["sigmoid"].weight == 0.5
    assert load_config(path).stages[0].batch_size == 8
    with pytest.raises(ValueError, match="'size=big': expected int, found big"):
        load_config(path, ["size=big"])
    with pytest.raises(ValueError, match="'sise' is not a field of TrainConfig"):
        load_config(path, ["sise=16"])


def test_a_file_is_a_module_that_pickles(tmp_path):
    """Its classes are found by the file's own name, and so are modules beside it."""
    (tmp_path / "beside_mine.py").write_text("STEPS = 7\n")
    text = CONFIG.replace("steps=5", "steps=beside_mine.STEPS")
    (tmp_path / "mine.py").write_text(
        text.replace("import dat", "import beside_mine\nimport dat", 1)
    )
    objective = load_config(tmp_path / "mine.py").stages[0].objectives["mine"]
    assert type(objective).__module__ == "mine"
    assert load_config(tmp_path / "mine.py").stages[0].steps == 7
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(operator.attrgetter("mode"), (objective,)) == "a"


def test_of_two_files_with_one_name_the_last_counts(tmp_path):
    for folder, steps in (("a", 5), ("b", 6), ("a", 5)):
        path = tmp_path / folder / "twice.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONFIG.replace("steps=5", f"steps={steps}"))
        made = load_config(path)
        assert made.stages[0].steps == steps
        assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json.py", "json/__init__.py is a module called 'json' too; give the config another name"),
        ("numpy.py", "is a module called 'numpy' too"),
        ("run.1.py", "must be called NAME.py, without other dots"),
        ("run.txt", "must be called NAME.py"),
    ],
)
def test_names_that_no_file_can_have(tmp_path, name, message):
    path = tmp_path / name
    path.write_text(CONFIG)
    with pytest.raises(ValueError, match=message) as error:
        load_config(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert json.loads("1") == 1 and np.ones(1) == 1


def test_functions_by_import_name(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "runs.py").write_text(ARGUMENTS.replace("def config", "def large"))
    monkeypatch.chdir(tmp_path)
    made = load_config("own_package.runs:large", ["size=16", "stages.main.steps=7"])
    assert (made.stages[0].batch_size, made.stages[0].steps) == (16, 7)
    assert load_config("own_package/runs.py:large", ["size=16", "stages.main.steps=7"]) == made
    with pytest.raises(ValueError, match=r"^own_package.runs has no function small\(\)"):
        load_config("own_package.runs:small")
    with pytest.raises(ValueError, match="^no_package.runs:large: ModuleNotFoundError: No module"):
        load_config("no_package.runs:large")


def test_a_remote_file_is_copied(tmp_path, monkeypatch):
    """Another scheme than gs://, which needs the network, stands for it."""
    path = tmp_path / "remote_mine.py"
    path.write_text(CONFIG)
    read = epath.Path
    local = {"gs://bucket/remote_mine.py": path}
    monkeypatch.setattr(modules.epath, "Path", lambda name: read(local.get(name, name)))
    made = load_config("gs://bucket/remote_mine.py")
    assert made.stages[0].steps == 5 and pickle.loads(pickle.dumps(made)) == made
    assert find_origin("gs://bucket/remote_mine.py").source == "gs://bucket/remote_mine.py"


def test_a_record_makes_its_config_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "again.py"
    path.write_text(ARGUMENTS)
    origin = find_origin("again.py", ["size=16", "stages.main.steps=7"])
    assert origin == Origin(str(path), ("size=16", "stages.main.steps=7"))
    made = load_config(*origin)
    record = tmp_path / "config.json"
    record.write_text(json.dumps(to_record(made, origin) | {"versions": {"jax": "0"}}))
    assert load_config(record) == made
    assert load_config(record, ["size=32"]).stages[0].batch_size == 32
    assert find_origin(record, ["size=32"]) == Origin(str(path), (*origin.assignments, "size=32"))

    changed = to_record(dataclasses.replace(made, seed=3), origin)
    record.write_text(json.dumps(changed))
    with pytest.raises(
        ValueError, match=f"differs from the config that {path} makes now, in seed; undo"
    ):
        load_config(record)
    record.write_text(json.dumps(to_record(made, None)))
    with pytest.raises(ValueError, match="records no origin: .*give a Python file or package"):
        load_config(record)
    for origin in ({"source": 3}, ["a"], {"source": "a\nb", "assignments": []}):
        record.write_text(json.dumps({"origin": origin}))
        with pytest.raises(ValueError, match="config.json is damaged: its origin is .*Python file"):
            load_config(record)
    record.write_text("{")
    with pytest.raises(ValueError, match=f"^{record}: not JSON \\("):
        load_config(record)
    with pytest.raises(FileNotFoundError, match="expected the config.json of a run"):
        load_config(tmp_path / "none.json")
