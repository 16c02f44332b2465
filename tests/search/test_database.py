"""Databases: one row for each content, whatever is added, interrupted or removed."""

import dataclasses
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("lancedb")

from search.samples import (  # noqa: E402
    MODEL,
    SETTINGS,
    add_random,
    clustered,
    index_folder,
    make_random,
    write_images,
)

from siglip2_jax.data.items.item import Columns  # noqa: E402
from siglip2_jax.inference.shards import Options, embed_shards, merge, read_shards  # noqa: E402
from siglip2_jax.search import writer as writer_module  # noqa: E402
from siglip2_jax.search.column import open_column  # noqa: E402
from siglip2_jax.search.database import Database, settings_of, settings_of_shards  # noqa: E402
from siglip2_jax.search.indexing import index_shards  # noqa: E402
from siglip2_jax.search.place import Place  # noqa: E402
from siglip2_jax.search.writer import writing  # noqa: E402
from siglip2_jax.testing import tiny_embedder  # noqa: E402

pytestmark = pytest.mark.search


def contents(uri) -> dict[str, tuple]:
    """Content, embedding's bits, caption and size of each id."""
    rows = Database.open(uri).table.to_arrow().to_pylist()
    found = {
        row["id"]: (row["content"], np.array(row["embedding"], np.float16).tobytes(), row["width"])
        for row in rows
    }
    assert len(found) == len(rows)
    return found


def test_rows_are_those_of_the_model(tmp_path):
    paths = write_images(tmp_path / "a", 7)
    summary = index_folder(tmp_path / "db", tmp_path / "a")
    assert (summary.read, summary.added, summary.known, summary.errors) == (7, 7, 0, 0)
    table = Database.open(tmp_path / "db").table.to_arrow().sort_by("id")
    assert table["id"].to_pylist() == [str(path) for path in paths]
    rows = np.array(table["embedding"].to_pylist(), np.float16)
    expected = MODEL.embed_images(paths, max_num_patches=16, batch_size=4)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=3e-4)  # float16
    column = open_column(Database.open(tmp_path / "db").table, tmp_path / "db" / "cache")
    np.testing.assert_array_equal(column.embeddings, rows)


def test_only_new_contents_are_embedded(tmp_path, monkeypatch):
    """And stand where they would in an undisturbed run: their bits are the same."""
    paths = write_images(tmp_path / "a", 11)
    (tmp_path / "a" / "copy.png").write_bytes(paths[2].read_bytes())
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    hidden = {path: path.read_bytes() for path in (paths[1], paths[4], paths[10])}
    undisturbed = index_folder(tmp_path / "whole", tmp_path / "a")
    assert (undisturbed.added, undisturbed.known, undisturbed.errors) == (11, 1, 1)
    expected = contents(tmp_path / "whole")
    assert str(tmp_path / "a" / "copy.png") not in expected

    other = tmp_path / "b"
    for path in hidden:
        (other / path.name).parent.mkdir(exist_ok=True)
        path.rename(other / path.name)
    index_folder(tmp_path / "db", tmp_path / "a")
    for path in hidden:
        (other / path.name).rename(path)
    summary = index_folder(tmp_path / "db", tmp_path / "a")
    assert (summary.added, summary.known) == (3, 9)
    found = contents(tmp_path / "db")
    assert {name: row[0] for name, row in found.items()} == {
        name: row[0] for name, row in expected.items()
    }
    for path in hidden:
        assert found[str(path)] == expected[str(path)]

    monkeypatch.setattr("siglip2_jax.inference.shards.batches.run_batch", None)  # not even called
    assert index_folder(tmp_path / "db", tmp_path / "a").added == 0


def test_a_row_does_not_depend_on_the_other_rows(tmp_path):
    rng = np.random.default_rng(0)
    paths = write_images(tmp_path, 4)
    patches = MODEL.preprocess(paths, 16)
    full = MODEL.embed_images(patches, batch_size=4)
    for row in range(4):
        blank = [rng.random() < 0.5 or i == row for i in range(4)]
        keep = np.array(blank)
        alone = dataclasses.replace(
            patches,
            pixels=np.where(keep[:, None, None], patches.pixels, 0),
            valid=np.where(keep[:, None], patches.valid, False),
        )
        np.testing.assert_array_equal(MODEL.embed_images(alone, batch_size=4)[row], full[row])


