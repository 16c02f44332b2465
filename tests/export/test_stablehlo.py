"""Exports for `jax.export`: the same numbers, from the files alone, byte for byte again."""

import ast
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest

pytest.importorskip("flatbuffers")

import siglip2_jax
from siglip2_jax.export import stablehlo, stablehlo_loader
from siglip2_jax.export.stablehlo import PLATFORMS, export_programs, export_stablehlo
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.preprocess.patches import pad_and_stack
from siglip2_jax.testing import TINY, TINY_FIXED, tiny_embedder
from siglip2_jax.types import Patches

FILES = {
    "export.json",
    "image.jax_export",
    "model.safetensors",
    "siglip2_exported.py",
    "siglip2_inputs.py",
    "text.jax_export",
    "tokenizer.model",
    "tokens.jax_export",
}
# Everything that runs an export: JAX with what it is installed with, and flatbuffers.
NEEDED = ("jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "opt_einsum", "flatbuffers")


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("native") / "model"
    export_stablehlo(tiny_embedder(TINY), path)
    return path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fixed") / "model"
    export_stablehlo(tiny_embedder(TINY_FIXED), path)
    return path


def images(*grids: tuple[int, int], seed: int = 0) -> Patches:
    """Random images of these grids, padded to the longest."""
    rng = np.random.default_rng(seed)
    items = [(rng.uniform(-1, 1, (h * w, 48)).astype(np.float32), (h, w)) for h, w in grids]
    return pad_and_stack(items, max(h * w for h, w in grids))


def arguments(patches: Patches) -> tuple[np.ndarray, ...]:
    return tuple(map(np.asarray, (patches.pixels, patches.yx, patches.valid)))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def check_images(model: stablehlo_loader.Model, embedder: Embedder, patches: Patches) -> None:
    expected = embedder.image_features(patches)
    embeddings = model.embed_images(*arguments(patches))
    tokens = model.patch_tokens(*arguments(patches))
    np.testing.assert_allclose(embeddings, expected.image, rtol=0, atol=1e-6)
    real = np.asarray(patches.valid)
    np.testing.assert_allclose(tokens[real], expected.tokens[real], rtol=0, atol=5e-6)


@pytest.mark.parametrize(("grid", "batch"), [((3, 20), 1), ((14, 18), 2), ((1, 70), 7)])
def test_native_images_equal_the_embedder(native, grid, batch):
    check_images(stablehlo_loader.load(native), tiny_embedder(TINY), images(*[grid] * batch))


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(3, 20), (14, 18), (1, 70), (1, 1), (33, 31)])
def test_native_images_of_every_batch(native, grid):
    model, embedder = stablehlo_loader.load(native), tiny_embedder(TINY)
    for batch in (1, 2, 7):
        check_images(model, embedder, images(*[grid] * batch))


def test_padding_changes_nothing(native):
    model, patches = stablehlo_loader.load(native), images((3, 20), (5, 5), (1, 70))
    check_images(model, tiny_embedder(TINY), patches)
    pixels, yx, valid = arguments(patches)
    garbage = np.where(valid[..., None], pixels, np.float32("nan"))
    expected = model.embed_images(pixels, yx, valid)
    np.testing.assert_array_equal(model.embed_images(garbage, yx, valid), expected)


@pytest.mark.parametrize("batch", [1, 7])
def test_fixed_images_equal_the_embedder(fixed, batch):
    model, embedder = stablehlo_loader.load(fixed), tiny_embedder(TINY_FIXED)
    check_images(model, embedder, images(*[(4, 4)] * batch))
    with pytest.raises(ValueError, match=r"pixels is float32 \[1, 12, 48\], .* \[b, 16, 48\]"):
        model.embed_images(*arguments(images((3, 4))))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_texts_equal_the_embedder(native, count):
    model, embedder = stablehlo_loader.load(native), tiny_embedder(TINY)
    ids = embedder.tokenizer([f"a photo of {i} cats" for i in range(count)]).ids
    texts = model.embed_tokens(ids.astype(np.int64))
    np.testing.assert_allclose(texts, embedder.embed_tokens(ids), rtol=0, atol=1e-6)
    rows = embedder.embed_images(images((3, 20), (4, 4)))
    np.testing.assert_allclose(model.logits(rows, texts), embedder.logits(rows, texts), atol=1e-5)


@pytest.mark.slow
def test_bfloat16_equals_the_embedder(tmp_path):
    embedder = tiny_embedder(TINY)
    half = Embedder(TINY, embedder.params, embedder.preprocess, dtype="bfloat16")
    export_stablehlo(half, tmp_path / "half")
    model, patches = stablehlo_loader.load(tmp_path / "half"), images((3, 20), (2, 30))
    rows = model.embed_images(*arguments(patches))
    np.testing.assert_allclose(rows, half.embed_images(patches), rtol=0, atol=1e-3)
    assert np.abs(rows - embedder.embed_images(patches)).max() > 1e-4
    assert model.settings["dtype"] == "bfloat16" and model.settings["text"]["tokenizer"] is None


