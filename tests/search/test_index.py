"""Search of a database: what is found, in which order, and what is refused."""

import os

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
from siglip2_jax.data.sources import Memory  # noqa: E402
from siglip2_jax.demo import shipped_examples  # noqa: E402
from siglip2_jax.evals.retrieval import Retrieval, embed_captions, retrieval_metrics  # noqa: E402
from siglip2_jax.preprocess.decode import ImageError  # noqa: E402
from siglip2_jax.search import Index  # noqa: E402
from siglip2_jax.search import index as index_module  # noqa: E402
from siglip2_jax.search import writer as writer_module  # noqa: E402
from siglip2_jax.search.place import Place  # noqa: E402
from siglip2_jax.search.writer import writing  # noqa: E402

pytestmark = pytest.mark.search


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images with captions in a table, and their database."""
    root = tmp_path_factory.mktemp("search")
    write_images(root / "a", 12)
    lines = ["image,caption,place"]
    lines += [f"a/{i:03}.png,caption {i},{'north' if i % 3 else 'south'}" for i in range(12)]
    (root / "all.csv").write_text("\n".join(lines))
    index_folder(root / "db", root / "all.csv", columns=Columns(fields=("place",)))
    return root


@pytest.fixture
def index(folder):
    return Index.open(folder / "db", MODEL)


def stored(index) -> dict[str, np.ndarray]:
    """The embedding of each id, read by LanceDB alone."""
    rows = index.database.table.to_arrow().to_pylist()
    return {row["id"]: np.array(row["embedding"], np.float64) for row in rows}


def expected(index, query, ids=None):
    """Ids with scores, best first, by plain sorting."""
    scores = {
        id_: float((row * query.astype(np.float64)).sum()) for id_, row in stored(index).items()
    }
    chosen = scores if ids is None else {id_: scores[id_] for id_ in ids}
    return sorted(chosen.items(), key=lambda pair: (-pair[1], pair[0]))


def pairs(hits):
    return [(hit.id, hit.score) for hit in hits]


def test_words_and_images_at_once(index, folder):
    image = folder / "a" / "003.png"
    results = index.search(["a red boat", "a dog"], images=image, k=5)
    assert [name for name, _ in results] == ["a red boat", "a dog", str(image)]
    vectors = [*MODEL.embed_texts(["a red boat", "a dog"])]
    vectors += [*MODEL.embed_images([image], max_num_patches=16)]
    for vector, (_, hits) in zip(vectors, results, strict=True):
        order = expected(index, vector)[:5]
        assert [hit.id for hit in hits] == [id_ for id_, _ in order]
        assert [hit.score for hit in hits] == pytest.approx([x for _, x in order], abs=1e-6)
    best = results[2][1][0]
    assert best.id == str(image) and best.score == pytest.approx(1, abs=1e-3)
    assert best.caption == "caption 3" and best.fields == {"place": "south"}
    assert (best.width, best.height) == MODEL.preprocess.open(image).size
    assert len(index.search("a dog")[0][1]) == 10 and len(index.search("a dog", k=99)[0][1]) == 12
    array = np.zeros((9, 9, 3), np.uint8)
    assert [name for name, _ in index.search(images=array)] == ["image 1"]


def test_thresholds(index):
    (query,) = MODEL.embed_texts(["a dog"])
    order = expected(index, query)
    for threshold in (order[3][1], order[0][1] + 1e-9, -1.0):
        ((_, hits),) = index.search("a dog", threshold=threshold)
        assert pairs(hits) == [pair for pair in order if pair[1] >= threshold]
    ((_, hits),) = index.search("a dog", threshold=-1.0, k=2)
    assert pairs(hits) == order[:2]


def test_what_is_taken_away(index):
    """The query's vector less the mean of theirs, of unit length."""
    dog, people, cats = MODEL.embed_texts(["a dog", "people", "two cats"]).astype(np.float64)
    query = dog - (people + cats) / 2
    query /= np.linalg.norm(query)
    ((name, hits),) = index.search("a dog", minus=["people", "two cats"], k=12)
    assert name == "a dog − people − two cats"
    wanted = expected(index, query)
    assert [hit.id for hit in hits] == [id_ for id_, _ in wanted]
    np.testing.assert_allclose([hit.score for hit in hits], [x for _, x in wanted], atol=1e-5)
    with pytest.raises(ValueError, match="leaves nothing of a query"):
        index.search("a dog", minus="a dog")


