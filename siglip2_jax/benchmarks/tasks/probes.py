"""Tasks that train something small on frozen features."""

from __future__ import annotations

from typing import Any

from siglip2_jax.benchmarks.dense.data import read_index, read_legend
from siglip2_jax.benchmarks.dense.dpt import DPT
from siglip2_jax.benchmarks.dense.heads import DepthHead
from siglip2_jax.benchmarks.dense.open_vocabulary import OpenVocabulary
from siglip2_jax.benchmarks.dense.probes import PROBE3D, DepthProbe, NormalsProbe, SegmentationProbe
from siglip2_jax.benchmarks.tasks.base import Setting, Task
from siglip2_jax.benchmarks.tasks.held_out import SPLITS, held_out
from siglip2_jax.benchmarks.tasks.prepared import (
    IMAGENET,
    INFO,
    Prepared,
    how_prepared,
    imagenet_images,
    is_prepared,
    or_prepared,
)
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.tfds import Tfds
from siglip2_jax.evals.fewshot import FewShot
from siglip2_jax.evals.linear_probe import LinearProbe
from siglip2_jax.evals.prompts import CLIP_PAPER

FEW_SHOT_IMAGES = 65_000
"""Training images of ImageNet, from the first, that big_vision chooses few-shot examples from."""


def _imagenet(setting: Setting) -> dict[str, Any]:
    train = imagenet_images(setting.root, "train", IMAGENET, "train")
    test = imagenet_images(setting.root, "val", IMAGENET, "validation")
    return {"train": train, "test": test, "label": "label", "max_num_patches": setting.budget}


def _imagenet_few_shot(setting: Setting) -> FewShot:
    fields = _imagenet(setting)
    # Folders are in the order of classes, of which the first images are no sample.
    among = FEW_SHOT_IMAGES if isinstance(fields["train"], Tfds) else None
    return FewShot(**fields, among=among)


def _own(setting: Setting) -> dict[str, Any]:
    if is_prepared(setting.root):
        prepared = Prepared(setting.root)
        sources = {"train": prepared.labelled(("train",)), "test": prepared.labelled(SPLITS)}
        return sources | {"label": prepared.labels[0], "max_num_patches": setting.budget}
    parts = {"train": (("split", "train"),), "test": held_out(setting.root / "labels.jsonl")}
    sources = {
        name: Folder(str(setting.root), captions="labels.jsonl", where=where, template="{label}")
        for name, where in parts.items()
    }
    return sources | {"label": "label", "max_num_patches": setting.budget}


def _dense(setting: Setting, **options: str) -> dict[str, Any]:
    figures = None if setting.figures is None else str(setting.figures)
    data = read_index(setting.root / "index.jsonl", **options)
    return {"data": data, "max_num_patches": setting.budget, "figures": figures}


def _segmentation(setting: Setting) -> SegmentationProbe:
    legend = read_legend(setting.root / "classes.json")
    return SegmentationProbe(classes=legend.names, void=legend.void, **_dense(setting))


def _navi_depth(setting: Setting) -> DepthProbe:
    return DepthProbe(
        decoder=DPT(),
        head=DepthHead(high=1.0, finer=1, sig_weight=10.0, warmup_steps=0),
        relative=True,
        recipe=PROBE3D,
        **_dense(setting, label="depth"),
    )


def _open_vocabulary(setting: Setting) -> OpenVocabulary:
    legend, dense = read_legend(setting.root / "classes.json"), _dense(setting)
    return OpenVocabulary(
        pairs=dense.pop("data").test,
        classes=legend.names,
        void=legend.void,
        templates=CLIP_PAPER,
        canonical=True,
        cache=setting.cache,
        **dense,
    )


