"""Tars and Parquet in blocks: the same examples as one by one, with one request a block."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data.samples import picture, write_tar
from data.tar.test_index import link

from siglip2_jax.data import Parquet, Tars
from siglip2_jax.data.example import ExampleError, SourceError
from siglip2_jax.data.sources import Blocked
from siglip2_jax.data.stores.client import counts
from siglip2_jax.data.stores.manifest import Entry, Manifest, concatenate, entries, join
from siglip2_jax.data.stores.manifest_files import About, Shard, decode_part, encode_part
from siglip2_jax.data.stores.store import File
from siglip2_jax.data.tools import index as index_module
from siglip2_jax.data.tools.index import index


def sample(key: str, seed: int) -> list[tuple[str, bytes]]:
    fields = {"caption": f"{key} is {seed}", "seed": seed}
    return [(f"{key}.jpg", picture(seed)), (f"{key}.json", json.dumps(fields).encode())]


def write_messy(folder: Path) -> None:
    """Tars with everything that spans blocks: links, keys that come again, joins, damage."""
    folder.mkdir(parents=True, exist_ok=True)
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    plain = [member for i in range(11) for member in sample(f"{i:03d}", i)]
    write_tar(folder / "a.tar", plain)
    links = [
        ("first.jpg", picture(50)),
        ("first.txt", b"the first"),
        *(member for i in range(5) for member in sample(f"in/{i}", 60 + i)),
        ("again.jpg", link(hard, "first.jpg")),
        ("again.txt", b"a link back"),
        ("later.jpg", link(soft, "last.jpg")),
        ("later.txt", link(soft, "first.txt")),
        *sample("in/0", 70),
        *(member for i in range(3) for member in sample(f"out/{i}", 80 + i)),
        ("last.jpg", picture(51)),
    ]
    write_tar(folder / "b.tar", links)
    left_out = [
        ("0.txt", b"no image"),
        *sample("1", 90),
        ("1.cls", b"other"),
        ("2.jpg", picture(1)),
        ("2.jpg", picture(2)),
        ("x" * 150 + "/" + "y" * 150 + ".jpg", picture(3)),
        *sample("4", 94),
        ("5.mask.png", picture(4, kind="PNG")),
        *sample("5", 95),
        *sample("6", 96),
    ]
    write_tar(folder / "c.tar", left_out)
    joined = (folder / "a.tar").read_bytes() + (folder / "c.tar").read_bytes()
    (folder / "d.tar").write_bytes(joined)
    (folder / "e.tar").write_bytes((folder / "a.tar").read_bytes()[:-14_000])
    write_tar(folder / "f.tar", sample("only", 99), tarfile.GNU_FORMAT)
    with tarfile.open(folder / "g.tar", "w", pax_headers={"comment": "of all"}) as tar:
        for name, data in sample("g", 100) + sample("h", 101):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write_tar(folder / "h.tar", [("only.txt", b"no sample")])


def by_name(examples) -> dict[str, dict]:
    return {example["name"]: example for example in examples}


def blocks_of(examples) -> list[list[dict]]:
    count = -(-len(examples) // examples.block_size)
    return [list(examples.read_block(block)) for block in range(count)]


def upload(cloud, folder: Path, name: str = "data") -> str:
    for path in sorted(folder.glob("*.*")):
        if not path.name.endswith(".npz"):
            cloud.put(f"{name}/{path.name}", path.read_bytes())
    return f"{cloud.scheme}://bucket/{name}"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 128])
def test_blocks_of_messy_tars(tmp_path, monkeypatch, size):
    """The same examples as without a manifest, in whole blocks and then what is left."""
    write_messy(tmp_path / "t")
    plain = Tars(str(tmp_path / "t")).open()
    expected = [plain[i] for i in range(len(plain))]
    monkeypatch.setattr(index_module, "BLOCK_SIZE", size)
    summary = index(str(tmp_path / "t"))
    assert (summary.files, summary.examples) == (8, len(expected))
    assert summary.left_out == plain.left_out == 6 and summary.damaged == 1
    examples = pickle.loads(pickle.dumps(Tars(str(tmp_path / "t")).open()))
    assert isinstance(examples, Blocked) and not examples.remote
    assert examples.block_size == size and len(examples) == len(expected)
    blocks = blocks_of(examples)
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert [x for block in blocks for x in block] == [examples[i] for i in range(len(examples))]
    assert by_name(expected) == by_name(x for block in blocks for x in block)
    # Whole blocks of a file are its examples in order.
    files = [
        [x for x in expected if x["name"].startswith(f"{tmp_path}/t/{c}.tar:")] for c in "abcdefgh"
    ]
    whole = [file[i : i + size] for file in files for i in range(0, len(file) // size * size, size)]
    rest = [x for file in files for x in file[len(file) // size * size :]]
    assert blocks == whole + [rest[i : i + size] for i in range(0, len(rest), size)]


def test_blocks_in_a_store(cloud, tmp_path, monkeypatch):
    """One request a block; the same examples as on a disk. The manifest is made in shares."""
    monkeypatch.setattr(index_module, "BLOCK_SIZE", 4)
    write_messy(tmp_path / "t")
    address = upload(cloud, tmp_path / "t")
    with pytest.raises(
        ValueError, match=f"^{address} has no manifest.*siglip2 data index '{address}'"
    ):
        Tars(address).open()
    for number in (2, 0):
        index(address, shard=Shard(number, 3))
    with pytest.raises(
        ValueError, match=r"lacks 1 of 3 parts, the first .*/00001-of-00003.npz; fin.*1/3"
    ):
        Tars(address).open()
    index(address, shard=Shard(1, 3))
    index(str(tmp_path / "t"))
    local, before = Tars(str(tmp_path / "t")).open(), counts()
    examples = pickle.loads(pickle.dumps(Tars(address).open()))
    assert (counts() - before).requests == 4  # a listing and three parts
    assert examples.remote and examples.left_out == local.left_out == 6
    whole = int(examples.manifest._whole[-1])
    for block, expected in enumerate(blocks_of(local)):
        before = counts()
        read = list(examples.read_block(block))
        made = (counts() - before).requests
        assert made == 1 or block >= whole or "/b.tar:" in read[0]["name"]
        assert read == [
            x | {"name": x["name"].replace(str(tmp_path / "t"), address)} for x in expected
        ]
    before = counts()
    assert [examples[i]["name"] for i in range(8)] == [
        x["name"] for block in (0, 1) for x in examples.read_block(block)
    ]
    assert (counts() - before).requests == 4  # each block once, one by one and as blocks
    narrow = Tars(f"{address}/[af].tar").open()
    assert len(narrow) == 12 and {x["name"][-8:-4] for b in blocks_of(narrow) for x in b}
    assert (
        by_name(x for b in blocks_of(narrow) for x in b).items()
        <= by_name(x for b in blocks_of(examples) for x in b).items()
    )


def test_a_tar_that_has_changed_is_named(cloud, tmp_path):
    write_tar(tmp_path / "a.tar", sample("1", 1) + sample("2", 2))
    address = upload(cloud, tmp_path)
    index(address)
    examples = Tars(address).open()
    write_tar(tmp_path / "a.tar", sample("1", 1) + sample("3", 2))
    upload(cloud, tmp_path)
    with pytest.raises(
        SourceError, match="a.tar has changed since it was indexed; run `siglip2 data index"
    ):
        examples.read_block(0)


@pytest.mark.slow
def test_faults_do_not_change_what_is_read(cloud, tmp_path):
    write_messy(tmp_path / "t")
    address = upload(cloud, tmp_path / "t")
    kinds = iter(["503", None, "reset", None, "cut", None, "429"] * 100)
    reads = ("GET", "/bucket/")  # writes are another client's
    cloud.fault = lambda: (
        next(kinds) if (cloud.requests[-1][0], cloud.requests[-1][1][:8]) == reads else None
    )
    index(address)
    faulty = blocks_of(Tars(address).open())
    cloud.fault = lambda: None
    assert faulty == blocks_of(Tars(address).open())


def test_a_local_index_goes_on_and_is_renewed(tmp_path, monkeypatch):
    for i in range(6):
        write_tar(tmp_path / f"{i}.tar", sample(f"{i}", i))
    seen = []
    describe = index_module.index_blocks

    def watched(file, *rest):
        seen.append(Path(file.path).name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return describe(file, *rest)

    monkeypatch.setattr(index_module, "index_blocks", watched)
    monkeypatch.setattr("siglip2_jax.data.tools.manifest_job._SECONDS", 0)
    monkeypatch.setattr(index_module, "thread_map", lambda f, items, _: map(f, items))
    with pytest.raises(KeyboardInterrupt):
        index(str(tmp_path))
    seen[:] = ["x"] * 9
    assert index(str(tmp_path)).examples == 6
    assert seen[9:] == ["3.tar", "4.tar", "5.tar"]
    assert [x.name for x in (tmp_path / "manifest").iterdir()] == ["00000-of-00001.npz"]
    write_tar(tmp_path / "2.tar", sample("x", 7) + sample("y", 8))
    with pytest.raises(SourceError, match="2.tar has changed"):
        blocks_of(Tars(str(tmp_path)).open())
    assert index(str(tmp_path)).examples == 7 and seen[12:] == ["2.tar"]
    assert len(Tars(str(tmp_path)).open()) == 7
    write_tar(tmp_path / "6.tar", sample("z", 8))
    with pytest.raises(ValueError, match="is of 6 files.*remove .*/manifest to index all anew"):
        index(str(tmp_path))
    with pytest.raises(ValueError, match="has a manifest in 1 parts, not 2"):
        index(str(tmp_path), shard=Shard(0, 2))
    (tmp_path / "manifest" / "00000-of-00001.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="00000-of-00001.npz is damaged"):
        Tars(str(tmp_path)).open()


def test_a_manifest_of_other_files(tmp_path):
    write_tar(tmp_path / "a0.tar", sample("1", 1))
    write_tar(tmp_path / "b0.tar", sample("2", 2))
    index(str(tmp_path / "a*.tar"))
    assert len(Tars(str(tmp_path / "a*.tar")).open()) == 1
    with pytest.raises(ValueError, match=r"is of a\*.tar, not of \*.tar; use that pattern"):
        Tars(str(tmp_path)).open()


def random_manifest(seed: int, size: int) -> Manifest:
    rng = np.random.default_rng(seed)
    described = []
    for i in range(9):
        count = int(rng.integers(0, 12))
        lengths = rng.integers(1, 99, -(-count // size)).astype(np.uint32)
        described.append(
            Entry(File(f"d/{i}", i, f"v{i}"), count, int(rng.integers(9)), lengths, {}, 1)
        )
    return join("d", size, described)


@pytest.mark.parametrize("size", [1, 3, 4, 20])
@pytest.mark.parametrize("seed", range(3))
def test_numbering(seed, size):
    """Every example in one place; whole blocks first, each of one file."""
    manifest = random_manifest(seed, size)
    counts_of = manifest.counts.tolist()
    expected = [(f, i) for f, n in enumerate(counts_of) for i in range(n // size * size)]
    expected += [(f, i) for f, n in enumerate(counts_of) for i in range(n // size * size, n)]
    assert [manifest.place(i) for i in range(len(manifest))] == expected
    for block in range(-(-len(manifest) // size)):
        pieces = manifest.pieces(block)
        assert [(f, i) for f, a, b in pieces for i in range(a, b)] == expected[block * size :][
            :size
        ]
        for piece in pieces:
            number, start, stop = manifest.block_range(piece)
            assert stop - start == manifest.lengths[number]
            its_blocks = list(entries(manifest))[piece.file]
            before = its_blocks.lengths[: piece.first // size].sum()
            assert start == its_blocks.start + before
    about = About(".tar", "*.tar", 9, "x", size)
    described = list(entries(manifest))
    parts = [join("d", size, described[:4]), join("d", size, described[4:])]
    read = [decode_part(encode_part(part, about), "d", "p") for part in parts]
    assert {its_about for _, its_about in read} == {about}
    again = concatenate([part for part, _ in read])
    for x, y in zip(entries(again), described, strict=True):
        assert x.file == y.file and (x.count, x.start) == (y.count, y.start)
        np.testing.assert_array_equal(x.lengths, y.lengths)
    assert again.left_out.tolist() == [1] * 9


def write_parquet(folder: Path, sizes=(25, 10, 7), **options) -> list[dict]:
    """Files as `datasets` writes them; gives the rows."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    rows, start = [], 0
    for file, count in enumerate(sizes):
        its_rows = [
            {
                "image": {"bytes": picture(i), "path": f"{i}.jpg"},
                "raw": picture(i),
                "caption": f"row {i}",
                "unused": os.urandom(3000),
                "captions": [f"row {i}", "x"],
                "label": i % 2,
            }
            for i in range(start, start + count)
        ]
        table = pyarrow.Table.from_pylist(its_rows).replace_schema_metadata(metadata)
        parquet.write_table(table, folder / f"{file}.parquet", **{"row_group_size": 10, **options})
        rows += its_rows
        start += count
    return rows