def test_conditions(index, folder):
    (query,) = MODEL.embed_texts(["a dog"])
    south = [str(folder / "a" / f"{i:03}.png") for i in (0, 3, 6, 9)]
    ((_, hits),) = index.search("a dog", where="place = 'south'", k=3)
    assert pairs(hits) == expected(index, query, south)[:3]
    ((_, hits),) = index.search(
        "a dog", where="caption LIKE '%10' OR place = 'south' AND width < 0"
    )
    assert [hit.caption for hit in hits] == ["caption 10"]
    assert index.search("a dog", where="width > 4000")[0][1] == []
    for condition in ("nothing = 3", "width >", "width = 'x' ; drop"):
        with pytest.raises(ValueError) as refused:
            index.search("a dog", where=condition)
        sentence = str(refused.value)
        assert repr(condition) in sentence and "width, height, caption, place" in sentence


def test_neighbours(index, folder):
    id_ = str(folder / "a" / "005.png")
    ((name, hits),) = index.neighbours(id_, k=4)
    query = stored(index)[id_]
    assert name == id_ and id_ not in [hit.id for hit in hits]
    assert pairs(hits) == [pair for pair in expected(index, query) if pair[0] != id_][:4]
    with pytest.raises(ValueError, match='holds no "it\'s"'):
        index.neighbours("it's")


def test_duplicates(tmp_path):
    rows = make_random(tmp_path / "db", 400)
    groups = Index.open(tmp_path / "db").duplicates(0.9)
    rows = rows.astype(np.float16).astype(np.float64)
    for group in groups:
        places = [400 - int(hit.id) for hit in group]
        assert [hit.id for hit in group] == sorted(hit.id for hit in group)
        np.testing.assert_allclose([hit.score for hit in group], rows[places] @ rows[places[0]])
    near = np.argwhere(np.triu(rows @ rows.T, 1) >= 0.9)
    assert {x for group in groups for x in (400 - int(hit.id) for hit in group)} == set(
        near.ravel()
    )
    assert len(near) > 5 and Index.open(tmp_path / "db").duplicates(0.99999) == []


def test_ties_are_in_the_order_of_ids(tmp_path):
    """Different contents with one embedding, added in another order than that of their ids."""
    names = ["b", "é", "a", "Z", "aa", "ﬀ", "𝒳", "_"]
    rows = np.tile(clustered(1), (len(names), 1))
    with writing(Place(tmp_path / "db"), SETTINGS) as writer:
        for name, row in zip(names, rows, strict=True):
            add_random(writer, [name], row[None])
            writer.commit()
        writer.finish()
    (hits,) = Index.open(tmp_path / "db").nearest(rows[:1], k=5)
    assert [hit.id for hit in hits] == sorted(names)[:5] and len({hit.score for hit in hits}) == 1


def test_queries_that_cannot_be(index, folder, tmp_path):
    for texts in ([], [" "], ["a dog", "\n"]):
        with pytest.raises(ValueError, match="nothing to search for|is empty"):
            index.search(texts)
    with pytest.raises(ImageError, match="no such file"):
        index.search(images=tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="has no approximate index; make one with"):
        index.search("a dog", approximate=True)
    with pytest.raises(ValueError, match=r"cannot be loaded from where it was .*--model SOURCE"):
        Index.open(folder / "db").search("a dog")


