"""Rules that tell a sick run from a healthy one; each is one sentence, and says when it holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from siglip2_jax.watch.history import TIME
from siglip2_jax.watch.run import WatchedRun

BLOCK = 20  # lines of which a median is taken
LOOKED_BACK = 200  # lines in which a spike is looked for
SILENCE, FIRST_SILENCE = 600.0, 3600.0  # seconds
HIGHER_IS_BETTER = re.compile(r"eval/.*(@\d+|top\d+|accuracy|recall)$")


class Finding(NamedTuple):
    """Rule that holds.

    Attributes:
      rule: its name.
      sick: true where the run needs help, false where it only deserves a look.
      text: sentence with the numbers.
    """

    rule: str
    sick: bool
    text: str


class Rule(NamedTuple):
    """Check of a run.

    Attributes:
      name: short.
      sick: whether a run on which it holds needs help.
      statement: sentence on when it holds.
      look: gives a sentence with the numbers where it holds; takes the run and the time.
    """

    name: str
    sick: bool
    statement: str
    look: Callable[[WatchedRun, float], str | None]


def judge(run: WatchedRun, now: float) -> list[Finding]:
    """Findings of all rules that hold, the worst first.

    Args:
      run: as it was read.
      now: seconds since 1970.
    """
    findings = [
        Finding(rule.name, rule.sick, text) for rule in RULES if (text := rule.look(run, now))
    ]
    return sorted(findings, key=lambda x: not x.sick)


def verdict(findings: list[Finding]) -> str:
    """Name of the worst finding: "sick", "look", or "healthy" where there is none."""
    if not findings:
        return "healthy"
    return "sick" if findings[0].sick else "look"


def words(seconds: float) -> str:
    """A duration in words."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _failed(run: WatchedRun, now: float) -> str | None:
    return run.end if run.state == "failed" else None


def _no_progress(run: WatchedRun, now: float) -> str | None:
    newest = run.starts[-3:]
    if len(newest) < 3 or run.state == "complete" or len({start.step for start in newest}) > 1:
        return None
    if run.step >= newest[-1].step + newest[-1].save_every:
        return None
    return f"the run has started three times at step {newest[-1].step:,}"


def _stalled(run: WatchedRun, now: float) -> str | None:
    if run.state != "running" or run.alive is None:
        return None
    begun = run.starts[-1].time if run.starts else 0.0
    times = run.history.get(TIME).values()
    times = times[times >= begun]
    pauses = np.diff(times)
    patience = max(SILENCE, 5 * float(pauses.max())) if len(pauses) else FIRST_SILENCE
    silence = now - run.alive
    if silence <= patience:
        return None
    return f"nothing was written for {words(silence)}, after step {run.step:,}"


def _not_finite(run: WatchedRun, now: float) -> str | None:
    names = [
        f"{name} is {series.newest} at step {series.newest_step:,}"
        for name, series in run.history.series.items()
        if name.split("/")[0] in ("loss", "grad_norm", "eval") and not np.isfinite(series.newest)
    ]
    return "; ".join(names) or None


def _diverged(run: WatchedRun, now: float) -> str | None:
    loss = _losses(run)
    if len(loss) < 2 * BLOCK:
        return None
    blocks = np.median(_blocks(loss[:-5]), axis=1)
    best = int(blocks.argmin())
    low, spread = _middle(_blocks(loss[:-5])[best])
    limit = low + max(6 * spread, 0.2 * abs(low), 0.02 * (blocks[0] - low))
    newest = float(np.median(loss[-5:]))
    return f"the loss is {newest:.4g} and was {low:.4g}" if newest > limit else None


def _spike(run: WatchedRun, now: float) -> str | None:
    loss = _losses(run)
    first = max(BLOCK, len(loss) - LOOKED_BACK)
    for i in range(first, len(loss)):
        middle, spread = _middle(loss[max(i - 50, 0) : i])
        if loss[i] > middle + max(8 * spread, 0.5 * abs(middle)):
            step = run.history.get("loss").steps()[i - len(loss)]
            return f"the loss was {loss[i]:.4g} at step {step:,} and {middle:.4g} before"
    return None


def _constant(run: WatchedRun, now: float) -> str | None:
    newest = run.history.get("loss").values(run.stage.first)[-10:]
    if len(newest) < 10 or not newest.min() == newest.max():
        return None
    return f"the loss is {newest[0]:.6g} in ten lines"


def _slower(run: WatchedRun, now: float) -> str | None:
    rates = _of_stage(run, "examples_per_s_per_chip")
    if len(rates) < 3 * BLOCK:
        return None
    before = float(np.percentile(np.median(_blocks(rates[:-BLOCK]), axis=1), 90))
    newest = float(np.median(rates[-BLOCK:]))
    if newest >= 0.75 * before:
        return None
    return f"{newest:.4g} examples/s a chip, and {before:.4g} before"