@pytest.mark.slow
def test_runs_without_this_package(native, tmp_path):
    """Runs in a Python that sees nothing but what an export needs."""
    site, moved = tmp_path / "site", tmp_path / "moved"
    site.mkdir()
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec and spec.origin
        (site / name).symlink_to(Path(spec.origin).parent)
    shutil.copytree(native, moved)
    patches, ids = images((3, 20), (14, 18)), np.arange(128, dtype=np.int32).reshape(2, 64)
    np.savez(tmp_path / "in.npz", *arguments(patches), ids)
    code = f"""
import sys
sys.path += [{str(site)!r}, {str(moved)!r}]
import numpy as np, siglip2_exported
model = siglip2_exported.load()
*image, ids = np.load("in.npz").values()
images, texts = model.embed_images(*image), model.embed_tokens(ids)
np.savez("out.npz", images, model.patch_tokens(*image), texts, model.logits(images, texts))
print({{name.partition(".")[0] for name in sys.modules}} & {{"siglip2_jax", "flax", "PIL"}})
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert shown.stdout.strip() == "set()", shown.stderr
    rows, tokens, texts, logits = np.load(tmp_path / "out.npz").values()
    embedder = tiny_embedder(TINY)
    expected = embedder.image_features(patches)
    np.testing.assert_allclose(rows, expected.image, rtol=0, atol=1e-6)
    real = np.asarray(patches.valid)
    np.testing.assert_allclose(tokens[real], expected.tokens[real], rtol=0, atol=5e-6)
    np.testing.assert_allclose(texts, embedder.embed_tokens(ids), rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits, embedder.logits(rows, texts), rtol=0, atol=1e-5)


def test_the_same_model_gives_the_same_bytes(native, tmp_path):
    """Gives the same again in this process, after other work."""
    export_stablehlo(tiny_embedder(TINY), tmp_path / "again")
    assert contents(native).keys() == FILES
    assert contents(tmp_path / "again") == contents(native)
    here = str(Path(siglip2_jax.__file__).parent).encode()
    assert not [name for name, content in contents(native).items() if here in content]


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(native, tmp_path):
    code = "from siglip2_jax.testing import tiny_embedder; "
    code += "from siglip2_jax.export.stablehlo import export_stablehlo; "
    code += "export_stablehlo(tiny_embedder(), 'other')"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert contents(tmp_path / "other") == contents(native)


def test_other_weights_share_programs(native, tmp_path):
    export_stablehlo(tiny_embedder(TINY, seed=1), tmp_path / "other")
    first, other = contents(native), contents(tmp_path / "other")
    same = {name for name in FILES if first[name] == other[name]}
    assert same == FILES - {"model.safetensors", "export.json"}


@pytest.mark.parametrize("config", [TINY, TINY_FIXED])
def test_programs_are_portable(config):
    for name, program in export_programs(config, "float32").items():
        assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
        assert not program.disabled_safety_checks
        # The one that checks shapes is on the list that JAX keeps stable.
        text = program.mlir_module()
        assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}, name
        # TPUs and GPUs would round float32 factors to fewer bits by default.
        products = re.findall(r"stablehlo\.dot_general .*", text)
        exact = [line for line in products if "precision = [HIGHEST, HIGHEST]" in line]
        assert len(products) == len(exact) > 5
        (weights, *_), _ = program.in_tree.unflatten(program.in_avals)
        assert {path.partition("/")[0] for path in weights} == {
            "text" if name == "text" else "vision"
        }


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_programs_compile_for_tpus(dtype):
    """Compiles what was lowered here without a TPU."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    from siglip2_jax.planner.topology import compile_only, tpu_topology

    chip = jax.sharding.SingleDeviceSharding(tpu_topology("v5e:1x1")[0])
    sizes = {"b": 3, "n": 60}
    for program in export_programs(TINY, dtype).values():
        shapes = [[sizes.get(str(d), d) for d in aval.shape] for aval in program.in_avals]
        inputs = [
            jax.ShapeDtypeStruct(shape, aval.dtype, sharding=chip)
            for shape, aval in zip(shapes, program.in_avals, strict=True)
        ]
        arguments, _ = program.in_tree.unflatten(inputs)
        text = compile_only(jax.jit(program.call).lower(*arguments)).as_text()
        assert "T(8,128)" in text and "tpu_custom_call" not in text


