"""Batches: the same whatever the hosts, workers and interruptions; bad examples; mixtures."""

import errno
import multiprocessing
import re
import threading
from contextlib import closing
from dataclasses import replace

import jax
import numpy as np
import pytest
from data.faults import ALWAYS, Failing, FailingBlocks
from data.samples import Stamp, example, picture, preparation, write_tar

from siglip2_jax.data import patience
from siglip2_jax.data.example import SourceError
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.data.pipeline import Pipeline
from siglip2_jax.data.sources import Folder, Memory, Mixture
from siglip2_jax.data.stores.store import Store
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.weighted import Weighted

LENGTHS = Lengths((12, 30), batch_scale=((30, 0.5),))
EXAMPLES = tuple(example(i) for i in range(50))
READING = LENGTHS.reading(4, 10, 8)


def make(*broken: int, crops=False, **options) -> Pipeline:
    """A pipeline of 50 examples, some without an image or a caption."""
    examples = list(EXAMPLES)
    for i in broken:
        change = {"image": EXAMPLES[i]["image"][:200]} if i % 2 else {"captions": ()}
        examples[i] = {**examples[i], **change}
    return Pipeline(Memory(tuple(examples)), preparation(Stamp(crops)), seed=9, **options)


def read(pipeline: Pipeline, reading=READING) -> list:
    with closing(pipeline.batches(reading)) as batches:
        return list(batches)


def assert_same(batches: list, expected: list) -> None:
    """Exactly the same arrays, steps and positions."""
    assert len(batches) == len(expected)
    for found, wanted in zip(batches, expected, strict=True):
        assert (found.step, found.budget, found.position) == (
            wanted.step,
            wanted.budget,
            wanted.position,
        )
        assert jax.tree.structure(found.batch) == jax.tree.structure(wanted.batch)
        for array, its in zip(*map(jax.tree.leaves, (found.batch, wanted.batch)), strict=True):
            np.testing.assert_array_equal(array, its)


def joined(hosts: list[list]) -> list:
    """The global batches of what each host read."""
    return [
        replace(
            parts[0],
            batch=jax.tree.map(lambda *arrays: np.concatenate(arrays), *[p.batch for p in parts]),
            bad=sum(part.bad for part in parts),
        )
        for parts in zip(*hosts, strict=True)
    ]


def test_steps_are_as_planned():
    batches = read(make())
    assert [(loaded.step, loaded.budget) for loaded in batches] == [
        (step, budget) for step, budget, *_ in READING
    ]
    assert [loaded.position for loaded in batches] == [
        position + size for *_, size, position in READING
    ]
    for loaded, (*_, size, _) in zip(batches, READING, strict=True):
        assert loaded.batch.image.pixels.shape == (size, loaded.budget, 48)
        assert loaded.batch.text.shape == (size, 12)
        assert loaded.bad == 0 and loaded.problems == ()
        np.testing.assert_array_equal(loaded.batch.fields["draw"][:, 1], loaded.budget)


def test_each_epoch_has_every_example_once_in_another_order():
    ids = np.concatenate(
        [b.batch.fields["id"] for b in read(make(), Lengths((6,)).reading(0, 20, 8))]
    )
    epochs = ids[: len(ids) // 50 * 50].reshape(-1, 50)
    assert len(epochs) >= 3
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()} | {tuple(range(50))}) == len(epochs) + 1
    in_order = read(make(shuffle=False))
    ids = np.concatenate([loaded.batch.fields["id"] for loaded in in_order])
    np.testing.assert_array_equal(ids, np.arange(len(ids)) % 50)


def test_randomness_is_that_of_the_global_index():
    pipeline = make(shuffle=False)
    (first, *_) = read(pipeline)
    for g in range(len(first.batch.text)):
        item = pipeline.prepare(EXAMPLES[g], np.random.default_rng((9, g)), first.budget)
        np.testing.assert_array_equal(first.batch.text[g], item["text"])
        np.testing.assert_array_equal(first.batch.fields["draw"][g], item["draw"])


@pytest.mark.parametrize(("count", "broken"), [(2, (3, 4)), (4, ())])
def test_same_global_batches_on_any_number_of_hosts(count, broken):
    common = {"max_bad_share": 1.0, "crops": True}
    whole = read(make(*broken, **common))
    options = {**common, "process_count": count, "chunk": 3, "threads": 3, "prefetch": 1}
    hosts = [read(make(*broken, process_index=h, **options)) for h in range(count)]
    assert_same(joined(hosts), whole)
    assert [b.bad for b in joined(hosts)] == [b.bad for b in whole]
    assert sum(b.bad for b in whole) > 0 or not broken


def test_resuming_is_as_if_never_stopped():
    whole = read(make(5))
    for stop in (1, 5, 9):
        reading = LENGTHS.reading(4, 10, 8, step=stop, position=whole[stop - 1].position)
        assert_same(read(make(5, process_count=1, chunk=2), reading), whole[stop:])