_INDEX = 'index.jsonl has rows {{"image", "{}", "split": "train" or "test"}} with paths beside it'
_MAPS = (
    f"{_INDEX.format('label')}, label an image of class numbers; classes.json is "
    '{"names": [...], "void": 255}'
)
_DEPTH = _INDEX.format("depth") + ", depth a 16-bit image of millimetres"
_NORMALS = _INDEX.format("normals") + ", normals a .npy file of vectors or an RGB image"
_NAVI = (
    "; of NAVI (google/navi), train is the multiview scenes and test the wild sets, each image "
    "cut to a square around its object and resized to 512 x 512 with its label, 0 off the object, "
    "as mbanani/probe3d does"
)
_PHOTOS = or_prepared("train", IMAGENET), or_prepared("val", IMAGENET)
_TRAIN = (
    f"train and val hold a folder for each WordNet id (image-net.org), {how_prepared(IMAGENET)}"
)
_LABELLED = ("labels.jsonl", INFO), ("images", INFO)
_LABELS = (
    'labels.jsonl has rows {"file", "label", "split": "train" or "test"}; images holds the files; '
    "or give the directory of a version of a TFDS dataset with class labels"
)


def _segmented(name: str, folder: str, dataset: str = "") -> Task:
    return Task(
        name=name,
        dataset=dataset,
        kind="segmentation",
        folder=folder,
        required_files=("index.jsonl", "classes.json"),
        setup_hint=_MAPS,
        make=_segmentation,
        metric="miou",
    )


TASKS: tuple[Task, ...] = (
    Task(
        name="imagenet_10shot",
        dataset="imagenet",
        kind="fewshot",
        folder="imagenet",
        required_files=_PHOTOS,
        setup_hint=_TRAIN,
        make=_imagenet_few_shot,
        metric="10shot",
    ),
    Task(
        name="imagenet_linear",
        dataset="imagenet",
        kind="linear_probe",
        folder="imagenet",
        required_files=_PHOTOS,
        setup_hint=_TRAIN,
        make=lambda setting: LinearProbe(**_imagenet(setting)),
        metric="top1",
    ),
    Task(
        name="10shot",
        kind="fewshot",
        folder=".",
        required_files=_LABELLED,
        setup_hint=_LABELS,
        make=lambda setting: FewShot(**_own(setting)),
        metric="10shot",
    ),
    Task(
        name="linear",
        kind="linear_probe",
        folder=".",
        required_files=_LABELLED,
        setup_hint=_LABELS,
        make=lambda setting: LinearProbe(**_own(setting)),
        metric="top1",
    ),
    _segmented("pascal", "pascal", "pascal_voc"),
    _segmented("ade20k", "ade20k"),
    _segmented("camvid", "camvid_60"),
    Task(
        name="camvid_zero_shot",
        kind="segmentation",
        folder="camvid_60",
        required_files=("index.jsonl", "classes.json"),
        setup_hint=_MAPS,
        make=_open_vocabulary,
        metric="miou",
    ),
    Task(
        name="nyu_depth",
        dataset="nyuv2",
        kind="depth",
        folder="nyu",
        required_files=("index.jsonl", "depth"),
        setup_hint=_DEPTH,
        make=lambda setting: DepthProbe(crop=(45, 471, 41, 601), **_dense(setting, label="depth")),
        metric="rmse",
    ),
    Task(
        name="7scenes_depth",
        kind="depth",
        folder="depth_7scenes_32",
        required_files=("index.jsonl",),
        setup_hint=_DEPTH,
        make=lambda setting: DepthProbe(**_dense(setting, label="depth")),
        metric="rmse",
    ),
    Task(
        name="nyu_normals",
        dataset="nyuv2",
        kind="normals",
        folder="nyu",
        required_files=("index.jsonl", "normals"),
        setup_hint=_NORMALS,
        make=lambda setting: NormalsProbe(**_dense(setting, label="normals")),
        metric="angular_rmse",
    ),
    Task(
        name="navi_depth",
        dataset="navi",
        kind="depth",
        folder="navi",
        required_files=("index.jsonl", "depth"),
        setup_hint=_DEPTH + _NAVI,
        make=_navi_depth,
        metric="rmse",
    ),
    Task(
        name="navi_normals",
        dataset="navi",
        kind="normals",
        folder="navi",
        required_files=("index.jsonl", "normals"),
        setup_hint=_NORMALS + _NAVI,
        make=lambda setting: NormalsProbe(**_dense(setting, label="normals")),
        metric="angular_rmse",
    ),
)
"""In the order of the paper's tables, then sets of one's own."""
