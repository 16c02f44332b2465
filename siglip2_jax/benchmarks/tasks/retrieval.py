"""Retrieval tasks: recall both ways, all captions of an image in the pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from siglip2_jax.benchmarks.compositional import CATEGORIES, SugarCrepe
from siglip2_jax.benchmarks.crossmodal import CrossModal
from siglip2_jax.benchmarks.karpathy import Karpathy
from siglip2_jax.benchmarks.tasks.base import Setting, Task
from siglip2_jax.benchmarks.tasks.held_out import SPLITS, held_out
from siglip2_jax.benchmarks.tasks.prepared import INFO, Prepared, is_prepared
from siglip2_jax.data.pairs import Pairs
from siglip2_jax.data.sources import Folder
from siglip2_jax.evals.retrieval import Retrieval


def _karpathy(file: str, images: str) -> Callable[[Setting], Retrieval]:
    def make(setting: Setting) -> Retrieval:
        source = Karpathy(str(setting.root / file), str(setting.root / images))
        return Retrieval(source=source, max_num_patches=setting.budget)

    return make


def _captions(setting: Setting) -> Retrieval:
    root = setting.root
    if is_prepared(root):
        source = Prepared(root).captioned(SPLITS)
    else:
        source = Folder(str(root), where=held_out(root / "captions.jsonl"))
    return Retrieval(source=source, max_num_patches=setting.budget)


def _pairs(setting: Setting) -> Retrieval:
    source = Pairs(str(setting.root), "held_out")
    return Retrieval(source=source, max_num_patches=setting.budget)


def _xm3600(setting: Setting) -> CrossModal:
    return CrossModal(path=str(setting.root), max_num_patches=setting.budget)


def _sugarcrepe(setting: Setting) -> SugarCrepe:
    root = setting.root
    return SugarCrepe(path=str(root), images=str(root / "val2017"), max_num_patches=setting.budget)


_recall = partial(Task, kind="zeroshot_retrieval", metric="text_to_image@1")
_ROWS = (
    'captions.jsonl has rows {"file", "captions": [...]} and perhaps "split"; images holds files'
)


def _rows(name: str, folder: str, source: str = "") -> Task:
    return _recall(
        name=name,
        folder=folder,
        required_files=("captions.jsonl", "images"),
        setup_hint=source + _ROWS,
        make=_captions,
    )


TASKS: tuple[Task, ...] = (
    _recall(
        name="coco",
        folder="coco",
        required_files=("dataset_coco.json", "val2014"),
        setup_hint="dataset_coco.json is Karpathy's split (5,000 test images, all of val2014), and "
        "val2014 holds the images (cocodataset.org)",
        make=_karpathy("dataset_coco.json", "."),
    ),
    _recall(
        name="flickr30k",
        folder="flickr30k",
        required_files=("dataset_flickr30k.json", "images"),
        setup_hint="dataset_flickr30k.json is Karpathy's split (1,000 test images), images holds "
        "flickr30k-images",
        make=_karpathy("dataset_flickr30k.json", "images"),
    ),
    _recall(
        name="xm3600",
        folder="xm3600",
        required_files=("captions.jsonl", "images"),
        setup_hint="captions.zip and images.tgz from google.github.io/crossmodal-3600, unpacked",
        make=_xm3600,
        language="36 languages",
    ),
    _rows("textcaps", "textcaps", "TextCaps (textvqa.org), as JSON lines: "),
    _rows("hiertext", "hiertext", "HierText (google-research-datasets), as JSON lines: "),
    _rows("scicap", "scicap", "SciCap (tingyaohsu/SciCap), as JSON lines: "),
    _rows("screen2words", "screen2words", "Screen2Words with RICO's screenshots, as JSON lines: "),
    Task(
        name="sugarcrepe",
        kind="image_caption_selection",
        folder="sugarcrepe",
        required_files=(*(f"{category}.json" for category in CATEGORIES), "val2017"),
        setup_hint="the seven files are in RAIVNLab/sugar-crepe, val2017 holds COCO's images",
        make=_sugarcrepe,
        metric="mean",
    ),
    _rows("flickr8k", "flickr8k_1k"),
    _recall(
        name="captions",
        folder=".",
        required_files=(("captions.jsonl", INFO), ("images", INFO)),
        setup_hint=_ROWS + "; or give the directory of a version of a TFDS dataset with captions",
        make=_captions,
    ),
    _recall(
        name="pairs",
        folder=".",
        required_files=(("captions.jsonl", "*.csv", "*.tsv", "*.jsonl", "*.parquet"),),
        setup_hint="captions.jsonl and images, a table of paths, or Parquet files, of which the "
        "recipe own_pairs trains on another part",
        make=_pairs,
    ),
)
"""In the order of the paper's tables, then sets of one's own."""
