"""The OWLv2 detector, against transformers' own way on a small random model."""

import string
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from siglip2_jax.data.tools.ngrams import PROMPTS
from siglip2_jax.data.tools.owlv2 import Owlv2Detector

QUERIES = ["a dog", "tree", "red kite in the sky", "sea"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A directory with random weights, a tokenizer of letters and a picture processor."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these libraries say on import is not ours
        import transformers as hf
        from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    letters = string.ascii_lowercase + ".!"
    pieces = ["!", *letters[:-1], *(letter + "</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]  # the end mark is the greatest id
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 4, "initializer_range": 0.1}
    text = {**tower, "vocab_size": len(pieces), "max_position_embeddings": 16}
    text |= {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1}
    vision = {**tower, "image_size": 48, "patch_size": 8}
    torch.manual_seed(0)
    config = hf.Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    model = hf.Owlv2ForObjectDetection(config)
    with torch.no_grad():
        # Boxes of about the patches' places and sizes, and scores that differ.
        for head, scale in ((model.box_head, 0.1), (model.class_head, 0.2)):
            for parameter in head.parameters():
                parameter.normal_(0, scale)
        model.class_head.logit_scale.bias.fill_(2.0)
    path = tmp_path_factory.mktemp("owlv2")
    tokenizer = hf.CLIPTokenizer(
        {piece: i for i, piece in enumerate(pieces)}, [], pad_token="!", model_max_length=16
    )
    figures = Owlv2ImageProcessorPil(size={"height": 48, "width": 48})
    hf.Owlv2Processor(figures, tokenizer).save_pretrained(path)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def theirs(repo):
    import transformers as hf

    model = hf.Owlv2ForObjectDetection.from_pretrained(repo).eval()
    return model, hf.Owlv2Processor.from_pretrained(repo)


def photo(width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parity
def test_queries_that_come_again_are_embedded_once(repo, monkeypatch):
    """A fixed list comes with every image; other queries are embedded anew."""
    detector = Owlv2Detector(repo, "cpu", threshold=0.0)
    run, calls = detector._model.owlv2.text_model.forward, []
    monkeypatch.setattr(
        detector._model.owlv2.text_model,
        "forward",
        lambda *x, **y: calls.append(len(y["input_ids"])) or run(*x, **y),
    )
    first, again, other = (
        detector.detect(photo(60, 60), queries) for queries in (QUERIES, QUERIES, QUERIES[:2])
    )
    assert first == again != other
    assert calls == [len(PROMPTS) * len(QUERIES), len(PROMPTS) * 2]


@pytest.mark.parity
@pytest.mark.parametrize("size", [(60, 60), (90, 40), (30, 70)])
def test_one_prompt_is_what_transformers_finds(repo, theirs, size):
    import torch

    model, processor = theirs
    detector = Owlv2Detector(repo, "cpu", threshold=0.0, prompts=("{}",))
    image = photo(*size)
    found = detector.detect(image, QUERIES)
    inputs = processor(text=[QUERIES], images=image, truncation=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (wanted,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.0, target_sizes=[size[::-1]], text_labels=[QUERIES]
    )
    boxes = wanted["boxes"].numpy()[:, [1, 0, 3, 2]] / np.array([*size[::-1]] * 2)
    boxes = boxes.clip(0, 1)
    there = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    assert len(boxes) == 36 and there.sum() == len(found) > 10
    np.testing.assert_allclose([x.box for x in found], boxes[there], rtol=0, atol=2e-6)
    np.testing.assert_allclose([x.score for x in found], wanted["scores"][there], rtol=1e-5)
    labels = [QUERIES[i] for i in wanted["labels"]]
    assert [x.phrase for x in found] == [x for x, kept in zip(labels, there, strict=True) if kept]
    assert len({x.phrase for x in found}) > 1


@pytest.mark.parity
def test_prompts_are_averaged_and_the_threshold_holds(repo, theirs):
    import torch

    model, processor = theirs
    image, detector = photo(48, 48), Owlv2Detector(repo, threshold=0.0)
    found = detector.detect(image, QUERIES)
    sums = []
    for query in QUERIES:
        texts = [prompt.format(query) for prompt in PROMPTS]
        inputs = processor(text=[texts], images=image, truncation=True, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        # transformers gives unit vectors.
        sums.append(outputs.text_embeds[0].double().sum(dim=0))
    embeds = torch.stack(sums).float()
    with torch.no_grad():
        logits, _ = model.class_predictor(outputs.image_embeds.flatten(1, 2), embeds[None])
    scores, best = logits[0].sigmoid().max(dim=-1)
    np.testing.assert_allclose([x.score for x in found], scores, rtol=1e-5)
    assert [x.phrase for x in found] == [QUERIES[i] for i in best]
    middle = float(np.median(scores))
    above = Owlv2Detector(repo, threshold=middle).detect(image, QUERIES)
    assert above == [x for x in found if x.score >= middle] and len(above) < len(found)
    assert repr(detector).startswith(f"Owlv2Detector({repo!r}, threshold=0.0, prompts=('itap")


@pytest.mark.parity
def test_other_models_are_refused(repo, tmp_path):
    from transformers import CLIPConfig

    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a model of the type clip, expected owlv2"):
        Owlv2Detector(str(tmp_path))
    with pytest.raises(OSError, match="the OWLv2 model .*nothing cannot be read .*; give a direc"):
        Owlv2Detector(str(tmp_path / "nothing"))


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'siglip2_jax\[regions\]'"):
        Owlv2Detector("anything")
