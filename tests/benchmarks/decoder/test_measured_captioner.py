"""Answers that evaluators of decoders get in `siglip2 eval`, shared and saved in parts."""

import json
import warnings

import jax
import pytest
from inference.captioners import embedder, looks, saying, training_ids, writes_caption
from inference.samples import noise
from PIL import Image

from siglip2_jax.benchmarks.decoder import measured as decoders
from siglip2_jax.benchmarks.decoder.measured import MeasuredCaptioner
from siglip2_jax.benchmarks.suite import Entry, Suite, evaluate
from siglip2_jax.inference import GenerationConfig, Query

HOW = (GenerationConfig("sample"), 16)


def groups(count: int = 15):
    """One to three queries about each photo, every seventh of which is none."""
    found, place = [], 0
    for i in range(count):
        photo = noise(8 + i % 5, 12) if i % 7 != 3 else b"no photo"
        phrases = (None, "a dog", "cat")[: 1 + i % 3]
        found.append([(place + k, Query(photo, phrase=x)) for k, x in enumerate(phrases)])
        place += len(phrases)
    return found


def plain(asked) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return looks().answer(asked, *HOW)


def texts(answers) -> list:
    return [own and [(answer.text, answer.box) for answer in own] for own in answers]


@pytest.mark.slow
def test_answers_are_the_captioners():
    asked = groups()
    found, shown = MeasuredCaptioner(looks(), batch_size=32), []
    found.report_to(lambda *x: shown.append(x), 99)
    assert found.answer(asked, *HOW) == plain(asked)
    assert len(found.failed) == 2 and all("not an image" in x for x in found.failed)
    assert found.images == found.embedded == 15 and shown[-1] == (15, 15)
    assert 0 <= found.data_wait <= found.seconds and found.config is looks().config
    assert found.answer(iter(asked[:3]), *HOW) == plain(asked[:3])
    assert found.images == 18 and shown[-1] == (18, 99)
    assert found.answer([], *HOW) == []


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "BATCHES_PER_PART", 2)
    asked = groups()
    whole = MeasuredCaptioner(looks(), batch_size=2).answer(asked, *HOW)

    def stopped():
        yield from asked[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MeasuredCaptioner(looks(), tmp_path, batch_size=2).answer(stopped(), *HOW)
    saved = len(list(tmp_path.iterdir()))
    assert saved and not list(tmp_path.glob("*.tmp"))
    rest = MeasuredCaptioner(looks(), tmp_path, batch_size=2)
    assert rest.answer(asked, *HOW) == whole
    assert rest.embedded == 15 - 4 * saved and rest.images == 15 and len(rest.failed) == 2


@pytest.mark.parametrize("total", [1, 5, 12, 15])
def test_three_processes_find_what_one_finds(total, monkeypatch):
    """To the last digit. One after the other, then each with what all would send."""
    asked = groups(total)
    alone = MeasuredCaptioner(looks(), batch_size=2)
    expected, sent = alone.answer(asked, *HOW), []
    monkeypatch.setattr(jax, "process_count", lambda: 3)

    class Sent(Exception):
        pass

    def send(own):
        sent.append(own)
        raise Sent

    monkeypatch.setattr(decoders, "gather_texts", send)
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with pytest.raises(Sent):
            MeasuredCaptioner(looks(), batch_size=2).answer(asked, *HOW)
    assert sum(map(len, sent)) == total and max(map(len, sent)) <= -(-total // 6) * 2
    monkeypatch.setattr(decoders, "gather_texts", lambda own: sum(sent, []))
    found = MeasuredCaptioner(looks(), batch_size=2)
    assert found.answer(asked, *HOW) == expected
    assert found.failed == alone.failed and found.images == total


@pytest.fixture
def data(tmp_path):
    """Photos with captions and with expressions, one of them no photo."""
    rows, expressions = [], []
    (tmp_path / "images").mkdir()
    for i in range(6):
        file = f"{i}.png"
        Image.fromarray(noise(20, 40 + i)).save(tmp_path / "images" / file)
        rows.append({"file": file, "captions": ["a dog by a tree", f"photo {i}"]})
        expressions += [{"file": file, "expression": "a red dog", "box": [0.1, 0.2, 0.5, 0.75]}] * 2
    (tmp_path / "images" / "4.png").write_bytes(b"no photo")
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "expressions.jsonl").write_text("\n".join(map(json.dumps, expressions)))
    return tmp_path


def test_tasks_for_decoders(data, tmp_path):
    """Photos that do not decode are listed and wrong, and another decoder is another model."""

    def measure(task, decoder):
        plan, out = Suite((Entry(task, (16,)),)), tmp_path / "out"
        (found,) = evaluate(embedder(), plan, data, out, pretrained="x", decoder=lambda: decoder)
        assert len(found.failed) == 1 and "4.png" in found.failed[0]
        assert found.images == 6 and found.images_per_s > 0 and not (out / "parts").exists()
        return found

    locates = measure("expressions", saying(writes_caption(), training_ids("refer")))
    assert locates.metrics == {
        "acc@0.5": pytest.approx(10 / 12),
        "mean_iou": pytest.approx(10 / 12),
        "unparsed": 0,
        "unreadable": 2,
    }
    writes = measure("write_captions", writes_caption())
    assert writes.metrics["empty"] == 1 and writes.metrics["bleu_4"] > 0.5
    assert measure("write_captions", writes_caption()) == writes  # as it was saved
    assert measure("write_captions", looks()).metrics["bleu_4"] < writes.metrics["bleu_4"]