def test_rounded_weights_are_refused(tmp_path):
    embedder = tiny_embedder(TINY)
    embedder.params["text"]["embed"]["table"] = np.zeros((1024, 16), np.float16)
    with pytest.raises(ValueError, match="are rounded to float16, exports hold float32"):
        export_stablehlo(embedder, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_settings_name_all_that_results_depend_on(native, fixed):
    settings = json.loads((native / "export.json").read_text())
    embedder = tiny_embedder(TINY)
    assert settings["weights"] == embedder.identity()["weights"]
    assert settings["versions"]["siglip2_jax"] == siglip2_jax.__version__
    assert settings["text"] | {"ids": ""} == {
        "norm": "reference",
        "length": 64,
        "pad_id": 0,
        "eos_id": 1,
        "vocab_size": 1024,
        "ids": "",
        "tokenizer": "tokenizer.model",
    }
    assert settings["runs_with"].startswith(f"JAX {jax.__version__}, or one built up to 6 months")
    assert settings["image"]["budget"]["default"] == 256
    assert settings["files"].keys() == FILES - {"export.json"}
    assert settings["programs"]["image"]["inputs"][0] == "float32[b,n,48]"
    settings = json.loads((fixed / "export.json").read_text())
    assert settings["image"]["budget"] == {"num_patches": 16}
    assert settings["programs"]["image"]["inputs"][0] == "float32[b,16,48]"


WRONG = {
    "yx is int32 [2, 59, 2], expected int32 [2, 60, 2]": lambda p, yx, v: (p, yx[:, 1:], v),
    "valid is bool [1, 60], expected bool [2, 60]": lambda p, yx, v: (p, yx, v[:1]),
    "pixels is float32 [60, 48], expected float32 [b, n, 48]": lambda p, yx, v: (p[0], yx, v),
    "pixels is float32 [2, 60, 47], expected float32 [b, n, 48]": lambda p, yx, v: (
        p[..., 1:],
        yx,
        v,
    ),
    "pixels is uint8 [2, 60, 48], expected float32 [b, n, 48]": lambda p, yx, v: (
        p.astype(np.uint8),
        yx,
        v,
    ),
    "pixels is float32 [0, 60, 48], expected float32 [b, n, 48]": lambda p, yx, v: (
        p[:0],
        yx[:0],
        v[:0],
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_shapes_are_one_sentence(native, message):
    model = stablehlo_loader.load(native)
    inputs = WRONG[message](*arguments(images((3, 20), (3, 20))))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.embed_images(*inputs)


def test_wrong_ids_are_one_sentence(native):
    model = stablehlo_loader.load(native)
    with pytest.raises(ValueError, match=r"^ids is int64 \[1, 63\], expected int32 \[b, 64\]$"):
        model.embed_tokens(np.zeros((1, 63), np.int64))
    with pytest.raises(ValueError, match=r"^ids are 0 to 1024, expected 0 to 1023$"):
        model.embed_tokens(np.where(np.arange(64) == 3, 1024, 0)[None])


def test_programs_of_another_jax_are_refused_in_a_sentence(native, tmp_path, monkeypatch):
    said = r"^JAX \S+ cannot read .*image.jax_export: use JAX \S+, or one up to 6 months newer"
    copy = shutil.copytree(native, tmp_path / "copy")
    content = bytearray((copy / "image.jax_export").read_bytes())
    content[content.index(b"ML\xefR") + 4] = 99  # the version of MLIR's bytecode
    (copy / "image.jax_export").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        stablehlo_loader.load(copy)
    for bound, version in (("minimum", 1000), ("maximum", 1)):
        name = f"{bound}_supported_calling_convention_version"
        monkeypatch.setattr(stablehlo_loader.export, name, version)
        with pytest.raises(ValueError, match=said):
            stablehlo_loader.load(native)
        monkeypatch.undo()
    stablehlo_loader.load(native)


def test_an_error_leaves_what_was_there(native, tmp_path, monkeypatch):
    target = shutil.copytree(native, tmp_path / "model")
    # Programs take seconds and do not depend on weights.
    monkeypatch.setattr(stablehlo, "export_programs", functools.cache(export_programs))
    with pytest.raises(FileExistsError, match="model exists"):
        export_stablehlo(tiny_embedder(), target)
    for error in (KeyboardInterrupt, OSError("disk is full")):
        with monkeypatch.context() as patch:
            patch.setattr(stablehlo.safetensors_file, "write", Mock(side_effect=error))
            for path in (target, tmp_path / "new"):
                with pytest.raises((KeyboardInterrupt, OSError)):
                    export_stablehlo(tiny_embedder(seed=1), path, overwrite=True)
        assert os.listdir(tmp_path) == ["model"] and contents(target) == contents(native)
    export_stablehlo(tiny_embedder(seed=1), target, overwrite=True)
    assert os.listdir(tmp_path) == ["model"] and contents(target) != contents(native)


@pytest.mark.slow
def test_a_killed_export_is_no_export(tmp_path):
    code = """
import os, signal
from siglip2_jax.export import stablehlo
from siglip2_jax.testing import tiny_embedder
write = stablehlo.safetensors_file.write
def die(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
stablehlo.safetensors_file.write = die
stablehlo.export_stablehlo(tiny_embedder(), "model")
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "model").exists()
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
    export_stablehlo(tiny_embedder(), tmp_path / "model")
    assert contents(tmp_path / "model").keys() == FILES


def test_the_loader_is_small():
    source = Path(stablehlo_loader.__file__).read_text()
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = [
        line
        for number, line in enumerate(source.split("\n"), 1)
        if number not in docstrings and line.strip() and not line.lstrip().startswith("#")
    ]
    assert 50 < len(lines) <= 60
