"""Items of image files and tars: what they are, what is wrong with them, and their batches."""

import hashlib
import io
import json
import os
import signal
import tarfile

import numpy as np
import pytest
from data.block_source import Blocks
from data.faults import ALWAYS, Failing
from data.samples import example, picture, write_tar
from PIL import Image

from siglip2_jax.data import Memory
from siglip2_jax.data.example import SourceError
from siglip2_jax.data.items.find import find_items
from siglip2_jax.data.items.item import Columns, Shard
from siglip2_jax.data.items.reader import ItemReader
from siglip2_jax.data.tools.pack import pack
from siglip2_jax.preprocess.image import ImagePreprocessor

PREPROCESS = ImagePreprocessor(4, None)


def read(shards, preprocess=PREPROCESS, **options):
    options = {"max_num_patches": 30, "batch_size": 4} | options
    with ItemReader(shards, preprocess, **options) as reader:
        return list(reader)


def rows(batches):
    """Items, each with its row of the patches."""
    for batch in batches:
        assert len(batch.items) == len(batch.patches.valid) > 0
        for row, item in enumerate(batch.items):
            patches = batch.patches
            yield item, (patches.pixels[row], patches.yx[row], patches.valid[row])


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def check(item, row, image: bytes, budget=30):
    """An item and its row against the image read by itself."""
    assert item.error is None and item.content == digest(image) and not item.known
    assert (item.width, item.height) == Image.open(io.BytesIO(image)).size
    expected = PREPROCESS(image, budget)
    for array, wanted in zip(row, (expected.pixels, expected.yx, expected.valid), strict=True):
        np.testing.assert_array_equal(array, wanted[0])


def same(batches, others) -> bool:
    """True where two readings are equal to the bit."""
    assert len(batches) == len(others)
    for a, b in zip(batches, others, strict=True):
        assert a[:4] == b[:4]
        np.testing.assert_array_equal(a.patches.pixels, b.patches.pixels)
        np.testing.assert_array_equal(a.patches.yx, b.patches.yx)
        np.testing.assert_array_equal(a.patches.valid, b.patches.valid)
    return True


@pytest.fixture
def folder(tmp_path):
    """Seven images, the fourth and fifth of which are broken."""
    for i in range(7):
        data = picture(i, 40 + i, 28)
        (tmp_path / f"{i}.jpg").write_bytes({3: data[:200], 4: b""}.get(i, data))
    return tmp_path


def test_items_of_files(folder):
    batches = read(find_items([str(folder)]))
    assert [(x.shard, x.first, x.total, len(x.items)) for x in batches] == [
        (0, 0, 7, 4),
        (0, 4, 7, 3),
    ]
    for i, (item, row) in enumerate(rows(batches)):
        path = folder / f"{i}.jpg"
        data = path.read_bytes()
        assert item.id == str(path) and item.caption is None and item.fields == {}
        if i in (3, 4):
            assert item.error.startswith(f"{path}: ") and item.width == item.height == 0
            assert item.content == (digest(data) if data else "")
            assert not any(array.any() for array in row)
        else:
            check(item, row, data)


def test_items_of_a_tar(tmp_path):
    path = tmp_path / "a.tar"
    members = []
    for i in range(9):
        fields = {"caption": f"no {i}", "url": f"http://x/{i}", "n": i} if i % 2 else {"m": [i]}
        members += [(f"{i}.png", picture(i, kind="PNG")), (f"{i}.json", json.dumps(fields))]
    write_tar(path, [(name, x if isinstance(x, bytes) else x.encode()) for name, x in members])
    columns = Columns(fields=("n", "m"))
    with tarfile.open(path) as tar:
        batches = read(find_items([str(path)], columns), columns=columns)
        for i, (item, row) in enumerate(rows(batches)):
            check(item, row, tar.extractfile(f"{i}.png").read())
            assert item.id == f"{path}:{i}"
            assert item.caption == (f"no {i}" if i % 2 else None)
            assert item.fields == ({"n": i, "m": None} if i % 2 else {"n": None, "m": [i]})
    assert i == 8
    by_url = Columns(id="url")
    ids = [x.id for x, _ in rows(read(find_items([str(path)], by_url), columns=by_url))]
    assert ids[:2] == [f"{path}:0", "http://x/1"]


