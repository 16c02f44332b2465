"""The whole step for a GPU, as far as the program that CUDA's compiler would get."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from train.processes import CONFIGS

from siglip2_jax.config import TrainConfig, load_config
from siglip2_jax.models.compute import Compute
from siglip2_jax.models.kernels import attention
from siglip2_jax.train.inputs import abstract_batch
from siglip2_jax.train.step import Program


def lowered(config: TrainConfig, index: int) -> str:
    made = Program(config.resolved[index])
    shapes = jax.eval_shape(made.init_params, jax.random.key(0))
    state = jax.eval_shape(made.init_state, shapes, shapes if made.selector else None)
    batch = abstract_batch(made.stage, 16, made.stage.read_size)
    return jax.jit(made.step).trace(state, batch).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1], ids=["all losses", "curated"])
def test_attention_of_the_whole_step_is_cudnn(monkeypatch, index):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_generation", lambda: 8)
    # Its version is asked for, and no GPU is there to answer.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    config = load_config(Path(CONFIGS) / "everything.py")
    text = lowered(dataclasses.replace(config, compute=Compute(dtype="bfloat16")), index)
    calls = re.findall(r"custom_call @(\S*?)\(", text)
    forward, backward = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
    assert calls.count(forward) >= calls.count(backward) >= 2  # towers of images and of texts
    assert not [name for name in calls if "tpu" in name or "pallas" in name]
    float32 = lowered(dataclasses.replace(config, compute=Compute()), index)
    assert "__cudnn" not in float32  # which has no program for it
