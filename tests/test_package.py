"""The package as a whole: its layers, what an import costs, what it ships."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import siglip2_jax
from siglip2_jax.demo import HERE, TOKENIZER, shipped_examples, tiny_config
from siglip2_jax.preprocess.decode import decode
from siglip2_jax.preprocess.tokenizer import Tokenizer

ROOT = Path(siglip2_jax.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A module imports from layers strictly to the left, and from its own package.
LAYERS = (
    "types errors progress outputs strings fingerprint git_lfs cache_files",
    "sharding resumable compilation_cache",
    "models",
    "preprocess",
    "data",
    "curation",
    "objectives",
    "checkpoints",
    "inference",
    "demo",
    "testing",
    "evals",
    "config",
    "recipes",
    "train",
    "benchmarks planner search sweep watch",
    "serve export doctor",
    "cli",
    "__main__",
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted name of everything of ours that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("siglip2_jax.") and name != "siglip2_jax.__version__":
                # The public names live in modules.
                yield siglip2_jax._HOME.get(name.removeprefix("siglip2_jax."), name)


def find_violations(path: Path, source: str) -> list[str]:
    """Imports of a module that its layer must not make."""
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for name in imported(ast.parse(source))
        if (target := name.split(".")[1]) != layer and RANK[target] >= RANK[layer]
    ]


def test_layers_import_to_the_left_only():
    inner = [path for path in MODULES if path != ROOT / "__init__.py"]
    violations = [line for path in inner for line in find_violations(path, path.read_text())]
    assert violations == []


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("models/x.py", "def f():\n    from siglip2_jax.data.files import find_images", 1),
        ("models/x.py", "from siglip2_jax import types, sharding\nimport siglip2_jax.models.y", 0),
        ("evals/x.py", "from siglip2_jax import load, cli, __version__", 1),
        ("types.py", "import siglip2_jax.progress", 1),
        ("checkpoints/x.py", "from siglip2_jax import Embedder, Patches", 1),
    ],
)
def test_violations_are_found(path, source, count):
    assert len(find_violations(ROOT / path, source)) == count


def test_lines_are_cut_in_one_place():
    """`splitlines` of a text also cuts at characters within a line; of bytes it does not."""
    calls = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node.value)}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "splitlines"
    ]
    wrong = [call for call in calls if not call.endswith(".read_bytes()")]
    assert wrong == ["data/text.py: piece"]


def test_public_modules_have_docstrings():
    """An index of a package that only re-exports or holds nothing needs none."""
    bare = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if (path.name == "__init__.py" or not path.name.startswith("_"))
        and (tree := ast.parse(path.read_text())).body
        and not ast.get_docstring(tree)
    ]
    assert bare == []


def test_import_is_light():
    heavy = {"jax", "flax", "orbax", "grain", "tensorflow_datasets", "numpy", "sentencepiece"}
    code = f"import sys, siglip2_jax.cli; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_public_names_exist():
    for name in siglip2_jax.__all__:
        assert getattr(siglip2_jax, name) is not None
    assert dir(siglip2_jax) == sorted(siglip2_jax.__all__)
    assert set(siglip2_jax.__all__) == siglip2_jax._HOME.keys() | {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        _ = siglip2_jax.Embeder
    assert re.fullmatch(r"\d+\.\d+\.\d+", siglip2_jax.__version__)


def test_type_checkers_see_every_public_name():
    """A checker does not run `__getattr__`; it reads the imports that only it makes."""
    (block,) = (node for node in ast.parse((ROOT / "__init__.py").read_text()).body if is_if(node))
    homes = {alias.name: node.module for node in block.body for alias in node.names}
    assert homes == siglip2_jax._HOME


def is_if(node: ast.stmt) -> bool:
    return isinstance(node, ast.If)


@pytest.mark.parametrize("room", ["models", "preprocess", "data", "objectives", "config"])
def test_rooms_name_what_they_offer(room):
    module = importlib.import_module(f"siglip2_jax.{room}")
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_package_runs_as_the_command_line():
    code = [sys.executable, "-m", "siglip2_jax", "--version"]
    shown = subprocess.run(code, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == siglip2_jax.__version__


def test_shipped_photos_are_free_and_credited():
    rows = [json.loads(line) for line in (HERE / "examples.jsonl").read_text().splitlines()]
    files = {path.name for path in (HERE / "photos").iterdir()}
    assert files == {row["file"] for row in rows} and len(rows) == len(files) >= 32
    deeds = {
        "CC BY 2.0": "creativecommons.org/licenses/by/2.0/",
        "CC BY-SA 2.0": "creativecommons.org/licenses/by-sa/2.0/",
    }
    for row, example in zip(rows, shipped_examples(), strict=True):
        assert row["license_url"].partition("://")[2] == deeds[row["license"]]
        assert re.match(r"https?://\S*flickr\.com/", row["source"])
        for part in ("file", "source", "license", "license_url"):
            assert row[part] in example.credit
        assert example.captions and all(caption.strip() for caption in example.captions)
        assert min(decode(example.image).size) >= 64


def test_package_data_is_small():
    data = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    shipped = [path for path in data if path.suffix != ".py"]
    pages = {ROOT / "benchmarks" / "report" / "page.html", ROOT / "serve" / "page" / "index.html"}
    apart = {*pages, ROOT / "py.typed", ROOT / "planner" / "calibration.json"}
    assert apart < set(shipped)
    assert {path.parent for path in shipped if path not in apart} == {HERE, HERE / "photos"}
    assert sum(path.stat().st_size for path in shipped) < 3e6


def test_shipped_tokenizer_fits_the_tiny_model():
    tokenizer = Tokenizer.load(TOKENIZER)
    tokenizer.check(tiny_config().text.vocab_size)
    captions = [caption for example in shipped_examples() for caption in example.captions]
    assert not tokenizer(captions).truncated.any()
