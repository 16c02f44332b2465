"""Options of the compiler reach it, and the state's memory is used again."""

import jax
import jax.numpy as jnp
import pytest

from siglip2_jax.sharding import make_mesh
from siglip2_jax.train import compiler


def step(state, batch):
    return state + batch, {}


def test_options_of_the_platform_in_force(monkeypatch):
    monkeypatch.setitem(compiler.OPTIONS, "cpu", {"xla_of_a_test": "1"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_of_a_test"):
        compiler.jit_step(step).lower(jnp.ones(4), jnp.ones(4)).compile()


def test_the_state_is_given_up():
    state = jnp.ones(8)
    with jax.set_mesh(make_mesh()):
        state, _ = compiler.jit_step(step)(jnp.ones(8), jnp.ones(8))
    assert (state == 2).all()
    text = compiler.jit_step(step).lower(state, state).compile().as_text()
    assert "input_output_alias" in text
