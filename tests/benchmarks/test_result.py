"""A result is CLIP Benchmark's JSON, and comes back whole."""

import json

import pytest

from siglip2_jax.benchmarks.report.result import Result


def retrieval(**changes) -> Result:
    fields = {
        "dataset": "coco",
        "task": "zeroshot_retrieval",
        "model": "B/16 NaFlex",
        "pretrained": "gs://bucket/b16.npz",
        "metrics": {"image_to_text@1": 0.7, "text_to_image@1": 0.5, "text_to_image@10": 0.9},
        "protocol": {
            "num_patches": 256,
            "resolution": None,
            "full_stop": "keep",
            "canonical": True,
        },
        "failed": ("ü.jpg",),
        "images": 5000,
        "seconds": 12.5,
        "images_per_s": 400.0,
        "data_wait": 0.25,
    }
    return Result(**fields | changes)


def test_the_schema_is_clip_benchmarks():
    data = retrieval().to_json()
    own = data.pop("siglip2_jax")
    # `dump` in clip_benchmark/cli.py; there to find an image by a text is "image retrieval".
    assert data == {
        "dataset": "mscoco_captions",
        "model": "B/16 NaFlex",
        "pretrained": "gs://bucket/b16.npz",
        "task": "zeroshot_retrieval",
        "metrics": {
            "text_retrieval_recall@1": 0.7,
            "image_retrieval_recall@1": 0.5,
            "image_retrieval_recall@10": 0.9,
        },
        "language": "en",
    }
    assert own["metrics"] == retrieval().metrics
    assert own["dataset"] == "coco"


@pytest.mark.parametrize(
    ("task", "ours", "theirs"),
    [
        ("zeroshot_classification", "top1", "acc1"),
        ("zeroshot_classification", "top5", "acc5"),
        ("zeroshot_classification", "mean_per_class", "mean_per_class_recall"),
        ("image_caption_selection", "mean", "acc"),
        ("linear_probe", "top1", "lp_acc1"),
        ("fewshot", "10shot", "10shot"),
        ("zeroshot_retrieval", "ar/text_to_image@1", "ar/text_to_image@1"),
    ],
)
def test_numbers_have_its_names_where_it_has_any(task, ours, theirs):
    result = retrieval(dataset="my set", task=task, metrics={ours: 0.5})
    assert result.to_json()["metrics"] == {theirs: 0.5}
    assert result.to_json()["dataset"] == "my set"


@pytest.mark.parametrize(
    "result",
    [
        retrieval(),
        retrieval(metrics={}, missing="Download it."),
        retrieval(dataset="imagenet", task="fewshot", language="de"),
    ],
)
def test_it_comes_back_through_a_file(result):
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {}}, "0 numbers and missing is None"),
        ({"missing": "Download it."}, "3 numbers and missing"),
        ({"metrics": {"top1": float("nan")}}, "top1 is nan"),
        ({"data_wait": 12.0}, "data_wait is 12.0"),
    ],
)
def test_what_is_no_result_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        retrieval(**changes)


@pytest.mark.parametrize("own", [None, {"dataset": "coco"}])
def test_a_file_of_another_program_is_refused(own):
    data = retrieval().to_json() | {"siglip2_jax": own}
    with pytest.raises(ValueError, match="measure again"):
        Result.from_json(data)


def test_an_unknown_task_is_refused():
    result = retrieval()
    object.__setattr__(result, "task", "guess")  # the suite's type checks would refuse it first
    with pytest.raises(ValueError, match="task is 'guess'; expected one of"):
        result.__post_init__()
