"""Plans: what the compiler says of a real topology, and every published config."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from planner.plans import step_plan

from siglip2_jax.config import load_config
from siglip2_jax.models.low_rank import is_pair
from siglip2_jax.models.siglip2 import flatten
from siglip2_jax.objectives.sigmoid import ring_loss
from siglip2_jax.planner.estimate import DoesNotFit, chip_of, local_bytes
from siglip2_jax.planner.max_batch import largest_batch
from siglip2_jax.planner.plan import StepPlan, plan_step
from siglip2_jax.planner.report import report
from siglip2_jax.planner.topology import compile_only, topology_mesh
from siglip2_jax.recipes import locate, summaries
from siglip2_jax.sharding import BATCH, make_mesh
from siglip2_jax.train.chips import V5E
from siglip2_jax.train.inputs import abstract_batch, check_batches
from siglip2_jax.train.start import abstract_state
from siglip2_jax.train.step import Program

pytest.importorskip("libtpu", reason="needs the extra `tpu`")
pytestmark = pytest.mark.tpu

TOPOLOGY = {
    "lit": "v5e:4x4",
    "finetune": "v5e:2x4",
    "finetune_lora": "v5e:2x4",
    "own_pairs": "v5e:2x4",
    "decoder_on_frozen": "v5e:4x4",
    "refer_on_frozen": "v5e:4x4",
    "tiny": "v5e:2x2",
}
LONG = ("siglip2_b16", "siglip2_so400m")  # many stages; siglip2_g_opt has the same but for sizes
PUBLISHED = [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
    for name in summaries()
    if not name.startswith("small_")
]


@pytest.fixture(scope="module")
def tiny():
    changes = ["model.vision.depth=1", "model.text.depth=1"]
    return load_config(locate("tiny"), changes)


@pytest.fixture(scope="module")
def plan(tiny) -> StepPlan:
    return plan_step(tiny.resolved[0], 64, topology_mesh("v5e:2x2"))


def test_memory_is_what_the_shapes_say(plan, tiny):
    shapes = Program(tiny.resolved[0]).shapes
    total = sum(4 * math.prod(x.shape) for x in shapes.values())
    split = plan.memory["parameters"]
    assert total / 4 <= split < total / 4 * 1.2  # only vectors and the like are whole
    assert 2 * split <= plan.memory["optimizer"] < 2 * split + 64
    assert plan.memory["average"] == 0
    rows = 32 // 4
    assert plan.memory["inputs"] == rows * (64 * (768 * 4 + 8 + 1) + 64 * 4)
    assert plan.memory["peak"] > split + plan.memory["optimizer"] + plan.memory["activations"]


def test_the_numbers_hang_together(plan):
    assert plan.chip is V5E and plan.chips == 4 and plan.fits
    assert 0.9 < plan.flops / plan.model_flops < 1.3
    assert plan.collectives and plan.hbm_bytes > plan.memory["parameters"]
    rooflines = plan.compute_seconds, plan.hbm_seconds, plan.ici_seconds
    assert plan.seconds == max(plan.scheduled, *rooflines) > 0
    assert plan.mfu == pytest.approx(plan.model_flops / plan.seconds / 197e12)
    assert plan.examples_per_second == pytest.approx(8 / plan.seconds)
    assert plan.days == pytest.approx(plan.seconds * 300 * 0.5 / 86400)
    assert plan.untimed == len([op for op in plan.operations if op.cycles is None and notable(op)])
    assert plan.scheduled == sum(op.cycles or 0 for op in plan.operations) / V5E.clock_hz


def notable(op):
    if op.collectives or op.opcode.endswith(("-start", "send", "recv")):
        return False
    return op.opcode in ("custom-call", "fusion") or op.hbm_bytes >= 4096 * op.trips


def test_operations_for_machines(plan):
    found = json.loads(json.dumps(plan.to_json()))["operations"]
    assert set(found) == {"time", "hbm", "collectives"}
    amounts = [op["hbm_bytes"] for op in found["hbm"]]
    assert amounts == sorted(amounts, reverse=True) and len(amounts) == 50
    assert amounts[0] == max(op.hbm_bytes for op in plan.operations)
    slowest = found["time"][0]
    assert slowest["cycles"] == max(op.cycles or 0 for op in plan.operations)
    assert (
        slowest["timed_by"] in ("schedule", "links") and slowest["trips"] >= 1 and slowest["name"]
    )
    assert all(sum(op["collectives"].values()) > 0 for op in found["collectives"])


def test_no_line_of_a_library_is_shown(plan):
    sources = [op.source for op in plan.operations if op.source]
    assert sources and all("siglip2_jax/" in source for source in sources)
    text = report([plan], "v5e:2x2")
    assert "site-packages" not in text
    for title in ("most time", "most HBM traffic", "most communication"):
        rows = text.partition(f"  {title}\n")[2].splitlines()[:5]
        assert len(rows) == 5 and all("  x" in row for row in rows)
        assert all(".py:" in row or "(the compiler's own)" in row for row in rows), rows


def test_the_largest_batch_is_compiled_and_fits(tiny, monkeypatch):
    """With memory that grows as 1 GiB and 3 MiB an example, on chips of 15.75 GiB."""
    compiled = []

    def pretend(stage, budget, mesh, batch_size=None, results=None):
        batch_size = batch_size or 32
        compiled.append(batch_size)
        return dataclasses.replace(
            planned,
            batch_size=batch_size,
            memory={"peak": 2**30 + 2**21 * batch_size, "waiting": 2**20 * batch_size},
        )

    planned = step_plan(peak=0)
    monkeypatch.setattr("siglip2_jax.planner.max_batch.plan_step", pretend)
    found = largest_batch(tiny.resolved[0], 64, topology_mesh("v5e:2x2"))
    assert found.batch_size == 5032 and found.fits and 5032 in compiled
    assert len(compiled) <= 8


def test_too_large_for_any_batch(tiny, monkeypatch):
    huge = step_plan(peak=2**36)
    monkeypatch.setattr("siglip2_jax.planner.max_batch.plan_step", lambda *_, **__: huge)
    with pytest.raises(ValueError, match="needs 64.0 GiB a chip with one example"):
        largest_batch(tiny.resolved[0], 64, topology_mesh("v5e:2x2"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_config_fits_its_topology_in_shape(name):
    """Everything of a plan but the compiler's minutes: shapes, shardings, batches, schedules."""
    config = load_config(locate(name))
    mesh = topology_mesh(TOPOLOGY.get(name, "v5e:16x16"), replica=config.replica)
    fsdp = mesh.shape["fsdp"]
    check_batches(config, mesh.size)
    for stage in config.resolved:
        program = Program(stage)
        state = abstract_state(program, mesh)
        total = sum(4 * math.prod(x.shape) for x in program.shapes.values())
        learning = sum(4 * math.prod(program.shapes[path].shape) for path in program.trainable)
        whole = sum(4 * math.prod(x.shape) for path, x in program.shapes.items() if is_pair(path))
        assert local_bytes(state.params) < 1.05 * (total - whole) / fsdp + whole + 2**22
        assert local_bytes(state.optimizer) < 2.1 * (learning / fsdp + whole) + 2**23
        table = flatten(state.params)["text/embed/table"]
        assert table.sharding.spec == PartitionSpec(None, "fsdp")
        for budget in stage.lengths.budgets:
            size = stage.lengths.batch_size(budget, stage.batch_size)
            batch = abstract_batch(stage, budget, size, NamedSharding(mesh, BATCH))
            assert batch.image.pixels.sharding.shard_shape(batch.image.pixels.shape)[0] > 0
    if name == "lit":
        assert not any(path.startswith("vision/") for path in program.trainable)


