"""Captions that a decoder writes, measured."""

import json

import pytest
from benchmarks.decoder.plain_cider import plain_cider
from inference.captioners import PHOTOS, saying, writes_caption
from inference.samples import png

from siglip2_jax.benchmarks.decoder.captions import CaptionQuality
from siglip2_jax.benchmarks.decoder.measured import MeasuredCaptioner
from siglip2_jax.data.sources import Folder, Memory

SAID = "a dog by a tree"
BUDGET = {"max_num_patches": 16}


def examples(*captions):
    return [
        {"image": png(photo), "captions": tuple(own), "name": f"photo {i}"}
        for i, (photo, own) in enumerate(zip(PHOTOS, captions, strict=False))
    ]


@pytest.mark.slow
def test_written_captions_against_those_of_the_set():
    rows = examples(["A dog by a tree."], [], ["two cats", "a dog"], ["a dog by a tall tree"])
    rows.append({"image": b"\xff\xd8\xff cut", "captions": ("a bus",), "name": "broken"})
    evaluator = CaptionQuality(source=Memory(tuple(rows)), **BUDGET)
    seen = []
    with pytest.warns(UserWarning, match="broken: .*nothing is written about it") as caught:
        found = evaluator(writes_caption())
    assert len(caught) == 1
    measured = MeasuredCaptioner(writes_caption(), batch_size=2)
    measured.report_to(lambda *progress: seen.append(progress), 5)
    assert evaluator(measured) == found and seen == [(i, 5) for i in range(1, 5)]
    assert measured.images == 4 and len(measured.failed) == 1
    references = [[SAID], ["two cats", "a dog"], ["a dog by a tall tree"], ["a bus"]]
    expected = plain_cider([SAID, SAID, SAID, ""], references)
    # Counted by hand; the references nearest in length have 5 + 2 + 6 + 2 words, as many as said.
    assert found == {
        "cider_d": pytest.approx(expected.mean(), rel=1e-12),
        "bleu_4": pytest.approx((12 / 15 * 8 / 12 * 5 / 9 * 3 / 6) ** 0.25, rel=1e-12),
        "empty": 1.0,
    }


@pytest.mark.slow
def test_nothing_is_written():
    rows = examples(["a dog"], ["a cat"], ["a bus"])
    evaluator = CaptionQuality(source=Memory(tuple(rows)), count=2, **BUDGET)
    silent = saying(writes_caption(), [*writes_caption().tokenizer.encode("cap:"), 1])
    assert evaluator(silent) == {"cider_d": 0, "bleu_4": 0, "empty": 2}


def test_too_few_images():
    one = CaptionQuality(source=Memory(tuple(examples(["a dog"], [], []))), **BUDGET)
    with pytest.raises(ValueError, match="'captions': 1 of its examples have a caption to compare"):
        one(writes_caption())


@pytest.mark.slow
def test_real_captions(shared):
    folder = shared / "data" / "coco_mini"
    source = Folder(str(folder), captions="annotations.jsonl", where=(("split", "val"),))
    found = CaptionQuality(source=source, count=30, **BUDGET)(writes_caption())
    lines = (folder / "annotations.jsonl").read_text().splitlines()
    rows = [row["captions"] for row in map(json.loads, lines) if row["split"] == "val"][:30]
    assert found["empty"] == 0
    plain = [[text.lower().replace(".", "").replace(",", "") for text in own] for own in rows]
    # Other punctuation and repeated captions are few.
    assert found["cider_d"] == pytest.approx(plain_cider([SAID] * len(rows), plain).mean(), rel=0.1)
    assert 0 < found["cider_d"] < 0.3 and 0 <= found["bleu_4"] < 0.2
