"""Train the tiny tokenizer that ships with the package, for the demo and the default tests.

    python scripts/make_demo_tokenizer.py COCO_MINI/annotations.jsonl

reads one JSON object a line with `license` and `captions`, keeps the captions of images under
CC BY and CC BY-SA, and writes `siglip2_jax/demo/tokenizer.model`. The same file gives the same
bytes again. The vocabulary has the layout of Gemma's: pad 0, eos 1, bos 2, unk 3, user-defined
pieces, 256 byte pieces, then what BPE finds.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

FREE_LICENSES = ("Attribution License", "Attribution-ShareAlike License")
DESTINATION = Path(__file__).parents[1] / "siglip2_jax" / "demo" / "tokenizer.model"
VOCAB_SIZE = 1024

# A few of Gemma's user-defined pieces, so that the demo takes the same paths as the real one.
USER_DEFINED = ["<mask>", "\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]


def captions(annotations: Path) -> Iterator[str]:
    """The lower-cased captions that may be shipped, in file order."""
    with annotations.open(encoding="utf-8") as lines:
        for line in lines:
            photo = json.loads(line)
            if photo["license"] in FREE_LICENSES:
                yield from (" ".join(caption.lower().split()) for caption in photo["captions"])


def train(texts: Iterator[str]) -> bytes:
    """A serialised SentencePiece BPE model of `VOCAB_SIZE` pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=USER_DEFINED,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    """Parse the command line, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("annotations", type=Path, help="JSON lines with `license` and `captions`")
    model = train(captions(parser.parse_args().annotations))
    DESTINATION.parent.mkdir(parents=True, exist_ok=True)
    DESTINATION.write_bytes(model)
    print(f"{DESTINATION.name}: {VOCAB_SIZE} pieces, {len(model)} bytes")


if __name__ == "__main__":
    main()
