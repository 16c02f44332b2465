"""Plans of embedding: arithmetic by hand, and what the compiler says."""

import jax
import pytest
from planner.plans import embed_plan, small_model

from siglip2_jax.planner.embed import (
    batch_sizes,
    fastest,
    host_mesh,
    plan_embed,
    plan_job,
    split_into_hosts,
)
from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.planner.host_input import Assumptions
from siglip2_jax.train.chips import V5E

GIB = 2**30
# 100 images a core, 50 KB, 100 in a request at 0.4 dollars a million.
ASSUMED = Assumptions(100.0, 50e3, 100, 0.4e-6)


def test_a_job_by_hand():
    job = plan_job(embed_plan(), 2, ASSUMED, items=72_000_000, dollars_per_chip_hour=1.5)
    assert job.images_per_second == 20_000
    assert job.cores == 200
    assert job.bytes_per_second == 1e9 and job.requests_per_second == 200
    assert job.transfer_bytes_per_second == 16e9
    assert job.hours == pytest.approx(0.5) and job.chips == 16
    assert job.chip_hours == pytest.approx(8) and job.dollars == pytest.approx(12)
    assert job.request_dollars == pytest.approx(720_000 * 0.4e-6)


def test_too_few_cores_limit_the_rate():
    """100 cores prepare half of what eight chips embed: twice the hours and the cost."""
    plan = embed_plan()
    job = plan_job(plan, 2, ASSUMED, items=72_000_000, dollars_per_chip_hour=1.5, host_cores=100)
    assert (job.images_per_second, job.cores) == (10_000, 200)
    assert job.hours == pytest.approx(1) and job.dollars == pytest.approx(24)
    assert plan_job(plan, 2, ASSUMED, host_cores=300) == plan_job(plan, 2, ASSUMED)
    assert plan_job(plan, 2, ASSUMED).dollars is None


def test_the_fastest_batch_fits():
    slow, fast, large = embed_plan(400, 0.025), embed_plan(800), embed_plan(1600, 0.04, gib=17)
    assert fastest([slow, fast, large]) is fast
    assert (
        fastest([embed_plan(800), embed_plan(400, 0.02)]).batch_size == 400
    )  # as fast, and smaller
    assert fastest([large]) is None


def test_batches_have_as_many_patches_at_any_budget():
    assert batch_sizes(256) == [32, 64, 128, 256]
    assert batch_sizes(1024) == [8, 16, 32, 64]
    assert batch_sizes(100_000) == [1]


@pytest.mark.parametrize(
    ("topology", "chips", "host", "hosts"),
    [
        ("v5e:1x1", 1, "v5e:1x1", 1),
        ("v5e:2x4", 8, "v5e:2x4", 1),
        ("v5e:16x16", 256, "v5e:2x2", 64),
        ("v6e:4x4", 16, "v6e:2x2", 4),
        ("v5p:4x4x4", 64, "v5p:2x2x1", 16),
    ],
)
def test_hosts_of_a_slice(topology, chips, host, hosts):
    assert split_into_hosts(topology, chips) == (host, hosts)


@pytest.mark.tpu
def test_the_compiler_of_one_host():
    pytest.importorskip("libtpu")
    mesh, hosts = host_mesh("v5e:4x4")
    assert hosts == 4 and dict(mesh.shape) == {"replica": 4, "fsdp": 1}
    plan = plan_embed(small_model(), mesh, max_num_patches=64, batch_size=8)
    assert plan.patches == 256  # fixed resolution has no budget
    assert (plan.batch_size, plan.chips) == (32, 4) and plan.chip is V5E
    # Every chip holds all parameters, the text tower's table of 256,000 tokens too.
    table = 256_000 * 768 * 4
    assert table < plan.memory["parameters"] < table + 0.2e9
    assert plan.memory["inputs"] == 8 * 256 * (768 * 2 + 2 * 4 + 1)
    assert plan.image_bytes == 256 * (768 * 2 + 2 * 4 + 1)
    assert plan.memory["parameters"] < plan.memory["peak"] < plan.memory["parameters"] + GIB
    assert 0.9 < plan.flops / plan.model_flops < 1.2
    assert 0 < plan.seconds < 0.1 and plan.mfu < 1
    assert sum(plan.collectives.values()) < 4 * 32 * 768 * 4  # the embeddings alone


@pytest.mark.tpu
def test_what_the_compiler_gives_up_on(monkeypatch):
    pytest.importorskip("libtpu")

    def give_up(lowered, reports):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM.")

    monkeypatch.setattr("siglip2_jax.planner.estimate.compile_only", give_up)
    with pytest.raises(DoesNotFit, match="embedding 4 images of 256 patches a chip does not fit"):
        plan_embed(small_model(), host_mesh("v5e:1x1")[0], max_num_patches=64, batch_size=4)
