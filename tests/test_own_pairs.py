"""Recipe for one's own pairs: what it takes from its base, and what learns."""

import math

import pytest

from siglip2_jax.config import Pretrained
from siglip2_jax.demo import TOKENIZER
from siglip2_jax.recipes import finetune, finetune_lora, own_pairs
from siglip2_jax.testing import TINY, tiny_embedder
from siglip2_jax.train.step import Program


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("base") / "model"
    model = tiny_embedder()
    model.text_norm = "unicode_lower"
    model.save(path, "orbax")
    return str(path)


def trainable(base: str, learn: str) -> set[str]:
    """Paths that learn."""
    return set(Program(own_pairs.config(base=base, learn=learn).resolved[0]).trainable)


def test_the_base_decides_sizes_tokenizer_and_preprocessing(base):
    run = own_pairs.config(base=base, base_batch=1024, batch=16)
    assert run.model == TINY and run.preprocessing.text_norm == "unicode_lower"
    assert run.tokenizer == f"{base}/{TOKENIZER.name}"
    (stage,) = run.stages
    assert stage.start == Pretrained(source=base, bias_shift=math.log(64))
    assert own_pairs.config(base=base, tokenizer="mine").tokenizer == "mine"
    released = own_pairs.config()
    assert released.model == finetune.config().model
    start = Pretrained(source=own_pairs.RELEASE, bias_shift=math.log(512))
    assert released.stages[0].start == start


def test_what_learns(base):
    everything = trainable(base, "all")
    towers = {name: {x for x in everything if x.startswith(name)} for name in ("text/", "vision/")}
    assert everything == towers["text/"] | towers["vision/"] | {"t", "b"}
    assert trainable(base, "text") == everything - towers["vision/"]
    assert trainable(base, "image") == everything - towers["text/"]
    pairs = trainable(base, "adapters")
    assert pairs - {"t", "b"} == {x for x in pairs if x.startswith("adapters/")} and "t" in pairs
    with pytest.raises(ValueError, match="learn is 'both'; it must be one of all, adapters, image"):
        own_pairs.config(learn="both")


@pytest.mark.parametrize(("learn", "usual"), [("all", finetune), ("adapters", finetune_lora)])
def test_rates_are_those_of_the_recipes_it_calls(learn, usual):
    """The same at the usual rate; three times the rate is three times as fast."""
    (wanted,) = usual.config().stages
    for factor in (1, 3):
        (stage,) = own_pairs.config(learn=learn, lr=1e-5 * factor).stages
        assert stage.optim.peak_lr == pytest.approx(wanted.optim.peak_lr * factor, rel=1e-12)
        assert stage.optim.groups == wanted.optim.groups and stage.adapters == wanted.adapters


def test_augmentation_can_be_left_out():
    for augment, count in ((True, 2), (False, 0)):
        assert len(own_pairs.config(augment=augment).stages[0].data.transforms) == count
