"""The DPT decoder against transformers', grid by grid and in one padded batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip2_jax.benchmarks.dense.dpt import DPT
from siglip2_jax.types import Features

GRIDS = (4, 4), (5, 3), (2, 6), (1, 1)
WIDTH, FUSED, BUDGET = 16, 12, 16


def random_blocks(rng) -> list[Features]:
    grid = np.array(GRIDS, np.int32)
    valid = np.arange(BUDGET) < grid.prod(1)[:, None]
    pooled = jnp.array(rng.standard_normal((len(GRIDS), WIDTH)), jnp.float32)
    shape = len(GRIDS), BUDGET, WIDTH
    tokens = [rng.standard_normal(shape).astype(np.float32) for _ in range(DPT.blocks)]
    return [Features(jnp.array(x), pooled, pooled, valid, grid) for x in tokens]


def copied(neck, head) -> dict[str, jax.Array]:
    """Weights of transformers' modules by our names."""
    found = {}

    def put(path, layer, kernel):
        found[path] = jnp.array(kernel.detach().numpy())
        if layer.bias is not None:
            found[f"{path}/bias"] = jnp.array(layer.bias.detach().numpy())

    def conv(path, layer):
        put(path, layer, layer.weight.permute(2, 3, 1, 0))

    def dense(path, layer):
        put(path, layer, layer.weight.flatten(1).T)

    stage = neck.reassemble_stage
    for k in range(4):
        dense(f"{k}/readout", stage.readout_projects[k][0])
        dense(f"{k}/project", stage.layers[k].projection)
        if k < 2:
            resize = stage.layers[k].resize
            put(f"{k}/resize", resize, resize.weight.permute(0, 2, 3, 1).flatten(1))
        conv(f"{k}/level", neck.convs[k])
        fusion = neck.fusion_stage.layers[3 - k]
        dense(f"{k}/merge", fusion.projection)
        for unit, layer in (("skip", fusion.residual_layer1), ("join", fusion.residual_layer2)):
            if k < 3 or unit == "join":
                conv(f"{k}/{unit}/0", layer.convolution1)
                conv(f"{k}/{unit}/1", layer.convolution2)
    conv("3/resize", stage.layers[3].resize)
    conv("head/0", head.head[0])
    conv("head/1", head.head[2])
    dense("head/2", head.head[4])
    return found


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")  # of other packages, on import
def test_scores_are_those_of_transformers():
    """Also where a side is odd, which makes maps of neighbouring scales differ by a pixel."""
    torch = pytest.importorskip("torch")
    dpt = pytest.importorskip("transformers.models.dpt.modeling_dpt")
    config = dpt.DPTConfig(
        hidden_size=WIDTH,
        num_attention_heads=2,
        neck_hidden_sizes=[2, 4, 8, 16],
        fusion_hidden_size=FUSED,
    )
    torch.manual_seed(0)
    neck, head = dpt.DPTNeck(config), dpt.DPTDepthEstimationHead(config)
    weights, blocks = copied(neck, head), random_blocks(np.random.default_rng(0))
    expected_shapes = {k: x.shape for k, x in DPT(FUSED).initial(WIDTH, 1, 0).items()}
    assert {k: x.shape for k, x in weights.items()} == expected_shapes
    # Without its last ReLU, half of the scores would be the same 0.
    head.head[5] = torch.nn.Identity()
    found, size = jax.jit(DPT(FUSED).scores, static_argnums=2)(weights, blocks, (5, 6))
    for i, (rows, columns) in enumerate(GRIDS):
        hidden = []
        for block in blocks:
            own = np.concatenate([block.pooled[i][None], block.tokens[i, : rows * columns]])
            hidden.append(torch.tensor(own)[None])
        with torch.inference_mode():
            expected = head(neck(hidden, rows, columns))[0].numpy()
        assert tuple(size[i]) == expected.shape
        scores = found[i, : expected.shape[0], : expected.shape[1], 0]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(scores / scale, expected / scale, atol=3e-6)


@pytest.mark.slow
def test_neighbours_in_a_batch_do_not_matter():
    """Padding, its content and its size, changes no output."""
    decoder, blocks = DPT(FUSED), random_blocks(np.random.default_rng(0))
    weights = decoder.initial(WIDTH, 5, seed=1)
    assert all(np.isfinite(x).all() for x in weights.values())
    scores = jax.jit(decoder.scores, static_argnums=2)
    found, size = scores(weights, blocks, (5, 6))
    assert found.shape == (4, 16 * 6, 16 * 6, 5)
    alone = [jax.tree.map(lambda x: x[:1], block) for block in blocks]
    other, own = scores(weights, alone, (4, 4))
    assert tuple(own[0]) == tuple(size[0]) == (64, 64)
    np.testing.assert_allclose(found[0, :64, :64], other[0], atol=1e-5)