def test_prune_removes_what_is_gone_and_corrects_what_has_moved(tmp_path):
    paths = write_images(tmp_path / "a", 6)
    index_folder(tmp_path / "db", tmp_path / "a")
    before = contents(tmp_path / "db")
    paths[0].unlink()
    (tmp_path / "a" / "moved.png").write_bytes(paths[1].read_bytes())
    paths[1].unlink()
    (tmp_path / "a" / "zcopy.png").write_bytes(paths[2].read_bytes())
    kept = index_folder(tmp_path / "db", tmp_path / "a")
    assert (kept.removed, kept.renamed) == (0, 0) and contents(tmp_path / "db") == before

    pruned = index_folder(tmp_path / "db", tmp_path / "a", prune=True)
    assert (pruned.added, pruned.removed, pruned.renamed) == (0, 1, 1)
    after = contents(tmp_path / "db")
    assert after.pop(str(tmp_path / "a" / "moved.png")) == before[str(paths[1])]
    assert after == {str(path): before[str(path)] for path in paths[2:]}
    again = index_folder(tmp_path / "db", tmp_path / "a", prune=True)
    assert (again.removed, again.renamed) == (0, 0)


def test_nothing_is_pruned_while_a_file_cannot_be_read(tmp_path):
    write_images(tmp_path / "a", 3)
    index_folder(tmp_path / "db", tmp_path / "a")
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"nothing is removed, .*broken\.tar"):
        index_folder(tmp_path / "db", tmp_path / "broken.tar", prune=True)
    assert len(contents(tmp_path / "db")) == 3


def test_metadata_is_kept_and_added_later(tmp_path):
    paths = write_images(tmp_path / "a", 4)
    for table, names, rows in (
        ("one.csv", "image,place", [f"a/{path.name},x{i}" for i, path in enumerate(paths[:2])]),
        (
            "two.csv",
            "image,place,year",
            [f"a/{path.name},y,19{i}0" for i, path in enumerate(paths)],
        ),
    ):
        (tmp_path / table).write_text("\n".join([names, *rows]))
    index_folder(tmp_path / "db", tmp_path / "one.csv", columns=Columns(fields=("place",)))
    more = Columns(fields=("place", "year"))
    assert index_folder(tmp_path / "db", tmp_path / "two.csv", columns=more).added == 2
    rows = Database.open(tmp_path / "db").table.to_arrow().sort_by("id").to_pylist()
    assert [(row["place"], row["year"]) for row in rows] == [
        ("x0", None),
        ("x1", None),
        ("y", "1920"),
        ("y", "1930"),
    ]