def test_ring_memory_does_not_grow_with_the_chips():
    """128 examples a chip, width 768, on 4, 64 and 256 chips of v5e; value and gradient."""
    used = []
    for topology in ("v5e:2x2", "v5e:8x8", "v5e:16x16"):
        mesh = topology_mesh(topology)
        rows = jax.ShapeDtypeStruct(
            (128 * mesh.size, 768), jnp.float32, sharding=NamedSharding(mesh, BATCH)
        )
        scalar = jax.ShapeDtypeStruct(
            (), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec())
        )
        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(ring_loss, argnums=(0, 1, 2, 3)))
            compiled = compile_only(step.lower(rows, rows, scalar, scalar))
        used.append(compiled.memory_analysis().temp_size_in_bytes)
    assert max(used) < 8e6  # one part of the texts is 0.4 MB; all of them are 100 MB
    assert used[0] >= used[1] == used[2]


@pytest.mark.parametrize("kind", ["RESOURCE_EXHAUSTED", "INTERNAL"])
def test_a_program_that_the_compiler_gives_up_on(tiny, monkeypatch, kind):
    error = jax.errors.JaxRuntimeError(f"{kind}: Ran out of memory on HBM.\nLargest: x")

    def give_up(lowered, reports):
        raise error

    monkeypatch.setattr("siglip2_jax.planner.estimate.compile_only", give_up)
    expected = DoesNotFit if kind == "RESOURCE_EXHAUSTED" else jax.errors.JaxRuntimeError
    with pytest.raises(expected, match="Ran out of memory on HBM") as found:
        plan_step(tiny.resolved[0], 32, topology_mesh("v5e:2x2"))
    if expected is DoesNotFit:
        assert "at 32 patches and batch 32 does not fit (Ran" in str(found.value)
        assert "\n" not in str(found.value)


def test_unknown_chips():
    with pytest.raises(ValueError, match="rates of a cpu are not known"):
        chip_of(make_mesh(1, jax.devices()[:2]))


@pytest.mark.slow
def test_the_command(tmp_path):
    """Runs in a process of its own, without any hint in the environment."""
    command = [
        sys.executable,
        "-c",
        "import sys; from siglip2_jax.cli import main; sys.exit(main())",
    ]
    args = ["plan", "tiny", "--topology", "v5e:2x2", "--budget", "32", "--price", "1.5", "--json"]
    args += ["--set", "model.vision.depth=1", "--set", "model.text.depth=1"]
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TPU_"))
    } | {"XDG_CACHE_HOME": str(tmp_path)}

    def plan(directory):
        return subprocess.run(
            [*command, *args], capture_output=True, text=True, env=environment, cwd=directory
        )

    done = plan(tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mesh"] == {"replica": 1, "fsdp": 4}
    (step,) = found["steps"]
    assert step["budget"] == 32 and step["fits"]
    assert found["total"]["chip_hours"] == step["chip_hours"] == step["days"] * 24 * 4
    assert found["total"]["dollars"] == 1.5 * step["chip_hours"]
    kept = tmp_path / "siglip2_jax" / "plans"
    (program,) = kept.glob("program-*")
    assert len(list(kept.glob("step-*"))) == 1
    program.unlink()
    again = plan(tmp_path)
    assert again.stdout == done.stdout
    assert not program.exists()  # neither compiled nor traced
    bad = subprocess.run(
        [*command, "plan", "tiny", "--topology", "v5e:3x3"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert bad.returncode == 2 and "unknown TPU topology" in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
