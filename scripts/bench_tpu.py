"""Step time, memory and FLOPs on TPU v5e of the code as it is, beside the targets of the project.

Compiles the steps of a few configs for slices that are not there (extra `tpu`, Linux x86; one to
ten minutes each on two cores) and prints one table, with the figures of the official implementation
compiled and counted in the same way. What was compiled before, here or by `siglip2 plan`, is not
compiled again. Times are the compiler's estimates: what they leave out is in
docs/performance.md, with the results.

    python scripts/bench_tpu.py [--only TEXT] [--json FILE]

Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from siglip2_jax.config import ResolvedStage, TrainConfig, load_config
from siglip2_jax.data.lengths import Lengths
from siglip2_jax.planner.calibration import CALIBRATION
from siglip2_jax.planner.estimate import DoesNotFit
from siglip2_jax.planner.plan import StepPlan, plan_step
from siglip2_jax.planner.results import user_results
from siglip2_jax.planner.search import remat_text
from siglip2_jax.planner.topology import topology_mesh
from siglip2_jax.progress import progress
from siglip2_jax.recipes import locate
from siglip2_jax.train.chips import GIB, V5E

LIMIT = V5E.hbm_bytes / GIB
RING = "stages.0.objectives.sigmoid.implementation=ring"
SAME = "compute.remat_up_to=()"  # at all lengths
FAST = (SAME, "compute.scan=False", "compute.remat=none")
MIX, BUDGETS, MEAN_MFU = "B/16 NaFlex, the mix", Lengths().budgets, 0.58
SMALL = (SAME, "compute.scan=True", "compute.remat=full", RING, "replica=4")


@dataclasses.dataclass(frozen=True)
class Point:
    """One program and what is expected of it.

    Attributes:
      name: what it is called in the table.
      config: a recipe's name.
      official: the official implementation at this point, in words.
      milliseconds: a step may take at most so many.
      gib: a chip may need at most so many.
      ratio: FLOPs of the program by those of the model, at most.
      mfu: share of the chips' peak, at least.
      settings: changes to the config, as of `--set`.
      stage: of the config; None is the first.
      topology: of a slice.
      slices: how many.
      budget: patches of an image.
      batch_size: examples of a step; None is the stage's own.
    """

    name: str
    config: str
    official: str = ""
    milliseconds: float | None = None
    gib: float = LIMIT
    ratio: float | None = None
    mfu: float | None = None
    settings: tuple[str, ...] = ()
    stage: str | None = None
    topology: str = "v5e:16x16"
    slices: int = 1
    budget: int = 256
    batch_size: int | None = None

    def load(self) -> tuple[TrainConfig, ResolvedStage, int]:
        """The config with its settings, the stage, and examples of a step."""
        config = load_config(locate(self.config), self.settings)
        stage = config.resolved[0] if self.stage is None else config.find_stage(self.stage)
        own = stage.lengths.batch_size(self.budget, stage.read_size)
        return config, stage, self.batch_size or own

    @property
    def chips(self) -> int:
        """Number of chips, all slices together."""
        return self.slices * math.prod(map(int, self.topology.partition(":")[2].split("x")))

    @property
    def command(self) -> str:
        """The plan of this program alone (with the config's own batch)."""
        options = [f"--topology {self.topology}", f"--budget {self.budget}"]
        options += [f"--stage {self.stage}"] if self.stage else []
        options += [f"--slices {self.slices}"] if self.slices > 1 else []
        options += [f"--set {setting}" for setting in self.settings]
        return f"siglip2 plan {self.config} {' '.join(options)}"

    def plan(self) -> StepPlan | None:
        """Compiles it; None if the compiler finds no room."""
        config, stage, batch_size = self.load()
        mesh = topology_mesh(self.topology, self.slices, config.replica)
        try:
            return plan_step(stage, self.budget, mesh, batch_size, user_results())
        except DoesNotFit:
            return None

    def missed(self, plan: StepPlan | None) -> list[str]:
        """The targets that a plan does not meet, in words."""
        if plan is None or not plan.fits:
            return ["does not fit"]
        found = {
            "ms": (plan.seconds * 1e3, self.milliseconds),
            "GiB": (plan.memory["peak"] / GIB, self.gib),
            "FLOPs": (plan.flops / plan.model_flops, self.ratio),
            "MFU": (-plan.mfu, None if self.mfu is None else -self.mfu),
        }
        return [name for name, (x, most) in found.items() if most is not None and x > most]

    @property
    def target(self) -> str:
        """The targets in words."""
        words = [f"<= {self.milliseconds:g} ms"] if self.milliseconds else []
        words += [f"<= {self.gib:g} GiB"] if self.gib < LIMIT else []
        words += [f"<= {self.ratio:g} x FLOPs"] if self.ratio else []
        words += [f"MFU >= {self.mfu:g}"] if self.mfu else []
        return ", ".join(words) or "fits"


POINTS = (
    Point("B/16 NaFlex", "b16_naflex", "590 ms, 2.8 GiB", 215, ratio=1.01, settings=FAST),
    Point("the same, least memory", "b16_naflex", "590 ms, 2.8 GiB", 245, 2.6, settings=SMALL),
    Point("B/16 NaFlex", "b16_naflex", "823 ms", 330, settings=FAST, budget=1024, batch_size=8192),
    Point("B/16, 256 px", "b16_256", "318 ms, 3.7 GiB (unrolled 244 ms, 13.6 GiB)", 210),
    Point("L/16, 256 px", "l16_256", "1,332 ms, 5.2 GiB", 640),
    Point("So400m/16, 256 px", "so400m_256", "1,734 ms, 14.6 GiB", 880),
    Point("g-opt/16, 256 px", "g_opt_256", milliseconds=2150),
    Point(
        "B/16 NaFlex, 8 slices",
        "b16_naflex",
        "705 ms, 7.0 GiB",
        290,
        settings=FAST,
        slices=8,
        batch_size=262_144,
    ),
    Point(
        "B/16 NaFlex, larger than memory",
        "b16_naflex",
        "5,856 ms, 14.5 GiB at 262,144, its largest",
        settings=(*FAST, RING, "stages.0.optim.accumulate=16"),
        batch_size=524_288,
    ),
    *(Point(MIX, "b16_naflex", budget=budget) for budget in BUDGETS),
    Point("So400m NaFlex", "so400m_naflex", "1,734 ms, 14.6 GiB"),
    Point("So400m NaFlex", "so400m_naflex", mfu=0.5, budget=1024),
    Point("B/16, captions", "siglip2_b16", milliseconds=510, stage="main"),
    Point("B/16, everything", "siglip2_b16", milliseconds=900, stage="distill"),
    Point(
        "B/16, everything, 8 slices",
        "siglip2_b16",
        milliseconds=125,
        settings=("stages.distill.compute.remat=none",),
        stage="distill",
        slices=8,
    ),
    Point("So400m, everything", "siglip2_so400m", milliseconds=430, stage="distill", slices=8),
    Point("fine-tuning B/16 NaFlex", "finetune", mfu=0.5, topology="v5e:2x4"),
    Point("the same by LoRA", "finetune_lora", topology="v5e:2x4"),
    Point("a decoder on frozen B/16", "decoder_on_frozen", topology="v5e:4x4"),
    Point("LiT, B/16", "lit", mfu=0.5, topology="v5e:4x4"),
)
HEAD = (
    "program",
    "chips",
    "batch x patches",
    "layers, kept",
    "ms",
    "MFU",
    "GiB",
    "FLOPs / model",
    "HBM ms",
    "links ms",
    "official",
    "target",
    "met",
)


def cells(point: Point, plan: StepPlan | None) -> list[str]:
    """One program as a row of the table."""
    _, stage, batch_size = point.load()
    compute = stage.compute.at_length(point.budget)
    kept = remat_text(compute.remat)
    if isinstance(compute.remat, float):
        kept = f"inputs of the first {compute.remat:.0%}"
    row = [
        point.name,
        f"{point.chips:,}",
        f"{batch_size:,} x {point.budget:,}",
        f"{'loop' if compute.scan else 'unrolled'}, {KEPT.get(kept, kept)}",
    ]
    numbers = ["", "", "", "", "", ""]
    if plan is not None:
        numbers = [
            f"**{plan.seconds * 1e3:,.0f}**",
            f"{plan.mfu:.3f}",
            f"{plan.memory['peak'] / GIB:.2f}",
            f"{plan.flops / plan.model_flops:.2f}",
            f"{plan.hbm_seconds * 1e3:.0f}",
            f"{plan.ici_seconds * 1e3:.0f}",
        ]
    missed = ", ".join(point.missed(plan))
    return [*row, *numbers, point.official, point.target, f"no: {missed}" if missed else "yes"]


KEPT = {"none": "all", "full": "inputs", "dots": "products"}


def line(words: list[str] | tuple[str, ...]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(words)} |"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="programs whose name or config has this in it")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser.parse_args()


def main() -> int:
    """Runs the script."""
    args = parse_args()
    wanted = args.only.lower()
    points = [point for point in POINTS if wanted in f"{point.name} {point.config}".lower()]
    if not points:
        print(f"no program has {args.only!r} in its name or config", file=sys.stderr)
        return 2
    versions = {name: version(name) for name in ("jax", "libtpu")}
    compiled_by = ", ".join(f"{name} {number}" for name, number in versions.items())
    print(compiled_by, CALIBRATION.note, sep="\n", end="\n\n")
    print(line(HEAD), line(["---"] * len(HEAD)), sep="\n", flush=True)
    rows: list[dict[str, Any]] = []
    mixed: list[float] = []
    with progress("compiling") as show:
        for i, point in enumerate(points):
            show(i, len(points), point.name)
            plan = point.plan()
            print(line(cells(point, plan)), flush=True)
            if plan is not None and point.name == MIX:
                mixed.append(plan.mfu)
            rows.append(
                dataclasses.asdict(point)
                | {"command": point.command, "missed": point.missed(plan)}
                | {"plan": None if plan is None else plan.to_json()}
            )
            show(i + 1, len(points))
    missed = any(row["missed"] for row in rows)
    figures = {"versions": versions, "calibration": CALIBRATION.to_json(), "programs": rows}
    if len(mixed) == len(BUDGETS):
        figures["mean_mfu"] = mean = sum(mixed) / len(mixed)
        missed |= mean < MEAN_MFU
        print(f"\nmean MFU of {MIX}: {mean:.3f}, target >= {MEAN_MFU:g}")
    if args.json:
        part = args.json.with_name(f"{args.json.name}.part")
        part.write_text(json.dumps(figures, indent=2))
        part.replace(args.json)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
