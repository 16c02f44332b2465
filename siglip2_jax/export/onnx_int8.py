"""Int8 weights and products for exported ONNX graphs, refused where they gain or lose too much.

Activations are quantised as they come, one scale a tensor ("dynamic"), so nothing is calibrated.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from siglip2_jax.demo import shipped_examples
from siglip2_jax.evals.retrieval import Retrieval
from siglip2_jax.export.onnx_embedder import OnnxEmbedder
from siglip2_jax.inference.embedder import Embedder

LEAST_CONVERTED = 0.5  # share of the products with weights
LEAST_MEAN_COSINE = 0.99
LEAST_COSINE = 0.95
MOST_RECALL_LOST = 0.02


@dataclasses.dataclass(frozen=True)
class Int8:
    """Quantises the graphs of a model, and compares what they give before and after.

    Attributes:
      retrieval: measured before and after; its examples are those whose cosines are reported. None
        compares cosines on the images and captions that ship with the package.
    """

    retrieval: Retrieval | None = None

    def __call__(self, source: Path, target: Path, embedder: Embedder) -> dict[str, Any]:
        """Writes quantised graphs.

        Args:
          source: directory of the graphs in float32.
          target: directory to write them to.
          embedder: the model that they are of.

        Returns:
          For each graph the number of products with weights and how many of them were converted;
          cosines of embeddings before and after; recall before and after.

        Raises:
          ValueError: fewer than half of the products with weights were converted, or cosines or
            recall fall below the bounds of this module.
        """
        report: dict[str, Any] = {}
        for path in sorted(source.glob("*.onnx")):
            report[path.stem] = quantize(path, target / path.name)
        before, after = OnnxEmbedder(embedder, source), OnnxEmbedder(embedder, target)
        images, texts, budget = self._samples()
        for name, rows, others in (
            ("image", *(x.embed_images(images, max_num_patches=budget) for x in (before, after))),
            ("text", *(x.embed_texts(texts) for x in (before, after))),
        ):
            report[name]["cosine"] = _cosines(rows, others, name)
        if self.retrieval is not None:
            report["recall"] = _recall(self.retrieval(before), self.retrieval(after))
        return report

    def _samples(self) -> tuple[list[Any], list[str], int]:
        """Images and texts, and the token budget of the images."""
        if self.retrieval is None:
            examples = shipped_examples()
            captions = [caption for example in examples for caption in example.captions]
            return [example.image for example in examples], captions, 256
        source = self.retrieval.source.open()
        count = min(100, self.retrieval.count or len(source), len(source))
        rows = [source[i] for i in range(count)]
        captions = [caption for row in rows for caption in row["captions"]]
        return [row["image"] for row in rows], captions, self.retrieval.max_num_patches


def quantize(source: Path, target: Path) -> dict[str, int]:
    """Quantises a graph.

    Returns:
      The number of products with weights, and of those that were converted.

    Raises:
      ValueError: fewer than half were converted.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    beside = source.with_name(f"{source.name}.data").exists()
    quantize_dynamic(source, target, per_channel=True, use_external_data_format=beside)
    products = count_weight_products(onnx.load(source, load_external_data=False))
    written = onnx.load(target, load_external_data=False).graph.node
    converted = sum(node.op_type == "MatMulInteger" for node in written)
    if not products or converted < LEAST_CONVERTED * products:
        raise ValueError(
            f"{source.name}: only {converted} of {products} products with weights can be int8, "
            f"expected at least {LEAST_CONVERTED:.0%}; the graph would hardly be smaller or "
            "faster, so leave out --int8"
        )
    return {"products": products, "converted": converted}


def count_weight_products(model: Any) -> int:
    """Number of a graph's matrix products of something with what only depends on constants."""
    constants = {x.name for x in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        fixed = [name in constants for name in node.input if name]
        if all(fixed):
            constants.update(node.output)
        count += node.op_type in ("MatMul", "Gemm", "Einsum") and any(fixed[:2]) and not all(fixed)
    return count


def _cosines(
    before: Float[np.ndarray, "n E"], after: Float[np.ndarray, "n E"], name: str
) -> dict[str, float]:
    """The mean and the least cosine of rows; both must be within the bounds."""
    cosines = np.sum(before * after, axis=-1)
    mean, least = round(float(cosines.mean()), 4), round(float(cosines.min()), 4)
    if not (mean >= LEAST_MEAN_COSINE and least >= LEAST_COSINE):
        raise ValueError(
            f"int8 changes {name} embeddings too much: their cosines to those in float32 are "
            f"{mean} on average and {least} at least, expected {LEAST_MEAN_COSINE} and "
            f"{LEAST_COSINE}; leave out --int8"
        )
    return {"mean": mean, "least": least}


def _recall(before: dict[str, float], after: dict[str, float]) -> dict[str, dict[str, float]]:
    """Recall before and after; none may fall by more than the bound."""
    for name, recall in before.items():
        if not recall - after[name] <= MOST_RECALL_LOST + 1e-9:
            raise ValueError(
                f"int8 loses too much: {name} falls from {recall:.3f} to {after[name]:.3f}, at "
                f"most {MOST_RECALL_LOST} is expected; leave out --int8"
            )
    return {name: {"before": before[name], "after": after[name]} for name in before}
