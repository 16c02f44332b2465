"""Open-vocabulary boxes by OWLv2 (Minderer et al., arXiv 2306.09683); extra `regions`.

On the implementation of transformers; only offline jobs use it, never training. OWL-ViT, which
annotated the data of OWLv2 and of SigLIP 2, is refused: there OWLv2's boxes are shares of the image
padded to a square, OWL-ViT's of the image itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from PIL.Image import Image

from siglip2_jax.data.prefetch import batched
from siglip2_jax.data.regions import Region
from siglip2_jax.data.tools.ngrams import PROMPTS

if TYPE_CHECKING:
    import torch

DEFAULT_REPO = "google/owlv2-large-patch14-ensemble"
_TEXTS = 512  # of one batch


class Owlv2Detector:
    """OWLv2 with an ensemble of prompts; a `Detector`.

    A query's embedding is the mean, over the prompts, of unit text embeddings. Each of the model's
    boxes keeps its best query; overlapping boxes are not suppressed.

    Attributes:
      repo: where the weights are from.
      threshold: boxes whose best query scores less are dropped, 0 to 1.
      prompts: templates with `{}` for the query.
      device: "cpu", "cuda", …
    """

    def __init__(
        self,
        repo: str = DEFAULT_REPO,
        device: str | None = None,
        *,
        threshold: float = 0.1,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        """Loads the model.

        Args:
          repo: a Hugging Face repository id or directory of an OWLv2 model.
          device: where to run; None takes a GPU if there is one.
          threshold: the lowest score of a box that is kept, 0 to 1.
          prompts: templates with `{}` for the query.

        Raises:
          ValueError: the extra `regions` is not installed, or the model is none of OWLv2.
          OSError: the model cannot be read.
        """
        try:
            import torch
            from transformers import AutoConfig, Owlv2ForObjectDetection, Owlv2Processor
        except ImportError as error:
            raise ValueError(
                "OWLv2 needs transformers and torch; pip install 'siglip2_jax[regions]', or use "
                "annotated boxes"
            ) from error
        try:
            kind = AutoConfig.from_pretrained(repo).model_type
            if kind != "owlv2":
                raise ValueError(f"{repo} is a model of the type {kind}, expected owlv2")
            self._processor = Owlv2Processor.from_pretrained(repo)
            model = Owlv2ForObjectDetection.from_pretrained(repo)
        except OSError as error:
            reason = str(error).strip().partition("\n")[0]
            raise OSError(
                f"the OWLv2 model {repo} cannot be read ({reason}); give a directory, or a "
                "repository id with the network on"
            ) from error
        self.repo, self.threshold, self.prompts = repo, threshold, tuple(prompts)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = cast(Any, model).eval().to(self.device)  # its annotations are wrong
        self._embedded: tuple[tuple[str, ...], torch.Tensor] | None = None  # the last queries

    def detect(self, image: Image, queries: Sequence[str]) -> list[Region]:
        """Boxes with their best query, in the order of the model's patches.

        Args:
          image: in RGB.
          queries: what to look for, at least one; the end of a prompt that is too long for the
            text tower (16 pieces, the marks included) is lost.
        """
        import torch

        with torch.inference_mode():
            features, boxes = self._boxes(image)
            # [1, patches, queries]
            logits, _ = self._model.class_predictor(features, self._embed(queries)[None])
            scores, best = logits[0].sigmoid().max(dim=-1)
            kept = scores >= self.threshold
            detections = zip(
                self._corners(boxes[kept], image).tolist(),
                best[kept].tolist(),
                scores[kept].tolist(),
                strict=True,
            )
            return [
                Region((ymin, xmin, ymax, xmax), queries[int(index)], score)
                for (ymin, xmin, ymax, xmax), index, score in detections
                if ymin < ymax and xmin < xmax  # not one wholly in the padding
            ]

    def _boxes(self, image: Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [1, patches, width] and boxes [patches, 4]: centre x, y, width, height."""
        pixels = self._processor.image_processor(images=image, return_tensors="pt").pixel_values
        features, _ = self._model.image_embedder(pixel_values=pixels.to(self.device))
        flat = features.flatten(1, 2)
        return flat, self._model.box_predictor(flat, features)[0]

    def _embed(self, queries: Sequence[str]) -> torch.Tensor:
        """The queries' embeddings [queries, width]: means of unit vectors over the prompts.

        A fixed list, which comes with every image, is embedded once.
        """
        import torch

        key = tuple(queries)
        if self._embedded is not None and self._embedded[0] == key:
            return self._embedded[1]
        texts = [prompt.replace("{}", query) for query in queries for prompt in self.prompts]
        towers, parts = self._model.owlv2, []
        length = self._model.config.text_config.max_position_embeddings
        for batch in batched(texts, _TEXTS):
            tokens = self._processor.tokenizer(
                batch, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).to(self.device)
            pooled = towers.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            parts.append(torch.nn.functional.normalize(towers.text_projection(pooled), dim=-1))
        embeddings = torch.cat(parts).unflatten(0, (len(queries), len(self.prompts))).mean(dim=1)
        self._embedded = key, embeddings
        return embeddings

    def _corners(self, boxes: torch.Tensor, image: Image) -> torch.Tensor:
        """Boxes as shares of the image; the model saw it padded to a square on the right or below.

        Returns:
          ymin, xmin, ymax, xmax [n, 4], cut to the image.
        """
        import torch

        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        side = max(image.size)
        scale = torch.tensor([side / image.width, side / image.height], device=boxes.device)
        low, high = ((centre + sign * half) * scale for sign in (-1, 1))
        return torch.cat([low.flip(-1), high.flip(-1)], dim=-1).double().clamp(0, 1)

    def __repr__(self) -> str:
        return f"Owlv2Detector({self.repo!r}, threshold={self.threshold}, prompts={self.prompts})"
