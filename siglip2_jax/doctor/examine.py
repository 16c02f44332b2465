"""Runs checks one after the other within a time, in all processes of a run together."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from siglip2_jax.doctor.check import Check, Finding, skipped
from siglip2_jax.errors import reason_of
from siglip2_jax.progress import progress
from siglip2_jax.train.distributed import gather

SECONDS_TO_MEET = 60.0
_SHOWN = 8  # processes of a check that fail, each in a row

Phase = Callable[[], Sequence[Check]]
"""Makes some checks, after those of the phases before have run."""
Agree = Callable[[str], str]
"""From a reason of this process to stop, or "", to one that all processes have."""


@dataclasses.dataclass(frozen=True)
class Examination:
    """Results of all processes.

    Attributes:
      findings: of each check; where processes differ, of each that fails.
      stuck: some work did not end, so that this process cannot end in the usual way.
    """

    findings: tuple[Finding, ...]
    stuck: bool

    @property
    def healthy(self) -> bool:
        """True where nothing fails."""
        return all(finding.status != "FAIL" for finding in self.findings)


def examine(phases: Sequence[Phase], seconds: float) -> Examination:
    """Runs checks; every process of a run calls it with the same ones.

    A check that does not end in time cannot be stopped, and may hold the devices: those after it
    are skipped, as they are where no time is left, or where a process does not answer.

    Args:
      phases: in the order in which they run.
      seconds: for all of them.
    """
    findings, stuck = run_checks(phases, seconds, agree)
    message = {"host": socket.gethostname(), "findings": [x.to_json() for x in findings]}
    answers = gather(json.dumps(message), SECONDS_TO_MEET)
    return Examination(tuple(merge(answers)), stuck)


def agree(reason: str) -> str:
    """The first reason to stop that any process has; "" where none has any."""
    answers = gather(reason, SECONDS_TO_MEET)
    texts = [f"process {i} does not answer" if x is None else x for i, x in enumerate(answers)]
    return next(filter(None, texts), "")


def run_checks(phases: Sequence[Phase], seconds: float, agree: Agree) -> tuple[list[Finding], bool]:
    """Findings of this process, and whether some work did not end."""
    start = time.monotonic()
    findings: list[Finding] = []
    stuck, done = "", 0
    with progress("checking") as show:
        for phase in phases:
            if reason := agree(stuck):  # to make the checks may need what is stuck
                findings.append(skipped("other checks", reason))
                break
            checks = phase()
            total = done + len(checks)
            for check in checks:
                show(done, total, check.name)
                done += 1
                left = check.share * seconds - (time.monotonic() - start)
                late = "" if left > 0 else f"{check.share:.0%} of the {seconds:g} seconds were over"
                if reason := agree(stuck or late):
                    findings.append(skipped(check.name, reason))
                    continue
                ended, more = _run(check, start + seconds - time.monotonic())
                findings += more
                if not ended:
                    stuck = f"{check.name} had not ended"
            show(total, total)
    return findings, bool(stuck)


def _run(check: Check, seconds: float) -> tuple[bool, list[Finding]]:
    """Findings of one check, and whether it ended."""
    findings: list[Finding] = []

    def work() -> None:
        try:
            findings.extend(check.run())
        except Exception as error:
            findings.append(_error(check, _message(error)))

    thread = threading.Thread(target=work, daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(max(seconds, 0.0))
    if not thread.is_alive():
        return True, findings
    message = f"not done after {time.monotonic() - start:.0f} s"
    late = _error(check, message)
    return False, [dataclasses.replace(late, status=check.late)]


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    is_sentence = isinstance(error, ValueError | OSError) and str(error)
    return reason_of(error) if is_sentence else f"{type(error).__name__}: {reason_of(error)}"


def _error(check: Check, sentence: str) -> Finding:
    sentence = sentence if len(sentence) <= 300 else f"{sentence[:300]} …"
    return Finding(check=check.name, status="FAIL", measured=sentence, way_out=check.way_out)


def merge(answers: Sequence[str | None]) -> list[Finding]:
    """Findings of all processes as one list: those of process 0, and all that fail elsewhere.

    Args:
      answers: of each process, JSON; None of one that gave none.
    """
    messages = [None if x is None else json.loads(x) for x in answers]
    if len(messages) == 1 and messages[0]:
        return [Finding.from_json(x) for x in messages[0]["findings"]]
    here = f"all {len(messages)} processes"
    rows: dict[str, list[Finding]] = defaultdict(list)  # by check, in order
    failing: dict[str, list[Finding]] = defaultdict(list)
    for process, message in enumerate(messages):
        if message is None:
            failing["answers"].append(
                Finding(
                    check="answers",
                    status="FAIL",
                    measured=f"process {process} gave none",
                    expected=f"one within {SECONDS_TO_MEET:g} s",
                    way_out=f"look at the host of process {process}",
                    place=f"process {process}",
                )
            )
            continue
        for finding in map(Finding.from_json, message["findings"]):
            rows[finding.check].append(finding)
            if finding.status == "FAIL":
                place = f"process {process} on {message['host']}"
                failing[finding.check].append(dataclasses.replace(finding, place=place))
    merged = [
        row
        for check, results in rows.items()
        for row in _shown(failing[check]) or [dataclasses.replace(results[0], place=here)]
    ]
    return merged + _shown(failing["answers"])


def _shown(findings: list[Finding]) -> list[Finding]:
    """The first of many processes that fail alike."""
    rest = len(findings) - _SHOWN
    if rest <= 0:
        return findings
    last = findings[_SHOWN - 1]
    return [
        *findings[: _SHOWN - 1],
        dataclasses.replace(last, place=f"{last.place}, and {rest} more"),
    ]
