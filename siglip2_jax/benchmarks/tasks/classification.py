"""Zero-shot classification tasks, with the protocol of the official evaluator.

81 templates (CLIP's 80 and the bare name), canonicalised first names, ties to the first class
(big_vision, `evaluators/proj/image_text/discriminative_classifier.py`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from siglip2_jax.benchmarks.tasks.base import Setting, Task
from siglip2_jax.benchmarks.tasks.held_out import SPLITS, held_out
from siglip2_jax.benchmarks.tasks.prepared import (
    IMAGENET,
    IMAGENET_V2,
    Prepared,
    how_prepared,
    imagenet_images,
    is_prepared,
    or_prepared,
)
from siglip2_jax.data.sources import Folder, Source
from siglip2_jax.evals.classes import Classes, read_babel, read_class_names, read_templates
from siglip2_jax.evals.labels import ClassFolders, ReaL, objectnet_classes
from siglip2_jax.evals.prompts import CLIP_PAPER
from siglip2_jax.evals.zero_shot import ZeroShot

NAMES = "classnames.json"
_NAMES_HOW = (
    "classnames.json holds CLIP's 1,000 names of ImageNet's classes in the usual order, as a list "
    "or as CLIP Benchmark's en_classnames.json"
)
_VAL = or_prepared("val", IMAGENET)
_READS = "val", IMAGENET, "*.json"  # and not the 1.28 million images of train
_V2 = "imagenetv2-matched-frequency-format-val"
BABEL = "DE", "ES", "FR", "HI", "JA", "RU", "SW", "TH", "TR", "ZH"


def _names(root: Path) -> tuple[str, ...]:
    return read_class_names(root / NAMES, "imagenet1k")


def _official(
    setting: Setting,
    source: Source,
    label: str,
    classes: tuple[str, ...] | Classes,
    border: int = 0,
) -> ZeroShot:
    return ZeroShot(
        source=source,
        label=label,
        classes=classes,
        templates=CLIP_PAPER,
        border=border,
        canonical=True,
        ties="first",
        cache=setting.cache,
        max_num_patches=setting.budget,
    )


def _validation(setting: Setting) -> Source:
    return imagenet_images(setting.root, "val", IMAGENET, "validation")


def _imagenet(setting: Setting) -> ZeroShot:
    return _official(setting, _validation(setting), "label", _names(setting.root))


def _v2(setting: Setting) -> ZeroShot:
    source = imagenet_images(setting.root, _V2, IMAGENET_V2, "test")
    return _official(setting, source, "label", _names(setting.root))


def _real(setting: Setting) -> ZeroShot:
    source = ReaL(_validation(setting), str(setting.root / "real.json"))
    return _official(setting, source, "real", _names(setting.root))


def _objectnet(setting: Setting) -> ZeroShot:
    folders = ClassFolders(str(setting.root / "images"))
    classes = objectnet_classes(setting.root / "mappings")
    return _official(setting, folders, "folder", classes, border=2)


def _babel(language: str) -> Task:
    def make(setting: Setting) -> ZeroShot:
        root = setting.root
        return ZeroShot(
            source=_validation(setting),
            label="label",
            classes=read_babel(root / "babel_imagenet.json", language),
            templates=read_templates(root / "babel_prompts.json", language),
            ties="first",
            cache=setting.cache,
            max_num_patches=setting.budget,
        )

    return Task(
        name=f"babel_imagenet_{language.lower()}",
        dataset="babel_imagenet",
        kind="zeroshot_classification",
        folder="imagenet",
        reads=_READS,
        required_files=(_VAL, "babel_imagenet.json", "babel_prompts.json"),
        setup_hint=f"val as for imagenet, {how_prepared(IMAGENET)}; babel_imagenet.json and the "
        "prompts (nllb_dist13b_prompts.json) are in gregor-ge/Babel-ImageNet",
        make=make,
        metric="top1",
        language=language.lower(),
    )


def _labelled(root: Path, prompt: tuple[str, ...], setting: Setting) -> ZeroShot:
    """A set with names of its own: JSON lines with `name`, TFDS, or a folder for each class."""
    fields: dict[str, Any] = {"templates": prompt, "max_num_patches": setting.budget}
    if (root / "labels.jsonl").is_file():
        where = held_out(root / "labels.jsonl")
        source = Folder(str(root), captions="labels.jsonl", where=where, template="{name}")
        return ZeroShot(source=source, **fields)
    if is_prepared(root):
        prepared = Prepared(root)
        label, names = prepared.labels
        classes = tuple(name.replace("_", " ") for name in names)
        source = prepared.labelled(SPLITS)
        return ZeroShot(source=source, label=label, classes=classes, **fields)
    source = ClassFolders(str(root))
    opened = source.open()
    names = sorted({opened[i]["folder"] for i in range(len(opened))})
    classes = Classes(tuple(name.replace("_", " ") for name in names), tuple(names))
    return ZeroShot(source=source, label="folder", classes=classes, **fields)


def _caltech(setting: Setting) -> ZeroShot:
    return _labelled(setting.root, ("a photo of a {}",), setting)


def _folders(setting: Setting) -> ZeroShot:
    return _labelled(setting.root, CLIP_PAPER, setting)


_top1 = partial(Task, kind="zeroshot_classification", metric="top1")

TASKS: tuple[Task, ...] = (
    _top1(
        name="imagenet",
        folder="imagenet",
        reads=_READS,
        required_files=(_VAL, NAMES),
        setup_hint="val holds a folder for each WordNet id with its 50 images "
        "(ILSVRC2012_img_val.tar from image-net.org, sorted by valprep.sh), "
        f"{how_prepared(IMAGENET)}; {_NAMES_HOW}",
        make=_imagenet,
    ),
    _top1(
        name="imagenet_v2",
        folder="imagenet_v2",
        required_files=(or_prepared(_V2, IMAGENET_V2), NAMES),
        setup_hint="unpack imagenetv2-matched-frequency.tar.gz (vaishaal/ImageNetV2), "
        f"{how_prepared(IMAGENET_V2)}; {_NAMES_HOW}",
        make=_v2,
    ),
    _top1(
        name="imagenet_real",
        folder="imagenet",
        reads=_READS,
        required_files=(_VAL, "real.json", NAMES),
        setup_hint=f"val as for imagenet, {how_prepared(IMAGENET)}; real.json is in "
        f"google-research/reassessed-imagenet; {_NAMES_HOW}",
        make=_real,
    ),
    _top1(
        name="objectnet",
        folder="objectnet",
        required_files=("images", "mappings"),
        setup_hint="unpack objectnet-1.0.zip (objectnet.dev): its images and mappings",
        make=_objectnet,
    ),
    _top1(
        name="caltech",
        folder="caltech101_20",
        required_files=("labels.jsonl", "images"),
        setup_hint='labels.jsonl has rows {"file", "name", "split"}, images holds the files',
        make=_caltech,
    ),
    _top1(
        name="labels",
        folder=".",
        required_files=("labels.jsonl", "images"),
        setup_hint='labels.jsonl has rows {"file", "name"} and perhaps "split"; images holds the '
        "files",
        make=_folders,
    ),
    _top1(
        name="folders",
        folder=".",
        required_files=(),
        setup_hint="give a directory with a folder of images for each class, called by its name, "
        "or of a version of a TFDS dataset with class labels",
        make=_folders,
    ),
    *map(_babel, BABEL),
)
"""In the order of the paper's tables, then sets of one's own."""