def test_a_batch_size_may_change_on_the_way():
    whole = read(make(), LENGTHS.reading(4, 8, 8))
    start = whole[3]
    rest = read(make(), LENGTHS.reading(4, 8, 4, step=4, position=start.position))
    ids = [np.concatenate([b.batch.fields["id"] for b in part]) for part in (whole[4:], rest)]
    np.testing.assert_array_equal(ids[1], ids[0][: len(ids[1])])


def test_bad_examples_are_replaced_and_told():
    clean, mended = read(make()), read(make(10, 11))
    bad, changed = 0, 0
    for before, after in zip(clean, mended, strict=True):
        same = before.batch.fields["id"] == after.batch.fields["id"]
        assert (np.isin(before.batch.fields["id"], [10, 11]) == ~same).all()
        np.testing.assert_array_equal(before.batch.text[same], after.batch.text[same])
        assert not np.isin(after.batch.fields["id"], [10, 11]).any()
        bad, changed = bad + after.bad, changed + (~same).sum()
        for problem in after.problems:
            assert problem.startswith(("no 10: it has no caption", "no 11: the JPEG data is"))
    assert bad >= changed > 0


def test_too_many_bad_examples_stop():
    pipeline = make(*range(0, 50, 5))
    batches = pipeline.batches(Lengths((6,)).reading(0, 100, 8))
    with pytest.raises(ValueError, match=r"\d+ of 2\d\d examples \(\d\d\.\d%\) could not") as error:
        for loaded in batches:
            assert loaded.position < 200
    assert "more than max_bad_share=5.0%; the first: no" in str(error.value)
    assert (
        len(read(make(*range(0, 50, 5), max_bad_share=0.4), Lengths((6,)).reading(0, 30, 8))) == 30
    )
    with pytest.raises(ValueError, match=r"20 examples in a row could not be used; the first: no"):
        read(make(*range(50)))


def test_a_missing_file_stops_with_its_name(tmp_path):
    rows = [f'{{"file": "{i}.jpg", "caption": "text {i}", "id": {i}}}' for i in range(20)]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    (tmp_path / "images").mkdir()
    for i in range(19):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(EXAMPLES[i]["image"])
    pipeline = Pipeline(Folder(str(tmp_path)), preparation(Stamp()), 0, max_bad_share=1.0)
    with pytest.raises(SourceError) as error:
        read(pipeline, Lengths((12,)).reading(0, 5, 4))
    path, captions = tmp_path / "images" / "19.jpg", tmp_path / "captions.jsonl"
    assert str(error.value) == (
        f"{path}: there is no such file; put it back, or remove its row from {captions}"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_what_passes_is_tried_again_and_changes_nothing(monkeypatch, workers):
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)
    failing = Pipeline(Failing(times={3: 2, 4: 1}), preparation(Stamp()), 9, workers=workers)
    assert_same(read(failing), read(make()))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EIO, r"(Input/output error), tried for 0 s (Data.patience); run the same command "),
        (errno.ENOENT, "(No such file or directory); put it back and run"),
        (errno.EACCES, "(Permission denied); let the user of this process read it"),
        (errno.EMFILE, "(Too many open files); raise the limit of open files (ulimit -n)"),
        (errno.ENOSPC, "(No space left on device); run the same command again once it can"),
    ],
)
def test_errors_of_the_machine_stop_and_replace_nothing(number, message):
    source = Failing(number=number, times={3: ALWAYS})
    pipeline = Pipeline(source, preparation(Stamp()), 9, max_bad_share=1.0, patience=0.0)
    with pytest.raises(SourceError, match=re.escape(f"/mnt/3.jpg cannot be read {message}")):
        read(pipeline)


def test_a_block_that_cannot_be_read_is_tried_again_or_stops(monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)
    options = {"prepare": preparation(Stamp()), "seed": 9}
    whole = read(Pipeline(FailingBlocks(), **options))
    assert_same(read(Pipeline(FailingBlocks(times={2: 2, 3: 1}), **options)), whole)
    source = FailingBlocks(number=errno.EACCES, times={2: ALWAYS})
    with pytest.raises(SourceError, match=r"^/mnt/2.jpg cannot be read \(Permission denied\)"):
        read(Pipeline(source, **options, max_bad_share=1.0))


def test_errors_of_the_machine_come_through_a_worker():
    source = Failing(number=errno.EACCES, times={3: ALWAYS})
    pipeline = Pipeline(source, preparation(Stamp()), 9, workers=1)
    with pytest.raises(SourceError, match=r"^/mnt/3.jpg cannot be read \(Permission denied\)"):
        read(pipeline)


def test_broken_sample_is_named_by_its_tar_and_key(tmp_path):
    samples = [((f"{i}.jpg", picture(i)), (f"{i}.txt", b"a text")) for i in range(9)]
    samples.append((("x.jpg", picture(9)), ("x.json", b'{"caption": ')))
    write_tar(tmp_path / "a.tar", [member for sample in samples for member in sample])
    pipeline = Pipeline(Tars(str(tmp_path)), preparation(), 0)
    batches = read(pipeline, Lengths((12,)).reading(0, 5, 4))
    problems = {problem for loaded in batches for problem in loaded.problems}
    (problem,) = problems
    assert problem.startswith(f"{tmp_path}/a.tar:x: its .json is not JSON (")