def _waits(run: WatchedRun, now: float) -> str | None:
    waits = _of_stage(run, "data_wait")[-10:]
    if len(waits) < 10 or (run.starts and run.starts[-1].kind == "cpu"):
        return None
    share = float(np.median(waits))
    return f"{share:.0%} of the time is spent waiting for data" if share > 0.2 else None


def _workers(run: WatchedRun, now: float) -> str | None:
    restarts = run.history.get("data/worker_restarts")
    if not len(restarts) or not restarts.newest:
        return None
    return f"{restarts.newest:.0f} data workers were lost and started again"


def _alarm(run: WatchedRun, now: float) -> str | None:
    """Alarms of the current stage, as a stage that has ended does not take back its own."""
    lasting = [x for x in run.alarms if x.over is None and x.step > run.stage.first]
    return "; ".join(f"since step {x.step:,}, {x.objective}: {x.text}" for x in lasting) or None


def _never_evaluated(run: WatchedRun, now: float) -> str | None:
    last = run.last_step
    if last is None or run.step < 0.1 * last:
        return None
    if any(name.startswith("eval/") for name in run.history.series):
        return None
    return f"{run.step / last:.0%} of the steps are done, and no score was written"


def _score_fell(run: WatchedRun, now: float) -> str | None:
    falls = []
    for name, series in run.history.series.items():
        scores = series.values(run.stage.first)
        if HIGHER_IS_BETTER.fullmatch(name) and len(scores) > 2 and scores[-1] < 0.9 * max(scores):
            falls.append(f"{name} is {scores[-1]:.3f} and was {max(scores):.3f}")
    return "; ".join(falls) or None


def _stopped(run: WatchedRun, now: float) -> str | None:
    if run.state != "stopped":
        return None
    return f"SIGTERM has stopped the run after step {run.step:,}; the same command resumes it"


def _losses(run: WatchedRun) -> np.ndarray:
    loss = _of_stage(run, "loss")
    return loss[np.isfinite(loss)]


def _of_stage(run: WatchedRun, name: str) -> np.ndarray:
    """The values of a number in the newest step's stage."""
    return run.history.get(name).values(run.stage.first)


def _blocks(values: np.ndarray) -> np.ndarray:
    """Values in rows of a block's length; those that fill none, the oldest, are left out."""
    count = len(values) // BLOCK
    return values[len(values) - count * BLOCK :].reshape(count, BLOCK)


def _middle(values: np.ndarray) -> tuple[float, float]:
    """Median of some values, and their spread: that of a normal distribution's middle half."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


RULES = (
    Rule("failed", True, "The run has ended with an error.", _failed),
    Rule(
        "no progress",
        True,
        "The last three starts were at the same step, and no later checkpoint is due yet.",
        _no_progress,
    ),
    Rule(
        "stalled",
        True,
        "The run has not ended, and for 10 minutes and five times the longest pause since its "
        "start nothing was written; for an hour where fewer than two lines were.",
        _stalled,
    ),
    Rule(
        "not finite",
        True,
        "The newest loss, gradient norm or score is NaN or infinite.",
        _not_finite,
    ),
    Rule(
        "diverged",
        True,
        "The median loss of the newest 5 lines is above the best median of 20 lines of the stage "
        "by 20 %, by six times their spread, and by 2 % of what the stage has gained.",
        _diverged,
    ),
    Rule("constant", True, "The loss of the newest ten lines of the stage is the same.", _constant),
    Rule(
        "loss spike",
        False,
        "In the newest 200 lines of the stage a loss is above the median of the 50 lines before by "
        "half of it, and by eight times their spread.",
        _spike,
    ),
    Rule(
        "slower",
        False,
        "The median rate of the newest 20 lines is below three quarters of what the stage had.",
        _slower,
    ),
    Rule(
        "input-bound",
        False,
        "The median share of time spent waiting for data is above 20 % in the newest ten lines, "
        "on anything but CPUs.",
        _waits,
    ),
    Rule("lost workers", False, "Data workers were lost since the last start.", _workers),
    Rule("alarm", False, "An objective's alarm lasts.", _alarm),
    Rule(
        "never evaluated",
        False,
        "A tenth of the steps is done, and no evaluator has measured the model.",
        _never_evaluated,
    ),
    Rule(
        "score fell",
        False,
        "The newest of at least three recalls or accuracies of the stage is below nine tenths of "
        "their best.",
        _score_fell,
    ),
    Rule("stopped", False, "SIGTERM has stopped the run before its last step.", _stopped),
)
