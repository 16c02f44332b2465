"""Tasks that train something small on frozen features."""

from __future__ import annotations

from typing import Any

from siglip2_jax.data.sources import Folder
from siglip2_jax.evals.dense.data import read_index, read_legend
from siglip2_jax.evals.dense.open_vocabulary import OpenVocabulary
from siglip2_jax.evals.dense.probes import DepthProbe, NormalsProbe, SegmentationProbe
from siglip2_jax.evals.fewshot import FewShot
from siglip2_jax.evals.labels import ClassFolders
from siglip2_jax.evals.linear_probe import LinearProbe
from siglip2_jax.evals.prompts import CLIP_PAPER
from siglip2_jax.evals.tasks.base import Setting, Task
from siglip2_jax.evals.tasks.held_out import held_out


def _imagenet(setting: Setting) -> dict[str, Any]:
    train, test = (ClassFolders(str(setting.root / part), count=1000) for part in ("train", "val"))
    return {"train": train, "test": test, "label": "label", "max_num_patches": setting.budget}


def _rows(setting: Setting) -> dict[str, Any]:
    parts = {"train": (("split", "train"),), "test": held_out(setting.root / "labels.jsonl")}
    sources = {
        name: Folder(str(setting.root), captions="labels.jsonl", where=where, template="{label}")
        for name, where in parts.items()
    }
    return sources | {"label": "label", "max_num_patches": setting.budget}


def _dense(setting: Setting, **options: str) -> dict[str, Any]:
    pictures = None if setting.pictures is None else str(setting.pictures)
    data = read_index(setting.root / "index.jsonl", **options)
    return {"data": data, "max_num_patches": setting.budget, "pictures": pictures}


def _segmentation(setting: Setting) -> SegmentationProbe:
    legend = read_legend(setting.root / "classes.json")
    return SegmentationProbe(classes=legend.names, void=legend.void, **_dense(setting))


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
    f"{_INDEX.format('label')}, label a picture of class numbers; classes.json is "
    '{"names": [...], "void": 255}'
)
_TRAIN = "train and val hold a folder for each WordNet id (image-net.org)"
_LABELS = 'labels.jsonl has rows {"file", "label", "split": "train" or "test"}, images the photos'


def _segmented(name: str, folder: str, dataset: str = "") -> Task:
    return Task(
        name=name,
        dataset=dataset,
        kind="segmentation",
        folder=folder,
        needs=("index.jsonl", "classes.json"),
        how=_MAPS,
        make=_segmentation,
        metric="miou",
    )


TASKS: tuple[Task, ...] = (
    Task(
        name="imagenet_10shot",
        dataset="imagenet",
        kind="fewshot",
        folder="imagenet",
        needs=("train", "val"),
        how=_TRAIN,
        make=lambda setting: FewShot(**_imagenet(setting)),
        metric="10shot",
    ),
    Task(
        name="imagenet_linear",
        dataset="imagenet",
        kind="linear_probe",
        folder="imagenet",
        needs=("train", "val"),
        how=_TRAIN,
        make=lambda setting: LinearProbe(**_imagenet(setting)),
        metric="top1",
    ),
    Task(
        name="10shot",
        kind="fewshot",
        folder=".",
        needs=("labels.jsonl", "images"),
        how=_LABELS,
        make=lambda setting: FewShot(**_rows(setting)),
        metric="10shot",
    ),
    Task(
        name="linear",
        kind="linear_probe",
        folder=".",
        needs=("labels.jsonl", "images"),
        how=_LABELS,
        make=lambda setting: LinearProbe(**_rows(setting)),
        metric="top1",
    ),
    _segmented("pascal", "pascal", "pascal_voc"),
    _segmented("ade20k", "ade20k"),
    _segmented("camvid", "camvid_60"),
    Task(
        name="camvid_zero_shot",
        kind="segmentation",
        folder="camvid_60",
        needs=("index.jsonl", "classes.json"),
        how=_MAPS,
        make=_open_vocabulary,
        metric="miou",
    ),
    Task(
        name="nyu_depth",
        dataset="nyuv2",
        kind="depth",
        folder="nyu",
        needs=("index.jsonl", "depth"),
        how=_INDEX.format("depth") + ", depth a 16-bit picture of millimetres",
        make=lambda setting: DepthProbe(crop=(45, 471, 41, 601), **_dense(setting, label="depth")),
        metric="rmse",
    ),
    Task(
        name="7scenes_depth",
        kind="depth",
        folder="depth_7scenes_32",
        needs=("index.jsonl",),
        how=_INDEX.format("depth") + ", depth a 16-bit picture of millimetres",
        make=lambda setting: DepthProbe(**_dense(setting, label="depth")),
        metric="rmse",
    ),
    Task(
        name="nyu_normals",
        dataset="nyuv2",
        kind="normals",
        folder="nyu",
        needs=("index.jsonl", "normals"),
        how=_INDEX.format("normals") + ", normals a .npy file of vectors or an RGB picture",
        make=lambda setting: NormalsProbe(**_dense(setting, label="normals")),
        metric="angular_rmse",
    ),
)
"""In the order of the paper's tables, then sets of one's own."""