def numbered(folder, sizes=(25, 10, 7), group=10) -> list[str]:
    """Names in the order of the examples."""
    places = [(f, i) for f, n in enumerate(sizes) for i in range(n // group * group)]
    places += [(f, i) for f, n in enumerate(sizes) for i in range(n // group * group, n)]
    return [f"{folder}/{f}.parquet:{i}" for f, i in places]


def test_parquet_against_pyarrow(tmp_path):
    rows = write_parquet(tmp_path)
    by_row = {f"row {i}": row for i, row in enumerate(rows)}
    for examples in (
        Parquet(str(tmp_path)).open(),
        pickle.loads(pickle.dumps(Parquet(str(tmp_path)).open())),
    ):
        assert (len(examples), examples.block_size, examples.remote) == (42, 10, True)
        read = [x for block in blocks_of(examples) for x in block]
        assert [x["name"] for x in read] == numbered(tmp_path)
        for x in read:
            (caption,) = x["captions"]
            assert x["image"] == by_row[caption]["raw"] and x.keys() == {
                "image",
                "captions",
                "name",
            }
        assert [examples[i] for i in range(42)] == read
    other = Parquet(str(tmp_path), image="raw", caption="captions", fields=("label",)).open()
    assert other[11] == {
        "image": rows[11]["raw"],
        "captions": ("row 11", "x"),
        "name": f"{tmp_path}/0.parquet:11",
        "label": 1,
    }
    labels = Parquet(str(tmp_path), template="a {label} of {caption}").open()
    assert labels[11]["captions"] == ("a dog of row 11",)


@pytest.mark.parametrize(
    "options", [{"row_group_size": 7}, {"compression": "zstd"}, {"use_dictionary": False}]
)
def test_parquet_of_other_shapes(tmp_path, options):
    rows = write_parquet(tmp_path, **options)
    examples = Parquet(str(tmp_path)).open()
    read = [x for block in blocks_of(examples) for x in block]
    assert [x["name"] for x in read] == numbered(tmp_path, group=options.get("row_group_size", 10))
    assert sorted(x["image"] for x in read) == sorted(row["raw"] for row in rows)


def test_parquet_in_a_store(cloud, tmp_path):
    """A request for the columns of a row group that stand together, and one for a file's footer."""
    write_parquet(tmp_path)
    address = upload(cloud, tmp_path)
    with pytest.raises(ValueError, match="has no manifest"):
        Parquet(address).open()
    for number in (1, 0):
        index(f"{address}/*.parquet", shard=Shard(number, 2))
    before = counts()
    examples = Parquet(address).open()
    assert (counts() - before).requests == 4  # a listing, two parts and a footer
    before = counts()
    read = [x["name"] for x in examples.read_block(0)]
    assert (counts() - before).requests == 1
    read += [x["name"] for block in blocks_of(examples)[1:] for x in block]
    assert read == numbered(address)


def test_parquet_that_is_no_use(tmp_path, cloud):
    write_parquet(tmp_path / "p")
    with pytest.raises(
        ValueError, match="0.parquet has no column 'text'; its columns are image, raw"
    ):
        Parquet(str(tmp_path / "p"), caption="text").open()
    damaged = (tmp_path / "p" / "0.parquet").read_bytes()
    (tmp_path / "p" / "0.parquet").write_bytes(damaged[:9] + bytes(2000) + damaged[2009:])
    examples = Parquet(str(tmp_path / "p")).open()
    block = examples.read_block(0)
    with pytest.raises(ExampleError, match=r"0.parquet:3: its row group 0 is damaged \(.*\)$"):
        block[3]
    assert examples.read_block(2)[0]["captions"]
    (tmp_path / "p" / "1.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="1.parquet is not a whole Parquet file"):
        Parquet(str(tmp_path / "p")).open()