def test_shards_give_the_same_database(tmp_path):
    from siglip2_jax.data.items.find import find_items

    write_images(tmp_path / "a", 9)
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    index_folder(tmp_path / "images", tmp_path / "a")
    shards = find_items([str(tmp_path / "a")])
    options = Options(max_num_patches=16, batch_size=4, workers=0)
    embed_shards(MODEL, shards, tmp_path / "out", options)
    merge(tmp_path / "out")
    run = read_shards(tmp_path / "out")
    settings = settings_of_shards(run.settings, None)
    with writing(Place(tmp_path / "db"), settings) as writer:
        summary = index_shards(writer, [run, run])
        writer.finish()
    assert (summary.read, summary.added, summary.known, summary.errors) == (20, 9, 9, 2)
    assert contents(tmp_path / "db") == contents(tmp_path / "images")

    # Settings are the same, so that either can go on with the other's database.
    ours, its = settings_of(MODEL, 16, False, {}), Database.open(tmp_path / "db").settings
    differing = {name for name in ours | its if ours.get(name) != its.get(name)}
    assert differing == {"loaded_from"}
    assert index_folder(tmp_path / "db", tmp_path / "a").added == 0
    assert Database.open(tmp_path / "db").settings["loaded_from"] == {"source": "nowhere"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_norm": "none"}, "text_norm 'reference' (now 'none')"),
        ({"preproc": "hf"}, "preproc 'reference' (now 'hf')"),
        ({"patches": 8}, "patches 16 (now 8)"),
        ({"weights": "others"}, "weights '"),
        ({"weights_dtype": "int8"}, "weights_dtype 'float32' (now 'int8')"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, words):
    write_images(tmp_path / "a", 2)
    index_folder(tmp_path / "db", tmp_path / "a")
    settings = settings_of(MODEL, 16, False, {}) | change
    with pytest.raises(ValueError) as refused, writing(Place(tmp_path / "db"), settings):
        pass
    assert words in str(refused.value) and str(tmp_path / "db") in str(refused.value)
    with pytest.raises(ValueError, match="weights"):
        Database.open(tmp_path / "db").check_model(tiny_embedder(seed=1))
    Database.open(tmp_path / "db").check_model(MODEL)


def test_one_process_writes_at_a_time(tmp_path):
    make_random(tmp_path / "db", 3)
    code = """
        import sys
        from siglip2_jax.search.place import Place
        with Place(sys.argv[1]).lock():
            print("locked", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "db")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=rf"is being written by process {other.pid}, "):
            with writing(Place(tmp_path / "db"), SETTINGS):
                pass
        uri = f"file://{tmp_path / 'db'}"
        with pytest.raises(ValueError, match="one writer"), writing(Place(uri), SETTINGS):
            pass
        assert Database.open(tmp_path / "db").table.count_rows() == 3  # readers may
        other.kill()
    with writing(Place(tmp_path / "db"), SETTINGS):  # a process that ends leaves no lock
        pass


def test_waiting_rows_are_kept_when_something_stops_the_run(tmp_path):
    with pytest.raises(KeyboardInterrupt), writing(Place(tmp_path / "db"), SETTINGS) as writer:
        add_random(writer, ["a", "b"], clustered(2))
        assert writer.table.count_rows() == 0
        raise KeyboardInterrupt
    assert set(contents(tmp_path / "db")) == {"a", "b"}


def test_commits_are_compacted(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "COMMITS_PER_COMPACTION", 5)
    rows = clustered(12)
    with writing(Place(tmp_path / "db"), SETTINGS) as writer:
        for i in range(12):
            add_random(writer, [str(i)], rows[i : i + 1])
            writer.commit()
        most = writer.table.stats()["fragment_stats"]["num_fragments"]
        writer.finish()
        assert writer.table.stats()["fragment_stats"]["num_fragments"] == 1 < most < 8
    assert len(contents(tmp_path / "db")) == 12


def test_a_database_may_be_a_uri(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "a", 3)
    uri = f"file://{tmp_path}/db"
    index_folder(uri, tmp_path / "a")
    assert (tmp_path / "db" / "siglip2.json").is_file()
    assert len(contents(uri)) == 3 and contents(uri) == contents(tmp_path / "db")


def test_columns_of_other_versions_go(tmp_path):
    make_random(tmp_path / "db", 5)
    cache = tmp_path / "db" / "cache"
    (first,) = cache.iterdir()
    (cache / "column-1.999999999.tmp").mkdir()
    with writing(Place(tmp_path / "db"), SETTINGS) as writer:
        add_random(writer, ["new"], clustered(1, seed=3))
        writer.commit()
    database = Database.open(tmp_path / "db")
    column = open_column(database.table, cache)  # a killed writer has left none
    assert len(column.rows) == 6
    (second,) = cache.iterdir()
    assert second != first


def test_what_is_no_database_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no database; make one with `siglip2 index"):
        Database.open(tmp_path)
    (tmp_path / "siglip2.json").write_text("{")
    with pytest.raises(ValueError, match=r"siglip2\.json is damaged"):
        Database.open(tmp_path)
    (tmp_path / "siglip2.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no images yet"):
        Database.open(tmp_path)
