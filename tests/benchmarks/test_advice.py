"""Advice fits the difference and the protocol, and is silent where numbers agree."""

import pytest

from siglip2_jax.benchmarks.report.advice import advise, elsewhere
from siglip2_jax.benchmarks.report.published import published
from siglip2_jax.benchmarks.report.result import Result

OFFICIAL = {
    "num_patches": 196,
    "resolution": 224,
    "preproc": "reference",
    "text_norm": "reference",
    "dtype": "float32",
    "templates": 81,
    "canonical": True,
    "ties": "first",
}
TASKS = {
    "top1": "zeroshot_classification",
    "10shot": "fewshot",
    "rmse": "depth",
    "miou": "segmentation",
    "angular_rmse": "normals",
    "acc@0.5": "referring",
    "representation_bias": "bias",
}


def told(
    off: float,
    dataset: str = "imagenet",
    metric: str = "top1",
    model: str = "B/16 224",
    images: int | None = None,
    failed: tuple[str, ...] = (),
    **protocol,
) -> str:
    """The advice when our number is the published one plus `off` points."""
    sizes = {"imagenet": 50_000, "coco": 5_000, "flickr30k": 1_000, "xm3600": 3_600}
    found = published(model, dataset, metric, protocol.get("num_patches"))
    scale = 1 if metric in ("rmse", "angular_rmse") else 100
    result = Result(
        dataset=dataset,
        task=TASKS.get(metric, "zeroshot_retrieval"),
        model=model,
        pretrained="w.npz",
        metrics={metric: (found.value + off) / scale},
        protocol=OFFICIAL | protocol,
        failed=failed,
        images=sizes.get(dataset, 7) if images is None else images,
    )
    return " ".join(advise(result, metric, found))


@pytest.mark.parametrize("off", [0, 0.3, -0.3])
def test_nothing_is_said_where_numbers_agree(off):
    assert told(off, canonical=False, preproc="hf", images=3, failed=("a",)) == ""
    assert told(off / 30, "nyuv2", "rmse", "So400m/14 224") == ""


def test_the_official_protocol_is_not_blamed():
    assert told(-2.0) == ""


@pytest.mark.parametrize(
    ("off", "words"),
    [(-12, "RADIO#142"), (-4.2, "CLIP_benchmark#135"), (-60, "64 tokens"), (-0.5, "resize")],
)
def test_the_size_of_a_loss_on_imagenet_points_to_a_cause(off, words):
    found = told(off)
    others = {"RADIO#142", "CLIP_benchmark#135", "64 tokens", "resize"} - {words}
    assert words in found
    assert not any(other in found for other in others)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"canonical": False}, "canonical is off"),
        ({"templates": 1}, "templates = 1"),
        ({"ties": "wrong"}, "sunglasses"),
        ({"preproc": "hf"}, "preproc is 'hf'"),
        ({"dtype": "bfloat16"}, "float32"),
    ],
)
def test_a_choice_that_is_not_the_official_one_is_named(choice, words):
    assert words in told(-2, **choice)
    assert words not in told(-2)


def test_templates_may_be_named():
    assert told(-2, templates="clip_paper") == ""


def test_photos_that_fail_and_photos_that_lack():
    assert "500 of 50000 photos did not decode" in told(-2, failed=("a.jpg",) * 500)
    assert "1.00 %" in told(-2, failed=("a.jpg",) * 500)
    assert "decode" not in told(2, failed=("a.jpg",))
    assert "of 50000" in told(5, images=200)


def test_another_budgets_number_is_recognised():
    # B/16 NaFlex: 78.5 at 256 tokens, 76.2 at 144.
    found = told(76.2 - 78.5, model="B/16 NaFlex", num_patches=256)
    assert "at 144 tokens (76.2)" in found
    assert "max_num_patches" not in told(-1.1, model="B/16 NaFlex", num_patches=256)


def test_a_budget_without_a_published_number():
    result = Result(
        dataset="imagenet",
        task="zeroshot_classification",
        model="B/16 NaFlex",
        pretrained="w.npz",
        metrics={"top1": 0.7},
        protocol={"num_patches": 128},
    )
    assert "64, 144, 256, 576, 676, 784, 900, 1024 tokens, not at 128" in elsewhere(result, "top1")
    assert elsewhere(result, "top5") is None


def test_objectnet():
    found = told(-14, "objectnet", border=0)
    assert "113 classes" in found and "border is 0" in found
    assert "border is" not in told(-14, "objectnet", border=2)


def test_retrieval_asks_for_case_and_full_stop():
    found = told(-3.5, "coco", "text_to_image@1", text_norm="none", full_stop="keep")
    assert "big_vision#166" in found and "try 'add'" in found
    assert told(-3.5, "coco", "text_to_image@1") == ""
    assert "'keep' or 'remove'" in told(-1, "coco", "image_to_text@1", full_stop="add")


def test_flickr_and_xm3600_have_known_gaps():
    assert "2 to 3 points" in told(-2.5, "flickr30k", "text_to_image@1")
    assert told(-2.5, "flickr30k", "image_to_text@1") == ""
    assert "crop" in told(-20, "flickr30k", "text_to_image@1")
    assert "36 languages" in told(-6, "xm3600", "text_to_image@1")


def test_the_other_harness_clears_the_model():
    # SigLIP B/16 256 on ObjectNet: 71.3 in the paper, 57.23 in OpenCLIP.
    found = told(57.2 - 71.3, "objectnet", model="SigLIP B/16 256", border=2)
    assert "OpenCLIP finds 57.23 with the same weights" in found
    assert "with the same weights, as here" not in told(-5, "objectnet", model="SigLIP B/16 256")


@pytest.mark.parametrize(
    ("dataset", "metric", "off", "words"),
    [
        ("imagenet", "10shot", -2, "65,000"),
        ("ade20k", "miou", -5, "TIPS"),
        ("nyuv2", "rmse", 0.1, "256 bins"),
        ("navi", "angular_rmse", 2, "Probe3D"),
        ("refcoco_val", "acc@0.5", -9, "from scratch"),
        ("bias", "representation_bias", 3, "unpublished"),
    ],
)
def test_every_other_task_has_its_sentence(dataset, metric, off, words):
    assert words in told(off, dataset, metric, "So400m/14 224")


def test_a_larger_error_is_worse():
    lost = "did not decode"
    assert lost in told(0.1, "nyuv2", "rmse", "So400m/14 224", failed=("a",))
    assert lost not in told(-0.1, "nyuv2", "rmse", "So400m/14 224", failed=("a",))
