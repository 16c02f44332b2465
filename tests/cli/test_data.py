"""`siglip2 data`: index, pack, inspect."""

import io
import json
import re
import tarfile

import pytest
from data.samples import picture

from siglip2_jax.data.records import Records
from siglip2_jax.data.tars import Tars

CONFIG = """
from siglip2_jax.config import Data, Stage, TrainConfig
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.sources import Folder
from siglip2_jax.demo import TOKENIZER, tiny_config
from siglip2_jax.objectives.sigmoid import Sigmoid


def config():
    stage = Stage(
        name="main",
        steps=1,
        batch_size=8,
        data=Data(source=Folder({path!r})),
        lengths=Lengths(budgets=(8, 16), batch_scale=()),
        objectives={{"sigmoid": Sigmoid()}},
    )
    return TrainConfig(model=tiny_config(), stages=(stage,), tokenizer=str(TOKENIZER))
"""


@pytest.fixture
def folder(tmp_path):
    """Five pictures with captions, and one that is no picture."""
    path = tmp_path / "pairs"
    (path / "images").mkdir(parents=True)
    rows = []
    for i in range(6):
        data = picture(i, 64, 32) if i < 5 else b"no picture"
        (path / "images" / f"{i}.jpg").write_bytes(data)
        rows.append({"file": f"{i}.jpg", "captions": [f"<b>picture {i}</b>"]})
    (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_packs_a_folder_and_says_what_it_left_out(siglip2, folder, tmp_path):
    out = tmp_path / "records"
    result = siglip2("data", "pack", "--folder", folder, "--out", out, "--shard-size", 3, "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert summary["examples"] == 5 and summary["skipped"] == 1 and summary["shards"] == 2
    examples = Records(str(out / "*.arrayrecord")).open()
    assert {examples[i]["captions"] for i in range(5)} == {
        (f"<b>picture {i}</b>",) for i in range(5)
    }
    again = siglip2("data", "pack", "--folder", folder, "--out", out, "--shard-size", 3)
    assert again.code == 0 and "5 examples in 2 shards" in again.out


def test_indexes_tars(siglip2, tmp_path, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            *(("1.jpg", picture(1)), ("1.txt", b"one"), ("1.cls", b"7")),
            *(("2.jpg", picture(2)), ("3.txt", b"three")),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    result = siglip2("data", "index", tmp_path / "*.tar", "--json")
    assert json.loads(result.out) == {
        "files": 1,
        "examples": 2,
        "left_out": 1,
        "damaged": 0,
        "remarks": {"no_image": 1, "other": 1},
    }
    assert (tmp_path / "a.tar.idx.npz").exists()
    assert "a.tar leaves out samples without an image beside their caption (1, the" in caplog.text
    packed = siglip2("data", "pack", "--tars", tmp_path / "*.tar", "--out", tmp_path / "out")
    assert "1 examples in 1 shards" in packed.out and "1 were bad" in packed.out
    assert "1 in the files are no samples that can be used" in packed.out
    (line,) = (tmp_path / "out" / "examples.errors.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == f"{tmp_path}/a.tar:2"


def test_tars_in_shares_and_in_random_order(siglip2, folder, tmp_path):
    out = tmp_path / "out"
    words = ("data", "pack", "--folder", folder, "--format", "tar", "--shard-size", 2)
    for share in ("2/3", "0/3", "1/3"):
        result = siglip2(*words, "--shuffle", 3, "--shard", share, "--out", out)
        assert result.code == 0, result.err
    examples = Tars(str(out)).open()
    captions = [examples[i]["captions"] for i in range(len(examples))]
    assert len(captions) == 5 and captions != sorted(captions)
    index = siglip2("data", "index", out, "--shard", "0/3", "--json")
    assert json.loads(index.out)["files"] == 1
    assert "has a manifest in 3 parts, not 1" in siglip2("data", "index", out).err


def test_packs_parquet(siglip2, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": picture(i), "path": None}, "text": f"row {i}"} for i in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    words = ("data", "pack", "--parquet", tmp_path / "*.parquet", "--out", tmp_path / "out")
    assert "has no column 'caption'" in siglip2(*words).err
    assert "5 examples in 1 shards" in siglip2(*words, "--captions", "text").out
    examples = Records(str(tmp_path / "out")).open()
    assert [examples[i]["captions"] for i in range(5)] == [(f"row {i}",) for i in range(5)]
    indexed = siglip2("data", "index", tmp_path)
    assert "1 files hold 5 examples; 0 are left out" in indexed.out


@pytest.mark.parametrize("option", ["--shard 3/3", "--shard 1", "--shard a/b", "--shuffle -1"])
def test_options_of_shares_and_order(siglip2, capsys, option):
    with pytest.raises(SystemExit) as stop:
        siglip2("data", "pack", "--folder", "x", "--out", "y", *option.split())
    assert stop.value.code == 2


def test_draws_a_batch_at_every_length(siglip2, folder, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(folder)))
    out = tmp_path / "batch.html"
    result = siglip2(
        "data", "inspect", tmp_path / "config.py", "--count", 4, "--out", out, "--json"
    )
    assert result.code == 0, result.err
    lengths = json.loads(result.out)["lengths"]
    # 64 x 32 pixels are 2 x 4 patches within 8, and 2 x 5 or so within 16.
    assert lengths["8"]["patches"] == 8 and lengths["8"]["patches_used"] == 1
    assert 8 < lengths["16"]["patches"] <= 16
    page = out.read_text()
    assert len(re.findall("<figure>", page)) == 8
    assert "&lt;b&gt;picture" in page and "<b>picture" not in page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("data", "index", "nowhere/*.tar"), "matches no file"),
        (("data", "pack", "--folder", "nowhere", "--out", "x"), "nowhere"),
        (("data", "inspect", "nowhere.py"), "nowhere.py: no such file"),
    ],
)
def test_bad_input_is_one_sentence(siglip2, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = siglip2(*args)
    assert result.code == 2 and message in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_unknown_stage(siglip2, folder, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(folder)))
    result = siglip2("data", "inspect", tmp_path / "config.py", "--stage", "mian")
    assert result.code == 2 and "no stage 'mian'; the config has main" in result.err
