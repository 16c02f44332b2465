"""Plans as text: what `siglip2 plan` prints on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from siglip2_jax.planner.calibration import CALIBRATION
from siglip2_jax.planner.hlo.program import AMOUNTS, merged, top
from siglip2_jax.planner.hlo.walk import Operation
from siglip2_jax.planner.host_input import Assumptions, HostInput, describe
from siglip2_jax.planner.plan import StepPlan
from siglip2_jax.planner.search import Trial, pareto
from siglip2_jax.train.chips import GIB

_SHOWN = 5  # operations of each kind
_KEYS = re.compile(r"\[\\?'([^'\\]+)\\?'\]")
_TITLES = {"time": "most time", "hbm": "most HBM traffic", "collectives": "most communication"}


def report(
    plans: Sequence[StepPlan],
    topology: str,
    needs: Sequence[HostInput] = (),
    assumed: Assumptions | None = None,
) -> str:
    """Plans one after the other, per chip and step.

    Args:
      plans: of steps of one run.
      topology: what they are for, in words.
      needs: what their input needs, of each plan or of none.
      assumed: by which those were computed; None for the defaults.

    Returns:
      Lines without a last newline.
    """
    assumed = assumed or Assumptions()
    inputs = [describe(its_needs, assumed) for its_needs in needs] or [[]] * len(plans)
    blocks = [_block(plan, topology, lines) for plan, lines in zip(plans, inputs, strict=True)]
    return "\n\n".join(blocks)


def _block(plan: StepPlan, topology: str, input_lines: list[str]) -> str:
    sizes, chip = plan.memory, plan.chip
    fits = "fits" if plan.fits else "DOES NOT FIT"
    parts = ("parameters", "optimizer", "average", "reference", "inputs", "activations", "code")
    where = ", ".join(f"{name} {sizes[name] / GIB:.2f}" for name in parts if sizes[name])
    waiting = sizes.get("waiting", 0)
    beside = f" and {waiting / GIB:.2f} of batches that wait" if waiting else ""
    traffic = ", ".join(f"{kind} {count / 1e6:.0f}" for kind, count in plan.collectives.items())
    ratio = plan.flops / plan.model_flops
    lines = [
        f"stage {plan.stage}, {plan.budget} patches, batch {plan.batch_size:,} on {topology} "
        f"({plan.chips:,} chips)",
        f"  memory       {sizes['peak'] / GIB:.2f} GiB{beside} of {chip.hbm_bytes / GIB:.2f}: "
        f"{fits} (GiB: {where})",
        f"  FLOPs        {plan.flops / 1e12:.2f} T, {ratio:.2f} x the model's "
        f"{plan.model_flops / 1e12:.2f} T",
    ]
    if plan.uncounted:
        lines.append(f"               ({plan.uncounted} kernels have no FLOP estimate)")
    lines += [
        f"  HBM          {plan.hbm_bytes / 1e9:.1f} GB",
        f"  collectives  MB: {traffic or 'none'}",
        f"  roofline     compute {plan.compute_seconds * 1e3:.1f} ms, HBM "
        f"{plan.hbm_seconds * 1e3:.1f} ms, links {plan.ici_seconds * 1e3:.1f} ms",
        f"  step         {plan.seconds * 1e3:.1f} ms estimated, MFU {plan.mfu:.3f}, "
        f"{plan.examples_per_second:.1f} examples/s per chip, {plan.days:.2f} days",
    ]
    if waited := sum(op.cycles or 0 for op in plan.operations if op.timed_by == "links"):
        milliseconds = waited / chip.clock_hz * 1e3
        lines.append(f"               ({milliseconds:.1f} ms of it wait for collectives)")
    if plan.untimed:
        lines.append(f"               ({plan.untimed} operations are not in the estimate)")
    return "\n".join(lines + input_lines + _largest(plan))


def _largest(plan: StepPlan) -> list[str]:
    """The operations with most time, HBM traffic and communication."""
    operations = merged(plan.operations)
    units = {
        "time": lambda op: f"{op.cycles / plan.chip.clock_hz * 1e3:8.1f} ms",
        "hbm": lambda op: f"{op.hbm_bytes / 1e9:8.2f} GB",
        "collectives": lambda op: f"{op.collective_bytes / 1e6:8.1f} MB",
    }
    lines = []
    for kind, amount in AMOUNTS.items():
        largest = top(operations, amount, _SHOWN)
        lines += [f"  {_TITLES[kind]}"] if largest else []
        lines += [f"  {units[kind](op)}  x{op.trips:<5} {_name(op)}" for op in largest]
    return lines


def _name(op: Operation) -> str:
    """Name of an operation in the JAX program, its line, and who timed it."""
    if not (op.op_name or op.source):  # copies between memories and layouts, mostly
        return f"{op.opcode:<24.40} (the compiler's own)"
    if not op.source and (keys := _KEYS.findall(op.op_name)):  # the same, of an argument
        return f"{op.opcode:<24.40} {'/'.join(keys)} (the compiler's own)"
    name = op.op_name.rsplit("/", 1)[-1] or op.name
    source = re.sub(r".*siglip2_jax/", "", op.source)
    notes = {"cost estimate": " (by its own cost estimate)", "links": " (by the links' rate)"}
    note = notes.get(op.timed_by or "", "")
    return f"{name:<24.40} {source}{note}".rstrip()


def search_table(trials: Sequence[Trial], title: str) -> str:
    """Table of a search so far: fastest first, then the settings that do not fit.

    Args:
      trials: in any order.
      title: what was searched, in words.

    Returns:
      Lines without a last newline.
    """
    best = {trial.candidate for trial in pareto(trials)}
    ranked = sorted(trials, key=lambda trial: (not trial.fits, trial.example_seconds))
    head = (
        f"  {'batch':>9}  {'layers':<8}  {'remat':<28}  {'GiB':>6}  {'ms':>8}  {'us/example':>10}"
    )
    lines = [title, f"{head}  {'MFU':>5}"]
    for trial in ranked:
        mark = "*" if trial.candidate in best else " "
        lines.append(f"{mark} {row(trial)}")
    legend = "* nothing else that fits is both faster and smaller"
    return "\n".join([*lines, legend, CALIBRATION.note])


def row(trial: Trial) -> str:
    """One trial in a line, in the columns of `search_table`."""
    candidate, plan = trial.candidate, trial.plan
    layers = "scan" if candidate.scan else "unrolled"
    start = f"{candidate.batch_size:>9,}  {layers:<8}  {candidate.saved:<28}"
    if plan is None:
        return f"{start}  DOES NOT COMPILE: out of memory"
    numbers = (
        f"{start}  {plan.memory['peak'] / GIB:6.2f}  {plan.seconds * 1e3:8.1f}  "
        f"{trial.example_seconds * 1e6:10.3f}  {plan.mfu:5.3f}"
    )
    return numbers if plan.fits else f"{numbers}  DOES NOT FIT"