@pytest.mark.slow
def test_mixtures_keep_their_weights():
    def part(start: int, count: int) -> Memory:
        return Memory(tuple({**EXAMPLES[0], "id": start + i} for i in range(count)))

    inner = Mixture(((part(1000, 200), 1.0), (part(2000, 300), 1.0)))
    source = Mixture(((part(0, 250), 0.7), (inner, 0.3)))
    pipeline = Pipeline(source, preparation(Stamp(), image_size=4), 1)
    reading = Lengths((4,)).reading(0, 20, 20)
    ids = np.concatenate([b.batch.fields["id"] for b in read(pipeline, reading)])
    shares = [np.mean(ids // 1000 == i) for i in range(3)]
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.01)
    assert len(set(ids[ids >= 1000])) == (ids >= 1000).sum()  # less than an epoch of these
    few = Lengths((4,)).reading(0, 5, 20)
    hosts = [
        read(replace(pipeline, process_index=h, process_count=2, chunk=7), few) for h in range(2)
    ]
    assert_same(joined(hosts), read(pipeline, few))


@pytest.mark.slow
def test_worker_processes_give_the_same():
    crops = {"crops": True}
    expected = read(make(3, **crops))
    assert_same(read(make(3, workers=2, threads=1, chunk=3, **crops)), expected)
    assert "siglip2_jax data" not in {x.name for x in multiprocessing.active_children()}
    with pytest.raises(ValueError, match="20 examples in a row could not be used; the first: no"):
        read(make(*range(50), workers=1))


def test_stopping_early_leaves_no_threads():
    before = set(threading.enumerate())
    batches = make().batches(READING)
    # Nothing is started before it is asked for; what other tests left may end meanwhile.
    assert set(threading.enumerate()) <= before
    next(batches)
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_placed_when_they_are_needed(workers):
    """Arrays that `place` gets are written again later; those that it makes of them are given.

    None is placed sooner: each would take memory of the devices.
    """
    expected, placed = read(make(3)), []

    def place(batch):
        placed.append(batch)
        return jax.tree.map(lambda x: np.array(x).astype(np.float64), batch)

    pipeline = make(3, workers=workers, prefetch=2)
    with closing(pipeline.batches(READING, place)) as batches:
        for step, (found, wanted) in enumerate(zip(batches, expected, strict=True)):
            assert len(placed) == step + 1
            for array, its in zip(*map(jax.tree.leaves, (found.batch, wanted.batch)), strict=True):
                assert array.dtype == np.float64
                np.testing.assert_array_equal(array, its)
    places = {batch.text.__array_interface__["data"][0] for batch in placed}
    assert 1 < len(places) <= 3 * len(LENGTHS.budgets)  # in three buffers


@pytest.mark.slow
def test_steps_before_an_error_are_given():
    """Though they were read ahead of it."""
    pipeline = make(*range(0, 50, 5))
    reading = Lengths((6,)).reading(0, 100, 8)
    seen = []
    with pytest.raises(ValueError, match="could not be used"):
        seen.extend(loaded.step for loaded in pipeline.batches(reading))
    whole = read(make(*range(0, 50, 5), max_bad_share=1.0), reading)
    read_so_far = np.cumsum([8 + loaded.bad for loaded in whole])
    assert seen == list(range(np.searchsorted(read_so_far, 200)))


def test_memory_of_the_buffers():
    """Room for the largest step's host batch, once for each batch ahead and one that is placed."""
    row = 30 * (48 * 4 + 2 * 4 + 1) + 12 * 4 + 8 + 2 * 8  # patches, text, id and draw
    assert 3 * 4 * row <= make().memory(READING) <= 3 * (4 * row + 6 * 128)
    assert make(prefetch=5).memory(READING) == 2 * make().memory(READING)
    assert make(process_count=2).memory(READING) < 0.6 * make().memory(READING)


def test_mistakes_are_told_at_once():
    with pytest.raises(ValueError, match="a batch of 8 cannot be divided among 3 hosts"):
        make(process_count=3).batches(Lengths((12,)).reading(0, 2, 8))
    with pytest.raises(ValueError, match="no such file"):
        Pipeline(Folder("absent"), preparation(), 0).batches(READING)
    for options in ({"process_index": 2, "process_count": 2}, {"threads": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match="must be"):
            make(**options)
    with pytest.raises(ValueError, match="seed must be"):
        replace(make(), seed=2**32)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_store_is_as_patient_as_the_run(tmp_path, weighted):
    source = Failing()
    source.store = Store()
    assert source.store.client.patience == 300
    np.save(tmp_path / "weights.npy", np.ones(50))
    taken = Weighted(source, str(tmp_path / "weights.npy")) if weighted else source
    assert Pipeline(taken, preparation(Stamp()), 9, patience=7.5).sizes[0][1] == 50
    assert source.store.client.patience == 7.5
