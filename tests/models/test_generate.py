"""Writing, against the decoder run on whole sequences, NumPy's softmax and exhaustive search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax, softmax

from siglip2_jax.models.beam import beam
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.decoder import Decoder, DecoderConfig
from siglip2_jax.models.generate import Prompts, Vocabulary, abstract_decoder, greedy, sample
from siglip2_jax.models.siglip2 import flatten, unflatten

CONFIG = DecoderConfig(
    width=12, depth=2, mlp_dim=16, num_heads=2, vocab_size=7, length=5, memory_dim=8
)
PAD, EOS, WORDS = 0, 1, (2, 3, 4)
VOCABULARY = Vocabulary(EOS, 5)  # ids 5 and 6 mean nothing
B, N, S = 6, 4, CONFIG.length
GIVEN = np.array([1, 0, 2, 1, 3, 0])
PRECISE = {"atol": 2e-5, "rtol": 1e-5}


@functools.cache
def params() -> dict:
    """Everything random, such that what is likely depends on the image."""
    rng, made = np.random.default_rng(0), {}
    for path, leaf in flatten(abstract_decoder(CONFIG)[1]).items():
        scale = leaf.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
        scale = 0.4 if path == "out/kernel" else 3 if "cross" in path else scale
        x = rng.standard_normal(leaf.shape, np.float32) * np.float32(scale)
        made[path] = x + np.float32(path.endswith("scale"))
    return unflatten(made)


@functools.cache
def prompts() -> Prompts:
    """Six images with NaN in their padding, and sequences of which up to three ids are given."""
    rng = np.random.default_rng(1)
    valid = np.arange(N) < np.array([[4], [3], [1], [4], [2], [4]])
    tokens = rng.standard_normal((B, N, 8), np.float32)
    prefix = rng.integers(2, 5, (B, 3)).astype(np.int32)
    prefix[np.arange(3) >= GIVEN[:, None]] = EOS  # what is not given may be anything
    tokens = np.where(valid[..., None], tokens, np.float32(np.nan))
    return Prompts(tokens, valid, prefix, GIVEN.astype(np.int32))


def rows(x: Prompts, which) -> Prompts:
    return jax.tree.map(lambda leaf: leaf[which], x)


def decoder(dtype: str = "float32") -> Decoder:
    graphdef, _ = abstract_decoder(CONFIG, Compute(dtype=dtype))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params()))


@functools.partial(jax.jit, static_argnames=("write", "dtype", "width", "length_penalty", "top_k"))
def run(write, given, dtype="float32", **options):
    return write(decoder(dtype), given, VOCABULARY, **options)


@jax.jit
def read(ids, tokens, valid):
    """Scores of the next token at all positions of whole sequences [B, R, S], in one pass."""
    module = decoder()
    return module.logits(module(ids, tokens, valid, jnp.zeros(ids.shape[:2], bool)))


def whole(ids, given=None) -> np.ndarray:
    """log p [B, R, S, V] of what may be written at each position of given sequences [B, R, S]."""
    given = prompts() if given is None else given
    scores = np.array(read(ids, given.tokens, given.valid), np.float64)
    scores[..., [PAD, 5, 6]] = -np.inf
    return log_softmax(scores, axis=-1)


def ends_at(row, first: int) -> int:
    """Length of the ids up to the end mark, or all of them."""
    ends = [i for i in range(first, S) if row[i] == EOS]
    return ends[0] + 1 if ends else S


def score(row, log_p, first: int) -> float:
    return sum(log_p[i, row[i]] for i in range(first, ends_at(row, first)))


@functools.cache
def every_sequence(first: int) -> np.ndarray:
    """All that can be written after `first` given ids."""
    rows = []
    for n in range(S - first):
        rows += [(*words, EOS) for words in itertools.product(WORDS, repeat=n)]
    rows += itertools.product(WORDS, repeat=S - first)
    return np.array([[0] * first + [*row] + [PAD] * (S - first - len(row)) for row in rows])


@functools.cache
def exhaustive(length_penalty: float) -> list[tuple[list[int], float]]:
    """The best sequence of each image and its score, by trying all."""
    found = []
    for b, first in enumerate(GIVEN):
        given = rows(prompts(), [b])
        ids = every_sequence(first).astype(np.int32)
        ids[:, :first] = given.prefix[:, :first]
        log_p = whole(ids[None], given)[0]
        scores = np.array([score(*row, first) for row in zip(ids, log_p, strict=True)])
        lengths = np.array([ends_at(row, first) - first for row in ids])
        best = np.argmax(scores / lengths**length_penalty)
        found.append((ids[best].tolist(), scores[best]))
    return found


def keys(count: int = B):
    return jax.random.split(jax.random.key(0), count)


def test_greedy_takes_the_maximum_of_whole_passes():
    found = run(greedy, prompts())
    ids, sums = np.full((B, S), PAD, np.int32), np.zeros(B)
    done = np.zeros(B, bool)
    for at in range(S):
        log_p = whole(ids[:, None])[:, 0, at]
        given = at < GIVEN
        column = prompts().prefix[:, min(at, 2)]
        chosen = np.where(given, column, log_p.argmax(axis=1))
        sums += np.where(given | done, 0, log_p[np.arange(B), chosen])
        ids[:, at] = np.where(done, PAD, chosen)
        done |= ~given & (chosen == EOS)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.score, sums, **PRECISE)
    assert found.ids.dtype == jnp.int32
    assert 0 < done.sum() < B and (ids == PAD).any()  # some end, some are cut


def test_a_beam_of_one_is_greedy():
    expected = run(greedy, prompts())
    found = run(beam, prompts(), width=1)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.score, expected.score, **PRECISE)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.slow
def test_a_wide_beam_finds_the_best_of_all(length_penalty):
    # As wide as there are ways to go on at any position: nothing is ever dropped. One image at a
    # time, so that none searches on because another does.
    for b, (ids, total) in enumerate(exhaustive(length_penalty)):
        one = rows(prompts(), [b])
        found = run(beam, one, width=3**S, length_penalty=length_penalty)
        assert found.ids[0].tolist() == ids
        assert found.score[0] == pytest.approx(total, abs=2e-5)


@pytest.mark.slow
def test_what_beams_are_for():
    """The best path need not begin with the best step, and longer ones may be better."""
    best = [ids for ids, _ in exhaustive(0.0)]
    assert run(greedy, prompts()).ids.tolist() != best
    assert [ids for ids, _ in exhaustive(1.0)] != best
    narrow, step = run(beam, prompts(), width=3), run(greedy, prompts())
    assert (narrow.score >= step.score - 1e-5).all() and (narrow.score > step.score + 0.01).any()


def test_beams_share_an_images_keys():
    """Cross-attention reads the image tokens of each image once, whatever the number of beams."""
    text = str(jax.make_jaxpr(lambda x: run(beam, x, width=8))(prompts()))
    assert f"f32[{CONFIG.depth},{B},{N},2,6]" in text
    assert f"[{B * 8},{N}" not in text and f"[{B},8,{N},2,6]" not in text


@pytest.mark.parametrize(
    "write, dtype", [(greedy, "bfloat16"), (beam, "bfloat16"), (sample, "float32")]
)
def test_pads_and_meaningless_ids_are_never_written(write, dtype):
    options = {beam: {"width": 3}, sample: {"keys": keys()}}.get(write, {})
    found = run(write, prompts(), dtype, **options)
    assert found.ids.shape == (B, S) and np.isfinite(found.score).all()
    for row, first, given in zip(found.ids.tolist(), GIVEN, prompts().prefix, strict=True):
        end = ends_at(row, first)
        assert row[:first] == given[:first].tolist()
        assert set(row[first : end - 1]) <= set(WORDS)
        assert row[end - 1] in (EOS, *WORDS) and not any(row[end:])


@pytest.mark.parametrize("write", [greedy, beam, sample])
def test_neither_the_batch_nor_padding_matters(write):
    options = {beam: {"width": 3}, sample: {"keys": keys()}}.get(write, {})
    found = run(write, prompts(), **options)
    order = [4, 2, 5, 0, 1, 3]
    if write is sample:
        options = {"keys": keys()[np.array(order)]}
    mixed = run(write, rows(prompts(), order), **options)
    np.testing.assert_array_equal(mixed.ids, found.ids[np.array(order)])
    np.testing.assert_allclose(mixed.score, found.score[np.array(order)], **PRECISE)

    if write is sample:
        options = {"keys": keys()[2:3]}
    alone = rows(prompts(), [2])  # of which one token is valid
    alone = Prompts(alone.tokens[:, :1], alone.valid[:, :1], alone.prefix, alone.lengths)
    one = run(write, alone, **options)
    np.testing.assert_array_equal(one.ids[0], found.ids[2])
    np.testing.assert_allclose(one.score[0], found.score[2], **PRECISE)


def test_scores_are_those_of_what_was_drawn():
    found = run(sample, prompts(), keys=keys(), temperature=2.0, top_p=0.9)
    log_p = whole(np.asarray(found.ids)[:, None])[:, 0]
    expected = [score(*row) for row in zip(found.ids, log_p, GIVEN, strict=True)]
    np.testing.assert_allclose(found.score, expected, **PRECISE)


def test_without_heat_a_draw_is_greedy():
    expected = run(greedy, prompts())
    for temperature, top_p in ((0.0, 1.0), (0.0, 0.5), (1e-4, 1.0), (1.0, 0.0)):
        found = run(sample, prompts(), keys=keys(), temperature=temperature, top_p=top_p)
        np.testing.assert_array_equal(found.ids, expected.ids)


def kept(p: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """The distribution that is left of another, by its definition."""
    order = np.argsort(-p)[:top_k]
    p_order = p[order] / p[order].sum()
    count = next(n for n in range(1, len(order) + 1) if p_order[:n].sum() >= top_p)
    left = np.zeros_like(p)
    left[order[:count]] = p[order[:count]] / p[order[:count]].sum()
    return left


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(0.7, None, None), (2.5, None, None), (2.5, 3, None), (2.5, None, 0.8)],
)
def test_draws_follow_the_softmax(temperature, top_k, top_p):
    draws = 4000
    one = rows(prompts(), [1] * draws)  # nothing is given
    found = run(sample, one, keys=keys(draws), temperature=temperature, top_k=top_k, top_p=top_p)
    log_p = whole(np.zeros((1, 1, S), np.int32), rows(prompts(), [1]))[0, 0, 0]
    expected = kept(softmax(log_p / temperature), top_k or 7, 1 - 1e-9 if top_p is None else top_p)
    counts = np.bincount(found.ids[:, 0], minlength=7)
    spread = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 4.5 * spread).all()
    assert (expected > 0).sum() < 4 or top_k is top_p is None


def test_other_keys_draw_others():
    seen = {str(run(sample, prompts(), keys=keys(B * 4)[i::4]).ids) for i in range(4)}
    assert len(seen) == 4


def test_wrong_arguments():
    long = Prompts(prompts().tokens, prompts().valid, np.zeros((B, S + 1), np.int32), GIVEN)
    for write, options in ((greedy, {}), (beam, {"width": 2})):
        with pytest.raises(ValueError, match="prefixes have 6 ids, the decoder has 5 positions"):
            run(write, long, **options)
    for options in ({"width": 0}, {"width": 2, "length_penalty": -1.0}):
        with pytest.raises(ValueError, match="width of at least 1 and a length_penalty"):
            run(beam, prompts(), **options)