def test_the_approximate_index_finds_what_exact_search_does(tmp_path, monkeypatch):
    rows = make_random(tmp_path / "db", 3000, 32, index=True)
    index = Index.open(tmp_path / "db")
    partitions = index.database.partitions
    assert partitions is not None and 0.95 <= partitions.recall <= 1 and partitions.probes < 10
    assert sorted(partitions.order.tolist()) == list(range(3000))
    queries = rows[:20] + np.float32(0.1) * clustered(20, 32, seed=5)
    exact = index.nearest(queries)
    assert not index.is_approximate() and exact == index.nearest(queries, approximate=False)
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 2999)
    assert index.is_approximate()
    shared = total = 0
    for some, all_ in zip(index.nearest(queries), exact, strict=True):
        scores = {hit.id: hit.score for hit in all_}
        assert all(hit.score == scores[hit.id] for hit in some if hit.id in scores)
        shared, total = shared + sum(hit.id in scores for hit in some), total + len(all_)
    assert shared / total >= 0.9
    (hits,) = index.nearest(rows[:1], k=3, where="id < '0000500'", approximate=True)
    assert len(hits) == 3 and all(hit.id < "0000500" for hit in hits)
    for hits in index.nearest(queries, threshold=0.5):
        assert all(hit.score >= 0.5 for hit in hits)
    make_more(tmp_path / "db")
    assert Index.open(tmp_path / "db").database.partitions is None  # of another version


def make_more(uri):
    """Adds a row without finishing, as a process that is killed."""
    with writing(Place(uri), SETTINGS | {"width": 32}) as writer:
        add_random(writer, ["new"], clustered(1, 32, seed=9))
        writer.commit()


def test_an_index_of_low_recall_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "LEAST_RECALL", 1.01)
    with pytest.raises(ValueError, match=r"finds \d+\.\d% of the 10 nearest images, expected"):
        make_random(tmp_path / "db", 1500, index=True)
    index = Index.open(tmp_path / "db")
    assert index.database.partitions is None and not (tmp_path / "db" / "partitions.npz").exists()
    assert len(index.nearest(clustered(1))[0]) == 10
    with pytest.raises(ValueError, match="at least 1000 images, and there are 30"):
        make_random(tmp_path / "few", 30, index=True)


def test_recall_is_that_of_the_evaluation(tmp_path):
    """Shipped images with their captions; no two scores tie."""
    examples = shipped_examples()
    (tmp_path / "a").mkdir()
    for i, example in enumerate(examples):
        (tmp_path / "a" / f"{i:03}.jpg").write_bytes(example.image.read_bytes())
    index_folder(tmp_path / "db", tmp_path / "a")
    index = Index.open(tmp_path / "db", MODEL)
    captions = [caption for example in examples for caption in example.captions]
    owner = np.array([i for i, example in enumerate(examples) for _ in example.captions])
    source = Memory(
        tuple(
            {"image": x.image.read_bytes(), "captions": list(x.captions), "name": str(i)}
            for i, x in enumerate(examples)
        )
    )
    official = Retrieval(source=source, max_num_patches=16)(MODEL)
    results = index.search(captions, k=10)
    for k in (1, 5, 10):
        places = [[int(os.path.basename(hit.id)[:3]) for hit in hits[:k]] for _, hits in results]
        recall = np.mean([i in some for i, some in zip(owner, places, strict=True)])
        assert recall == official[f"text_to_image@{k}"]
    rows = np.stack([row for _, row in sorted(stored(index).items())]).astype(np.float32)
    assert retrieval_metrics(rows, embed_captions(MODEL, captions), owner) == official


@pytest.mark.shared
def test_search_of_flickr8k_equals_brute_force(tmp_path, shared):
    """All 1,000 images of the validation split, and all their captions, ties included."""
    import json

    lines = (shared / "data/flickr8k_1k/captions.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "val"]
    paths = [shared / "data/flickr8k_1k/images" / row["file"] for row in rows]
    index_folder(tmp_path / "db", *paths)
    index = Index.open(tmp_path / "db", MODEL)
    captions = [caption for row in rows for caption in row["captions"]][:400]
    captions += captions[:1]
    by_id = stored(index)
    ids = np.array(sorted(by_id))
    column = np.stack([by_id[id_] for id_ in ids])
    for query, (_, hits) in zip(
        MODEL.embed_texts(captions), index.search(captions, k=20), strict=True
    ):
        scores = (column * query.astype(np.float64)).sum(axis=1)
        order = np.lexsort((ids, -scores))[:20]
        assert pairs(hits) == list(zip(ids[order].tolist(), scores[order].tolist(), strict=True))
