"""Tasks for a captioning decoder: referring expressions (table 5 of SigLIP 2) and captions."""

from __future__ import annotations

from collections.abc import Callable

from siglip2_jax.benchmarks.decoder.captions import CaptionQuality
from siglip2_jax.benchmarks.decoder.expressions import ExpressionFile
from siglip2_jax.benchmarks.decoder.refer_files import PUBLISHED, published_splits
from siglip2_jax.benchmarks.decoder.referring import Referring
from siglip2_jax.benchmarks.karpathy import Karpathy
from siglip2_jax.benchmarks.tasks.base import Setting, Task
from siglip2_jax.benchmarks.tasks.held_out import held_out
from siglip2_jax.data.sources import Folder


def _refcoco(name: str) -> Callable[[Setting], Referring]:
    def make(setting: Setting) -> Referring:
        source = published_splits(str(setting.root), str(setting.root / "train2014"))[name]
        return Referring(source=source, max_num_patches=setting.budget)

    return make


def _split(folder: str, split_by: str, split: str) -> Task:
    name = f"{folder.replace('+', 'plus')}_{split}"
    return Task(
        name=name,
        kind="referring",
        folder="refer",
        required_files=(f"{folder}/refs({split_by}).p", f"{folder}/instances.json", "train2014"),
        setup_hint="refcoco.zip, refcoco+.zip and refcocog.zip of lichengunc/refer, unpacked, and "
        "COCO's train2014",
        make=_refcoco(f"{folder}_{split}"),
        metric="acc@0.5",
        needs_decoder=True,
    )


def _expressions(setting: Setting) -> Referring:
    path = setting.root / "expressions.jsonl"
    where = held_out(path)
    split = where[0][1] if where else None
    source = ExpressionFile(str(path), str(setting.root / "images"), split)
    return Referring(source=source, max_num_patches=setting.budget)


def _coco(setting: Setting) -> CaptionQuality:
    source = Karpathy(str(setting.root / "dataset_coco.json"), str(setting.root))
    return CaptionQuality(source=source, max_num_patches=setting.budget)


def _captions(setting: Setting) -> CaptionQuality:
    where = held_out(setting.root / "captions.jsonl")
    source = Folder(str(setting.root), where=where)
    return CaptionQuality(source=source, max_num_patches=setting.budget)


TASKS: tuple[Task, ...] = (
    *(_split(folder, by, split) for folder, by, splits in PUBLISHED for split in splits),
    Task(
        name="expressions",
        kind="referring",
        folder=".",
        required_files=("expressions.jsonl", "images"),
        setup_hint='expressions.jsonl has rows {"file", "expression", "box"} and perhaps "split"; '
        "images holds the files",
        make=_expressions,
        metric="acc@0.5",
        needs_decoder=True,
    ),
    Task(
        name="coco_captions",
        kind="captioning",
        folder="coco",
        required_files=("dataset_coco.json", "val2014"),
        setup_hint="as for coco",
        make=_coco,
        metric="cider_d",
        needs_decoder=True,
    ),
    Task(
        name="write_captions",
        kind="captioning",
        folder=".",
        required_files=("captions.jsonl", "images"),
        setup_hint='captions.jsonl has rows {"file", "captions": [...]} and perhaps "split"; '
        "images holds the files",
        make=_captions,
        metric="cider_d",
        needs_decoder=True,
    ),
)
"""In the order of the table, then sets of one's own."""
