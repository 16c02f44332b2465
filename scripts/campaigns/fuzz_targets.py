"""Valid files of each kind, and what reads them: the targets of `fuzz_inputs.py`."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mutations import change_bytes, change_json
from PIL import Image, features

from siglip2_jax import checkpoints
from siglip2_jax.config import load_config
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.table import Table
from siglip2_jax.data.tar.index import index_file
from siglip2_jax.data.tar.samples import make_sample
from siglip2_jax.data.tars import Tars
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.preprocess.decode import decode
from siglip2_jax.preprocess.tokenizer import Tokenizer
from siglip2_jax.preprocess.tokenizer_json import from_sentencepiece
from siglip2_jax.testing import tiny_embedder

MAX_PIXELS = 4_000_000
TEXTS = ("a cat", "Zwölf Boxkämpfer", "", "猫 on a mat", "x" * 300)


class Target(ABC):
    """A kind of input.

    Attributes:
      bound: MiB by which reading may raise the peak of the process's memory.
    """

    bound = 256

    def __init__(self, folder: Path) -> None:
        """Makes the valid files, in a folder of its own."""
        self.folder = folder

    @abstractmethod
    def read(self, rng: random.Random) -> None:
        """Changes a valid file, and reads it to the end.

        Raises:
          ValueError: it is refused.
          OSError: it is refused.
        """


def pixels(height: int, width: int) -> Image.Image:
    """An image of smooth colours."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return Image.fromarray((np.stack([x, y, (x + y) / 2], -1) * 200 + 30).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Images(Target):
    """Files of all formats and modes, decoded whole or scaled."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        image = pixels(40, 56)
        exif = Image.Exif()
        exif[0x0112] = 6
        wide = Image.fromarray((np.arange(40 * 56, dtype=np.uint16) * 29).reshape(40, 56))
        alpha = image.convert("RGBA")
        alpha.putalpha(100)
        self.seeds = [
            encoded(image, "JPEG", exif=exif),
            encoded(image, "JPEG", progressive=True, subsampling=0),
            encoded(image.convert("CMYK"), "JPEG"),
            *(encoded(image.convert(mode), "PNG") for mode in ("RGB", "P", "LA", "1")),
            *(encoded(x, "PNG") for x in (wide, alpha)),
            encoded(image.convert("RGB"), "PNG", transparency=(30, 30, 30)),
            *(encoded(x, "WEBP", lossless=lossless) for x in (image, alpha) for lossless in (0, 1)),
            encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)]),
            encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
            *(encoded(image, "TIFF", compression=x) for x in (None, "tiff_lzw", "tiff_deflate")),
            *(encoded(image, "TIFF", compression=x) for x in ("jpeg", "packbits")),
            *(encoded(image.convert(mode), "TIFF") for mode in ("F", "I", "LAB", "CMYK")),
            *(encoded(image.convert(mode), "BMP") for mode in ("RGB", "P")),
            *(encoded(image.convert(mode), "PPM") for mode in ("RGB", "L", "1")),
            encoded(image, "JPEG2000"),
        ]
        if features.check("avif"):
            self.seeds.append(encoded(image, "AVIF"))

    def read(self, rng: random.Random) -> None:  # noqa: D102
        data = change_bytes(rng.choice(self.seeds), rng, self.seeds)
        least = (lambda size: (10, 10)) if rng.random() < 0.3 else None
        image = decode(data, name="image", max_pixels=MAX_PIXELS, least_size=least)
        assert image.mode == "RGB" and image.width * image.height <= MAX_PIXELS
        image.getpixel((image.width - 1, image.height - 1))


ROW = {"caption": "a cat on a mat", "captions": ["a cat", "Katze"], "width": 640, "tags": ["a"]}


def tar_of(images: Sequence[bytes], form: int, **options) -> bytes:
    """A tar with a sample an image."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, **options) as tar:
        for number, image in enumerate(images):
            row = json.dumps(ROW).encode()
            for suffix, content in (("jpg", image), ("txt", b"a cat\n"), ("json", row)):
                member = tarfile.TarInfo(f"{'long/' * 30 * (number == 1)}{number:03}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("003.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "000.jpg"
        tar.addfile(link)
    return buffer.getvalue()


class TarFiles(Target):
    """Tars of three dialects, and the indices kept beside them: opened, and every sample read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        images = [encoded(pixels(8 + i, 8), "JPEG") for i in range(3)]
        forms = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        self.seeds = [tar_of(images, form) for form in forms]
        self.seeds.append(tar_of(images, tarfile.PAX_FORMAT, pax_headers={"comment": "é" * 40}))
        self.seeds.append(self.seeds[0] + self.seeds[1])  # two archives in a row
        self.path = folder / "fuzzed.tar"

    def read(self, rng: random.Random) -> None:  # noqa: D102
        data, index = rng.choice(self.seeds), index_file(str(self.path))
        index.unlink(missing_ok=True)
        if rng.random() < 0.1:
            self.path.write_bytes(data)
            Tars(str(self.path)).open()
            index.write_bytes(change_bytes(index.read_bytes(), rng))
        else:
            self.path.write_bytes(change_bytes(data, rng, self.seeds))
        read_all(Tars(str(self.path)).open())


def read_all(examples) -> None:
    """Reads all examples; one that is refused does not keep the others from being read.

    Raises:
      ValueError: the last refusal.
    """
    refusal = None
    for i in range(len(examples)):
        try:
            examples[i]
        except ValueError as error:
            refusal = error
    if refusal:
        raise refusal


class Captions(Target):
    """Captions as texts, rows of JSON and tables; what is read becomes ids."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tokenizer = Tokenizer.load(TOKENIZER)
        (folder / "images").mkdir()
        (folder / "images" / "a.jpg").write_bytes(encoded(pixels(8, 8), "JPEG"))
        self.json = json.dumps(ROW).encode()
        rows = [{"file": "a.jpg", **ROW}, {"file": "a.jpg", "caption": "dos\nlines"}]
        self.lines = b"\n".join(json.dumps(row).encode() for row in rows)
        self.table = 'image,caption,tag\r\nimages/a.jpg,"a ""cat"", é",1\r\nimages/a.jpg,b,\r\n'
        self.seeds = [b"a cat on a mat\n", "Zwölf 猫 \N{CAT FACE}".encode(), b"a\tb\r\nc"]

    def read(self, rng: random.Random) -> None:  # noqa: D102
        for example in rng.choice((self._text, self._row, self._folder, self._table))(rng):
            for text in example["captions"]:
                self.tokenizer(text)

    def _text(self, rng: random.Random) -> list[dict]:
        text = change_bytes(rng.choice(self.seeds), rng, [*self.seeds, self.json])
        return [make_sample("a.tar", "a.tar:0", (b"", text, None), set())]

    def _row(self, rng: random.Random) -> list[dict]:
        return [make_sample("a.tar", "a.tar:0", (b"", None, changed(self.json, rng)), set())]

    def _folder(self, rng: random.Random) -> list[dict]:
        lines = self.lines.split(b"\n")
        lines[0] = changed(lines[0], rng)
        (self.folder / "captions.jsonl").write_bytes(b"\n".join(lines))
        template = "a {caption}" if rng.random() < 0.2 else None
        return read_some(Folder(str(self.folder), template=template).open())

    def _table(self, rng: random.Random) -> list[dict]:
        path = self.folder / rng.choice(("a.csv", "a.tsv", "a.jsonl"))
        table = self.table.replace(",", "\t") if path.suffix == ".tsv" else self.table
        data = self.lines.replace(b'"file"', b'"image"') if path.suffix == ".jsonl" else b""
        path.write_bytes(change_bytes(data or table.encode(), rng, [self.lines]))
        return read_some(Table(str(path)).open())


def changed(data: bytes, rng: random.Random) -> bytes:
    """JSON with other values, or other bytes."""
    return change_json(data, rng) if rng.random() < 0.6 else change_bytes(data, rng)


def read_some(examples) -> list[dict]:
    """The first two examples."""
    return [examples[i] for i in range(min(2, len(examples)))]


class Configs(Target):
    """Assignments of the command line, and records of runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.assignments = (
            *("stages.main.steps=5", "optim.peak_lr=3e-4", "batch_size=8", "compute.scan=False"),
            *("optim.schedule.warmup=0.1", "model.vision.depth=2", "lengths.budgets=(16,32)"),
            *("objectives.sigmoid.weight=0.5", "logging.profile.start=5", "replica=2"),
            *("stages.0.optim.ema=0.9", "checkpoints.keep_every=10", "data.workers='auto'"),
            *("model.text.vocab_size=1024", "data.shuffle.window=4", "evals=()", "seed=1"),
        )
        origin = {"source": RECIPE, "assignments": list(self.assignments[:2])}
        self.record = json.dumps({"origin": origin}).encode()
        self.path = folder / "config.json"

    def read(self, rng: random.Random) -> None:  # noqa: D102
        if rng.random() < 0.2:
            self.path.write_bytes(changed(self.record, rng))
            load_config(self.path)
            return
        chosen = rng.sample(self.assignments, rng.randint(1, 3))
        changes = [change_assignment(x, rng, self.assignments) for x in chosen]
        load_config(RECIPE, changes).resolved  # noqa: B018


RECIPE = "siglip2_jax.recipes.tiny:config"


def change_assignment(text: str, rng: random.Random, others: Sequence[str]) -> str:
    """An assignment with another value, another path, or other characters."""
    path, _, _ = text.partition("=")
    odd = ("None", "-1", "0", "1e400", "nan", "()", "{}", "[1", "'a'", "1" * 5000, "(" * 300, "")
    action = rng.random()
    if action < 0.4:
        return f"{path}={rng.choice(odd)}"
    if action < 0.6:
        return f"{path}={rng.choice(others).partition('=')[2]}"
    seeds = [other.encode() for other in others]
    return change_bytes(text.encode(), rng, seeds).decode("utf-8", "surrogateescape")


class Checkpoints(Target):
    """Checkpoints of each format: opened, and every tensor read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        embedder = tiny_embedder()
        embedder.save(folder / "valid" / "hf", "hf")
        embedder.save(folder / "valid" / "big_vision.npz", "npz")
        embedder.save(folder / "valid" / "orbax", "orbax")
        files = [x for x in sorted((folder / "valid").rglob("*")) if x.is_file()]
        self.formats = [
            [x for x in files if x.is_relative_to(path)]
            for path in sorted((folder / "valid").iterdir())
        ]

    def read(self, rng: random.Random) -> None:  # noqa: D102
        file = rng.choice(rng.choice(self.formats))
        relative = file.relative_to(self.folder / "valid")
        name, target = relative.parts[0], self.folder / "changed"
        source = self.folder / "valid" / name
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True) if target.is_file() else None
        shutil.copytree(source, target) if source.is_dir() else None
        data = file.read_bytes()
        data = changed(data, rng) if file.suffix == ".json" else change_bytes(data, rng)
        target.joinpath(*relative.parts[1:]).write_bytes(data)
        opened = checkpoints.read(target)
        for tensor in opened.params.values():
            tensor.read()
        if opened.tokenizer:
            Tokenizer.load(opened.tokenizer)


class Tokenizers(Target):
    """Vocabularies of both forms, opened, and used on some texts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = Path(str(TOKENIZER)).read_bytes()
        self.json = json.dumps(from_sentencepiece(self.model)).encode()
        self.path = folder / "tokenizer.model"

    def read(self, rng: random.Random) -> None:  # noqa: D102
        if rng.random() < 0.5:
            self.path.write_bytes(change_bytes(self.model, rng, [self.json]))
        else:
            self.path.write_bytes(changed(self.json, rng))
        tokenizer = Tokenizer.load(self.path)
        ids = tokenizer(TEXTS).ids
        tokenizer.decode(ids[:2])


KINDS: dict[str, type[Target]] = {
    "images": Images,
    "tars": TarFiles,
    "captions": Captions,
    "configs": Configs,
    "checkpoints": Checkpoints,
    "tokenizers": Tokenizers,
}
