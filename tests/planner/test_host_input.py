"""Needs of a host's input, computed by hand for a small and for a large plan."""

import dataclasses

import pytest
from planner.plans import step_plan

from siglip2_jax.config import load_config
from siglip2_jax.data.blocks.shuffle import BlockShuffle
from siglip2_jax.planner.host_input import Assumptions, host_input, request_dollars
from siglip2_jax.planner.report import report
from siglip2_jax.recipes import locate

# An image a core, 30 KB, blocks of 64: the figures of a v5e host of a batch of 32,768.
ASSUMED = Assumptions(images_per_core_second=100.0, image_bytes=30e3, images_per_request=64)


@pytest.fixture(scope="module")
def stage():
    stage = load_config(locate("tiny"), []).resolved[0]
    data = dataclasses.replace(stage.data, shuffle=BlockShuffle(lanes=1024, window=32), prefetch=3)
    lengths = dataclasses.replace(stage.lengths, budgets=(64,), shares=None, batch_scale=())
    return dataclasses.replace(stage, data=data, lengths=lengths, batch_size=32768)


def large():
    """A step of 32,768 examples in 166 ms on 512 chips: 64 hosts of 8."""
    plan = step_plan(seconds=0.166, batch_size=32768)
    memory = {"peak": 2**30, "inputs": 64 * 2**20}
    return dataclasses.replace(plan, chips=512, steps=1000, share=0.25, memory=memory)


def test_a_large_host(stage):
    needs = host_input(large(), stage, ASSUMED)
    assert needs.chips == 8
    assert needs.images_per_second == pytest.approx(512 / 0.166)
    assert needs.bytes_per_second == pytest.approx(512 / 0.166 * 30e3)
    assert needs.requests_per_second == pytest.approx(8 / 0.166)
    assert needs.cores == 31  # 30.8
    # 16 lanes of 32 blocks of 64 images, twice: 2 GB.
    assert needs.window_bytes == 2 * 16 * 32 * 64 * 30e3
    assert needs.buffer_bytes == 8 * 64 * 2**20 * 4  # three batches ready and one on its way


def test_dollars_are_of_all_steps():
    """A quarter of 1,000 steps of 32,768 images in blocks of 64: 128,000 requests."""
    assert request_dollars([large()], ASSUMED) == pytest.approx(128_000 * 0.0004 / 1000)
    assert request_dollars([large(), large()], ASSUMED) == pytest.approx(0.1024)


def test_a_host_with_few_chips_and_the_report(stage):
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, shuffle=True))
    names = "parameters optimizer average reference inputs activations code peak".split()
    plan = step_plan(seconds=2.0, batch_size=64)
    plan = dataclasses.replace(plan, memory=dict.fromkeys(names, 2**20))
    needs = host_input(plan, stage, ASSUMED)
    assert (needs.chips, needs.images_per_second, needs.cores) == (4, 32.0, 1)
    text = report([plan], "v5e:2x2", [needs], ASSUMED)
    assert "  memory       0.00 GiB of 15.75: fits (GiB: parameters 0.00, " in text
    assert "host of 4 chips: 32 images/s, 1 CPU cores at 100 images/s a core\n" in text
    assert " 1 MB/s at 30 KB an image, 0.0 GB for batches on their way\n" in text
    assert "from a store: 0.5 requests/s of 64 images, " in text
    assert "from a store" not in report([plan], "v5e:2x2")