def test_items_of_records_a_table_and_a_folder(tmp_path):
    examples = tuple(map(example, range(7)))
    pack(Memory(examples), tmp_path / "packed", shard_size=4)
    folder = tmp_path / "folder"
    (folder / "images").mkdir(parents=True)
    with open(folder / "captions.jsonl", "w") as file:
        for x in examples:
            (folder / "images" / f"{x['id']}.jpg").write_bytes(x["image"])
            row = {"file": f"{x['id']}.jpg", "captions": x["captions"], "id": x["id"]}
            file.write(json.dumps(row) + "\n")
    table = tmp_path / "t.csv"
    lines = [f"folder/images/{x['id']}.jpg,{x['captions'][0]},{x['id']}\n" for x in examples]
    table.write_text("path,text,id\n" + "".join(lines))
    specs = [str(tmp_path / "packed"), str(folder), str(table)]
    columns = Columns(fields=("id",))
    batches = read(find_items(specs, columns), columns=columns)
    assert [(x.shard, x.first, len(x.items)) for x in batches] == [
        *((0, 0, 4), (1, 0, 3)),
        *((2, 0, 4), (2, 4, 3)),
        *((3, 0, 4), (3, 4, 3)),
    ]
    for i, (item, row) in enumerate(rows(batches)):
        x = examples[i % 7]
        check(item, row, x["image"])
        assert item.caption == x["captions"][0] and str(item.fields["id"]) == str(x["id"])
    images = [str(folder / "images" / f"{x['id']}.jpg") for x in examples]
    assert [x.id for x, _ in rows(batches)] == [f"no {i}" for i in range(7)] + 2 * images


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [3, 8, 50])
def test_what_comes_depends_on_the_shard_and_the_batch_size_alone(tmp_path, threads, batch_size):
    """Ranges of data in blocks, the first of which are cut by the ranges."""
    source = Blocks(61, bad=(5, 30), log=str(tmp_path / "log"))
    shards = [Shard(str(i), source, first, last) for i, (first, last) in enumerate(CUTS)]
    batches = read(shards, batch_size=batch_size, threads=threads, prefetch=3)
    starts = [(i, k) for i, (a, b) in enumerate(CUTS) for k in range(0, b - a, batch_size)]
    assert [(x.shard, x.first) for x in batches] == starts
    assert [x.id for x, _ in rows(batches)] == [f"no {i}" for a, b in CUTS for i in range(a, b)]
    errors = {x.id: x.error for x, _ in rows(batches) if x.error}
    assert errors == {"no 5": "no 5: it is broken.", "no 30": "no 30: it is broken."}
    log = (tmp_path / "log").read_text().splitlines()
    needed = sum(-(-b // 8) - a // 8 for a, b in CUTS)
    # Every block once, whatever the pieces, unless a thread lags behind the others by several.
    assert len(log) == needed if threads == 1 else needed <= len(log) < 2 * needed


CUTS = (0, 20), (20, 33), (33, 61)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_same(folder, tmp_path, workers):
    source = Blocks(40, bad=(7,), log=str(tmp_path / "log"))
    shards = [*find_items([str(folder)]), Shard("b", source, 0, 25), Shard("c", source, 25, 40)]
    shards.append(Shard("d", Memory(tuple(map(example, range(5))))))
    expected = read(shards)
    (tmp_path / "log").unlink()
    assert same(read(shards, workers=workers, prefetch=7), expected)
    readers = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert str(os.getpid()) not in {process for _, process in readers}
    # Block 3 is in two shards. Eight batches of four are ahead: two blocks for each worker.
    assert {block for block, _ in readers} == set("01234") and 6 <= len(readers) <= 8
    assert len({process for _, process in readers}) == workers


@pytest.mark.slow
def test_a_lost_worker_changes_nothing(tmp_path):
    log = str(tmp_path / "log")
    shards = [Shard("a", Blocks(64, bad=(9,), log=log), 0, 40), Shard("b", Blocks(64, log=log))]
    expected = read(shards)
    os.unlink(log)
    batches = []
    with ItemReader(shards, PREPROCESS, max_num_patches=30, batch_size=4, workers=2) as reader:
        for batch in reader:
            batches.append(batch)
            if len(batches) == 3:
                with open(log) as file:
                    os.kill(int(file.readline().split()[1]), signal.SIGKILL)
        assert reader.restarts == 1
    assert same(batches, expected)


def test_known_contents_are_not_decoded(folder, monkeypatch):
    shards = find_items([str(folder)])
    everything = list(rows(read(shards)))
    contents = [item.content for item, _ in everything]
    chosen = [contents[i] for i in (1, 3, 6)]
    known = np.sort(np.array([*chosen, "0" * 32, "f" * 32], "S32"))
    decoded = []
    opened = ImagePreprocessor.open

    def noting(preprocess, source, name, least_size):
        decoded.append(name)
        return opened(preprocess, source, name, least_size)

    monkeypatch.setattr(ImagePreprocessor, "open", noting)
    for i, (item, row) in enumerate(rows(read(shards, known=known))):
        if i in (1, 3, 6):  # the fourth is broken, which nobody sees
            assert item.known and item.error is None and item.content == contents[i]
            assert not any(array.any() for array in row)
        else:
            assert not item.known and item == everything[i][0]
            for array, wanted in zip(row, everything[i][1], strict=True):
                np.testing.assert_array_equal(array, wanted)
    assert len(decoded) == 4
    for workers in (0, 1):
        for digests, count in ((known, 3), (known[:0], 0)):
            items = [x for x, _ in rows(read(shards, known=digests, workers=workers))]
            assert sum(x.known for x in items) == count


def test_sizes_are_those_seen(tmp_path):
    image = Image.open(io.BytesIO(picture(1, 60, 20)))
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "upright.jpg")
    shards = find_items([str(tmp_path)])
    assert [(x.width, x.height) for x, _ in rows(read(shards))] == [(20, 60), (60, 20)]
    as_stored = ImagePreprocessor(4, None, exif=False)
    sizes = [(x.width, x.height) for x, _ in rows(read(shards, as_stored))]
    assert sizes == [(60, 20), (60, 20)]


def test_a_shard_that_is_no_tar_is_one_item(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.jpg", picture(0))])
    (tmp_path / "1.tar").write_bytes(b"not a tar" * 100)
    write_tar(tmp_path / "2.tar", [("a.txt", b"no image")])
    write_tar(tmp_path / "3.tar", [("a.jpg", picture(3))])
    batches = read(find_items([str(tmp_path)]))
    assert [(x.shard, x.total, x.items[0].id) for x in batches] == [
        (0, 1, f"{tmp_path}/0.tar:a"),
        (1, 1, "000001-1"),
        (2, 1, "000002-2"),
        (3, 1, f"{tmp_path}/3.tar:a"),
    ]
    errors = [x.items[0].error for x in batches]
    assert errors[0] is None and errors[3] is None
    assert "1.tar is not an uncompressed tar" in errors[1] and "2.tar: no sample" in errors[2]


def test_what_passes_is_waited_for_and_what_does_not_stops():
    good = Memory(tuple(map(example, range(6)))).open()
    items = list(rows(read([Shard("a", Failing(6, times={3: 2}))])))
    for i, (item, row) in enumerate(items):
        check(item, row, good[i]["image"])
    failing = [Shard("a", Failing(9, times={6: ALWAYS}))]
    with ItemReader(failing, PREPROCESS, batch_size=4, patience=0.2) as reader:
        batches = iter(reader)
        assert len(next(batches).items) == 4
        with pytest.raises(SourceError, match=r"^/mnt/6.jpg cannot be read .*, tried for 0.2 s"):
            next(batches)


def test_a_folder_that_is_gone_stops(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption,n\nlost.jpg,x,1\nmount/0.jpg,y,2\n")
    (tmp_path / "mount").mkdir()
    columns = Columns(id="n", fields=("n",))
    shards = find_items([str(tmp_path / "t.csv")], columns)
    lost = [x for x, _ in rows(read(shards, columns=columns))]
    assert [x.error for x in lost] == [
        f"{tmp_path}/lost.jpg: no such file.",
        f"{tmp_path}/mount/0.jpg: no such file.",
    ]
    assert [(x.id, x.caption, x.fields, x.content) for x in lost] == [
        ("1", "x", {"n": "1"}, ""),
        ("2", "y", {"n": "2"}, ""),
    ]
    (tmp_path / "mount").rmdir()
    with pytest.raises(SourceError, match="there is no folder .*mount; mount it, or put it back"):
        read(shards)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"must be at least 1 .*, got 0, 2, 2 and 0$"):
        ItemReader([], PREPROCESS, batch_size=0)
    with pytest.raises(ValueError, match="scaled_decode smooths images"):
        ItemReader([], ImagePreprocessor(16, 224), scaled_decode=True)
    assert read([]) == []


def test_a_scaled_decode(tmp_path):
    """Half the sides where that is enough; sizes are those of the file, upright."""
    exif = Image.Exif()
    exif[274] = 6
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    image = Image.fromarray(noise).resize((400, 240), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "b.jpg", quality=95, exif=exif)
    image.save(tmp_path / "c.png")
    shards = find_items([str(tmp_path)])
    options = {"max_num_patches": 256}
    full, scaled = (list(rows(read(shards, scaled_decode=x, **options))) for x in (False, True))
    sizes = [(400, 240), (240, 400), (400, 240)]
    for i, ((item, row), (other, other_row)) in enumerate(zip(full, scaled, strict=True)):
        assert item == other and (item.width, item.height) == sizes[i]
        difference = 127.5 * np.abs(row[0] - other_row[0])[row[2]].mean()
        assert (0 < difference < 2.3) if i < 2 else difference == 0
