"""Model FLOPs, counted from the sizes: what MFU divides by a chip's peak.

Counted are the matrix products of one pass, a multiply-add as 2: patch embedding; query, key, value
and out projections; attention scores and their product with the values, over all positions, padding
included; the MLPs; the attention-pooling head, whose one query needs no keys and no values (see
`pool.AttentionPool`); and the text head, which reads one vector. Not counted are the token
lookup, the interpolation of positions, norms, softmax and other elementwise work, nor anything a
program computes again. This is the usual convention (PaLM, arXiv 2204.02311, appendix B).

The backward pass counts as two forward passes, one for the gradient of each factor, so training is
3x forward. B/16 with 256 patches and 64 tokens, at a global batch of 32,768 with its logits, is
22.00 TFLOPs a chip on 256 chips (22.23 with the keys and values that others compute to pool).
"""

from __future__ import annotations

from collections.abc import Collection

from siglip2_jax.models.config import ModelConfig, TextConfig, Tower, VisionConfig


def forward_flops(config: ModelConfig, num_patches: int) -> int:
    """FLOPs of both towers for one image and one text.

    Args:
      config: sizes.
      num_patches: N, patches of the image, padding included.

    Returns:
      FLOPs.
    """
    return vision_flops(config.vision, num_patches) + _text(config.text)


def training_flops(
    config: ModelConfig,
    num_patches: int,
    frozen: Collection[str] = (),
    idle: Collection[str] = (),
) -> int:
    """FLOPs of the towers for one example, forward and backward.

    Args:
      config: sizes.
      num_patches: N, patches of the image, padding included.
      frozen: which of "vision" and "text" are not trained; their backward pass is not counted.
      idle: which of them do not run at all.

    Returns:
      FLOPs.

    Raises:
      ValueError: `frozen` or `idle` names something that is not a tower.
    """
    flops = {"vision": vision_flops(config.vision, num_patches), "text": _text(config.text)}
    for argument, names in {"frozen": frozen, "idle": idle}.items():
        if unknown := sorted(set(names) - set(flops)):
            raise ValueError(f"{argument} names {unknown}, but the towers are 'vision' and 'text'")
    running = {name: once for name, once in flops.items() if name not in idle}
    return sum(once * (1 if name in frozen else 3) for name, once in running.items())


def contrastive_flops(batch: int, width: int) -> int:
    """FLOPs of the forward pass of all logits between `batch` images and `batch` texts.

    Args:
      batch: B, the global batch.
      width: E, size of the embeddings.

    Returns:
      FLOPs of the whole batch, over all chips; training takes 3x as many.
    """
    return 2 * batch * batch * width


def vision_flops(config: VisionConfig, num_patches: int) -> int:
    """FLOPs of the vision tower for one image, forward.

    Args:
      config: sizes.
      num_patches: N, patches of the image, padding included.

    Returns:
      FLOPs.
    """
    width = config.width
    embed = 2 * num_patches * (config.patch_size**2 * 3) * width
    return embed + _encoder(config, num_patches) + _pool(config, num_patches)


def _text(config: TextConfig) -> int:
    pool = _pool(config, config.length) if config.pool == "map" else 0
    return _encoder(config, config.length) + pool + 2 * config.width * config.embed_dim


def _pool(tower: Tower, tokens: int) -> int:
    """Scores and pooled tokens of every head, then values, outputs and the MLP."""
    return 4 * tokens * tower.width * tower.num_heads + 4 * tower.width**2 + _mlp(1, tower)


def _encoder(tower: Tower, tokens: int) -> int:
    return tower.depth * (_attention(tokens, tokens, tower.width) + _mlp(tokens, tower))


def _attention(queries: int, keys: int, width: int) -> int:
    query_and_out = 2 * 2 * queries * width * width
    key_and_value = 2 * 2 * keys * width * width
    scores_and_mix = 2 * 2 * queries * keys * width  # over all heads
    return query_and_out + key_and_value + scores_and_mix


def _mlp(tokens: int, tower: Tower) -> int:
    return 2 * 2 * tokens * tower.width * tower.mlp_dim
