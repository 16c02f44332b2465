"""Paths of all commands: on `gs://` as docs/paths.md says, or refused before any work."""

import argparse
import json
import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from inference.captioners import looks
from PIL import Image

from siglip2_jax import inference, load
from siglip2_jax.checkpoints import source
from siglip2_jax.cli import main, parser
from siglip2_jax.evals.class_embeddings import ClassCache, class_embeddings
from siglip2_jax.inference.embedding_file import read_embeddings, write_embeddings
from siglip2_jax.outputs import open_output
from siglip2_jax.recipes import tiny

DOCS = Path(__file__).parents[2] / "docs" / "paths.md"
SMALL = ("--batch-size", 4, "--max-num-patches", 16)
# Options whose value is no path: numbers, names, words, and changes to a config.
NO_PATHS = set(
    "--steps --seed --max-num-patches --batch-size --labels --top --task --budgets --coordinator "
    "--grid --arm --seeds "
    "--num-processes --process-id --head --locate --describe --beams --temperature --set "
    "--topology --slices --stage --budget --images-per-core-second --batches --remats --tfds "
    "--kilobytes-per-image --images-per-request --dollars-per-1000-requests --step-ms --hosts "
    "--images-per-second --seconds --items --host-cores --price "
    "--precision --recall "
    "--template --templates --split --shard-size --device --min-score "
    "--max-per-image --count --shard --shuffle "
    "QUERY --minus --where --duplicates -k "
    "--columns --image-column --caption-column --id-column --workers "
    "--host --port --model-name --batch-sizes --wait-ms --queue --max-items --deadline "
    "--max-request-mb --max-image-mb --max-pixels --grace --decode-workers "
    "--allow-url-hosts OWNER/NAME --revision --message".split()
)


def documented() -> dict[tuple[str, str], bool]:
    """Commands and options of the table, each with a yes or no for `gs://`."""
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| (yes|no) \|", DOCS.read_text(), re.M)
    return {(command, option): answer == "yes" for command, option, answer in rows}


def commands(root: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, list]]:
    """The options of every command that runs."""
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield from commands(inner, f"{name} {word}".strip())
            return
    yield name, root._actions


def label(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar)


def command_line(command: str, option: str, value: str) -> list[str]:
    """The shortest call of a command that gives one option a value."""
    words = command.split()
    for action in dict(commands(parser()))[command]:
        if label(action) == option:
            words += [value] if option.isupper() else [option, value]
        elif not action.option_strings or action.required:
            words += [label(action)] if action.option_strings else []
            words += [(action.choices or ["x.npz"])[0]]
    if command == "embed" and option not in ("--images", "--texts"):
        words += ["--texts", "x"]
    if command == "data pack" and option not in ("--tars", "--parquet", "--folder"):
        words += ["--folder", "x"]
    return [*words, "--annotations"] if command == "data regions" else words


def test_every_option_with_a_path_is_documented():
    options = {
        (command, label(action))
        for command, actions in commands(parser())
        for action in actions
        if action.nargs != 0 and not action.choices and label(action) not in NO_PATHS
    }
    assert set(documented()) == options and len(options) > 35


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize(
    ("command", "option"), [x for x, works in documented().items() if not works]
)
def test_what_needs_a_local_path_says_so(capsys, tmp_path, monkeypatch, command, option, scheme):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(command_line(command, option, f"{scheme}://bucket/x.npz"))
    *_, line = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and f"'{scheme}://bucket/x.npz' is not a local path" in line
    assert option in line and os.listdir(tmp_path) == []


@pytest.mark.parametrize(("command", "option"), [x for x, works in documented().items() if works])
def test_a_store_that_is_away_is_said_first(siglip2, tmp_path, monkeypatch, command, option):
    monkeypatch.setitem(sys.modules, "gcsfs", types.ModuleType("gcsfs"))
    monkeypatch.setattr(source, "reachable", lambda url: False)
    monkeypatch.chdir(tmp_path)
    result = siglip2(*command_line(command, option, "gs://bucket/x.npz"))
    expected = "gs://bucket/x.npz: Google Cloud Storage cannot be reached; is there a network?"
    assert (result.code, result.err) == (2, f"siglip2: error: {expected}\n")
    assert result.out == "" and os.listdir(tmp_path) == []


