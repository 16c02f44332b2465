"""Input of a stage: rates at which this host reads and prepares it, against what a step needs."""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import NamedTuple

from siglip2_jax.config import Data, ResolvedStage
from siglip2_jax.data.blocks.shuffle import block_shuffle
from siglip2_jax.data.blocks.windows import READERS
from siglip2_jax.data.parquet import Parquet
from siglip2_jax.data.prepare import Prepare
from siglip2_jax.data.records import Records
from siglip2_jax.data.sources import Folder, Source
from siglip2_jax.data.tars import Tars
from siglip2_jax.data.tools.bench import Read, leaves, prepare_rate, read_rate, together
from siglip2_jax.data.workers.machine import usable_cores, worker_count
from siglip2_jax.doctor.check import Finding, at_least, failed, passed

_KINDS = {".tar": Tars, ".parquet": Parquet, ".array_record": Records}
_WAY_OUT = (
    "more data.workers and data.threads, data.scaled_decode=true, or a host with more cores; "
    "`siglip2 data bench` measures each part"
)


class Rates(NamedTuple):
    """Images a second, on all cores of this host.

    Attributes:
      read: from the source.
      prepared: by all cores.
    """

    read: float
    prepared: float


def source_of(pattern: str) -> Source:
    """The source of files or a folder.

    Args:
      pattern: tars, Parquet or ArrayRecord files by their ending, else a folder with captions.
    """
    kind = _KINDS.get(PurePath(pattern).suffix)
    return Folder(pattern) if kind is None else kind(pattern)


def read_rates(data: Data, seconds: float) -> list[Read]:
    """Reads each source in turn, as training would: by as many threads, in blocks or not."""
    opened = [(source, share, source.open()) for source, share in leaves(data.source)]
    in_blocks = block_shuffle(data.shuffle, [examples for *_, examples in opened]) is not None
    threads = max(1, worker_count(data.workers)) * (READERS if in_blocks else data.threads)
    return [
        read_rate(
            examples,
            f"{source!r:.80}",
            share=share,
            seconds=seconds,
            threads=min(threads, 256),
            in_blocks=in_blocks,
        )
        for source, share, examples in opened
    ]


def measure_input(stage: ResolvedStage, prepare: Prepare, seconds: float) -> Rates:
    """Rates of a stage's input, at its shortest length.

    Args:
      stage: what to read.
      prepare: makes rows of its examples.
      seconds: for each source, to read and to prepare.
    """
    reads, budget = read_rates(stage.data, seconds), min(stage.lengths.budgets)
    prepared = [(x.share, prepare_rate(x.sample, prepare, budget, seconds)) for x in reads]
    read = together([(x.share, x.rate) for x in reads])
    return Rates(read, usable_cores() * together(prepared))


def check_reading(data: Data, seconds: float) -> list[Finding]:
    """Findings on reading alone, without what a step needs."""
    return [_readable(read) for read in read_rates(data, seconds)]


def _readable(read: Read) -> Finding:
    check, shown = f"data: {read.source}", f"{read.rate:,.0f} images/s"
    if read.examples == 0:
        return failed(check, f"{read.bad} images and none that can be used", "some", _WAY_OUT)
    return passed(check, shown)


def judge_input(rates: Rates, need: float) -> list[Finding]:
    """Rates against the images that this host's devices train on in a second."""
    return [
        at_least(f"data: {name}", rate, need, "{:,.0f} images/s", _WAY_OUT)
        for name, rate in zip(("read", "prepared"), rates, strict=True)
    ]


def with_source(stage: ResolvedStage, pattern: str | None) -> ResolvedStage:
    """A stage that reads other files, if any are given."""
    if pattern is None:
        return stage
    data = dataclasses.replace(stage.data, source=source_of(pattern))
    return dataclasses.replace(stage, data=data)