class Bucket(MemoryFileSystem):
    """A store in memory with gcsfs's paths: those of objects have no leading slash."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path) -> str:
        inner = str(path).removeprefix("gs://").strip("/")
        return f"/{inner}" if inner else ""

    def glob(self, path, maxdepth=None, **options):
        return [found.lstrip("/") for found in super().glob(path, maxdepth, **options)]


@pytest.fixture
def bucket(monkeypatch, tmp_path) -> Iterator[epath.Path]:
    """`gs://bucket`, empty; no local directory of such a name may be made."""
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", ["", "/bucket"])
    files, root = Bucket(skip_instance_cache=True), epath.Path("gs://bucket")
    monkeypatch.setattr(type(root._backend), "_get_filesystem", lambda self, name: files)
    monkeypatch.setattr(source, "check_bucket", lambda path: None)
    monkeypatch.chdir(tmp_path)
    yield root
    assert not list(tmp_path.glob("gs:*"))
    assert not [path for path in Bucket.store if path.endswith(".tmp")]


def upload(directory: Path, place: epath.Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            (place / path.relative_to(directory)).write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("gs://bucket/photos", "a.png b.jpg c.JPG d.webp deeper/h.png e.bmp f.tif g.gif"),
        ("gs://bucket/photos/", "a.png b.jpg c.JPG d.webp deeper/h.png e.bmp f.tif g.gif"),
        ("gs://bucket/photos/*.[jJ]*", "b.jpg c.JPG"),
        ("gs://bucket/photos/*/h.png", "deeper/h.png"),
        ("gs://bucket/photos/e.bmp", "e.bmp"),
    ],
)
def test_embed_on_a_store_as_locally(siglip2, model_dir, photos, bucket, typed, names):
    upload(photos, bucket / "photos")
    out = bucket / "new" / "e.npz"
    result = siglip2("embed", model_dir, "--images", typed, "--out", out, *SMALL)
    assert (result.code, result.err) == (0, result.err) and str(out) in result.out
    local = [photos / name for name in names.split()]
    assert siglip2("embed", model_dir, "--images", *local, "--out", "e.npz", *SMALL).code == 0
    stored, here = read_embeddings(out), read_embeddings("e.npz")
    assert list(stored.items) == [f"gs://bucket/photos/{name}" for name in names.split()]
    np.testing.assert_array_equal(stored.embeddings, here.embeddings)
    assert [path.name for path in out.parent.iterdir()] == ["e.npz"]
    again = siglip2("embed", model_dir, "--images", typed, "--out", out, *SMALL, "--json")
    assert again.code == 0 and json.loads(again.out)["embedded"] == len(local)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("gs://bucket/absent", "gs://bucket/absent matches no image"),
        ("gs://bucket/photos/*.tiff", r"gs://bucket/photos/\*.tiff matches no image"),
        ("gs://bucket/**/a.png", r"\*\* is not read on gs://; pass the directory"),
    ],
)
def test_images_that_a_store_lacks(siglip2, model_dir, photos, bucket, typed, said):
    upload(photos, bucket / "photos")
    result = siglip2("embed", model_dir, "--images", typed, "--out", bucket / "e.npz", *SMALL)
    assert result.code == 2 and re.search(said, result.err) and result.err.count("\n") == 1


def test_an_interrupted_embed_goes_on_in_a_store(bucket):
    items, rows = [f"text {i}" for i in range(5)], np.eye(5, dtype=np.float32)
    out = bucket / "e.npz"

    def stopped(_):
        yield from rows[:3]
        raise KeyboardInterrupt

    def rest(left):
        assert list(left) == items[3:]
        return rows[3:]

    with pytest.raises(KeyboardInterrupt):
        write_embeddings(out, items, {}, 5, stopped, items_per_part=2)
    assert not out.exists()
    assert write_embeddings(out, items, {}, 5, rest, items_per_part=2)["embedded"] == 5
    np.testing.assert_array_equal(read_embeddings(out).embeddings, rows)
    assert [path.name for path in bucket.iterdir()] == ["e.npz"]


def test_lists_of_texts_in_a_store(siglip2, model_dir, photos, bucket):
    (bucket / "words.txt").write_text("a dog\na cat\n")
    image, words = photos / "a.png", bucket / "words.txt"
    stored = siglip2("classify", model_dir, image, "--labels-file", words, "--json", *SMALL)
    local = siglip2("classify", model_dir, image, "--labels", "a dog,a cat", "--json", *SMALL)
    assert stored.code == 0 and stored.out == local.out
    absent = siglip2("embed", model_dir, "--texts", bucket / "absent", "--out", "e.npz")
    message = "siglip2: error: gs://bucket/absent: No such file or directory\n"
    assert (absent.code, absent.err) == (2, message)


@pytest.mark.parametrize("stored", [False, True])
def test_eval_keeps_its_results(
    siglip2, model_dir, odd_names, bucket, tmp_path, monkeypatch, stored
):
    """On disk and in a store; the names of the photos are no UTF-8."""
    place = bucket if stored else epath.Path(tmp_path)
    command = ["eval", model_dir, "--task", "caltech", "--data", odd_names, *SMALL]
    command += ["--out", place / "out", "--json", place / "results.json"]
    first = siglip2(*command)
    assert first.code == 0 and r"\udcff.png" in first.err
    (row,) = json.loads((place / "results.json").read_bytes().decode("utf-8"))
    own = row["siglip2_jax"]
    assert own["images"] == 2 and "/\udcff.png" in own["failed"][0]
    files = sorted(path.name for path in (place / "out").iterdir())
    assert files == ["report.html", "report.json", "report.md", "results"]
    for name in files[:3]:
        assert r"\udcff.png" in (place / "out" / name).read_bytes().decode("utf-8")
    (place / "results.json").unlink()
    monkeypatch.setattr("siglip2_jax.benchmarks.suite._measure", None)  # nothing is measured again
    again = siglip2(*command)
    assert (again.code, again.out) == (0, first.out)
    assert json.loads((place / "results.json").read_bytes()) == [row]


def test_class_embeddings_are_kept_in_a_store(model_dir, bucket, monkeypatch):
    model, cache = load(model_dir), ClassCache(str(bucket / "classes"), "tiny")
    rows = class_embeddings(model, ["dog", "cat"], ["a {}"], cache=cache)
    assert len(list((bucket / "classes").iterdir())) == 1
    monkeypatch.setattr("siglip2_jax.evals.class_embeddings.embed_labels", None)
    np.testing.assert_array_equal(
        class_embeddings(model, ["dog", "cat"], ["a {}"], cache=cache), rows
    )


def test_pages_and_pictures_in_a_store(siglip2, photos, bucket, monkeypatch):
    monkeypatch.setattr(inference, "load_captioner", lambda *a, **b: looks())
    drawn = siglip2("caption", "RUN", photos / "a.png", "--locate", "x", "--draw", bucket / "a.png")
    assert drawn.code == 0, drawn.err
    with (bucket / "a.png").open("rb") as file:
        assert Image.open(file).size == (60, 5)
    (bucket / "tiny.py").write_text(Path(tiny.__file__).read_text())
    page = siglip2("data", "inspect", bucket / "tiny.py", "--count", 1, "--out", bucket / "b.html")
    assert page.code == 0, page.err
    assert (bucket / "b.html").read_text().startswith("<!doctype html>")


def test_a_store_that_refuses_is_said_with_the_path(bucket, monkeypatch):
    def refuse(self, path, mode="rb", **options):
        raise OSError("Forbidden: no permission to create objects")

    monkeypatch.setattr(Bucket, "open", refuse)
    with pytest.raises(OSError, match="gs://bucket/x cannot be written: Forbidden"):
        with open_output(bucket / "x") as file:
            file.write(b"")


def test_an_output_that_cannot_be_written_is_refused_first(siglip2, tmp_path):
    for words in (["eval", "absent", "--json"], ["demo", "--out"], ["caption", "x", "y", "--draw"]):
        with pytest.raises(SystemExit) as stop:
            siglip2(*words, tmp_path)
        assert stop.value.code == 2
