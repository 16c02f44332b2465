"""Mutated inputs, in short: each kind's are read or refused, and all violations are noticed."""

import importlib.util
import multiprocessing
import random
import sys
from pathlib import Path

import pytest

from siglip2_jax.preprocess.image_file import ImageError

CAMPAIGNS = Path(__file__).parents[2] / "scripts" / "campaigns"
CASES = {"images": 40, "tars": 15, "captions": 40, "configs": 20, "checkpoints": 6, "tokenizers": 8}
SLOW = {"checkpoints", "tokenizers"}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(CAMPAIGNS))
    try:
        spec = importlib.util.spec_from_file_location("fuzz_inputs", CAMPAIGNS / "fuzz_inputs.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(CAMPAIGNS))
    return module


@pytest.mark.parametrize(
    "kind", [pytest.param(x, marks=pytest.mark.slow if x in SLOW else ()) for x in CASES]
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd files
def test_mutated_files_are_read_or_refused(script, tmp_path, kind):
    target, outcomes = script.KINDS[kind](tmp_path), set()
    for number in range(CASES[kind]):
        outcome, problem = script.outcome_of(target, random.Random(f"{kind} 7 {number}"))
        assert problem is None, (number, problem)
        outcomes.add(outcome)
    assert outcomes == {"read", "refused"}


class Broken:
    """A target that raises."""

    def __init__(self, error):
        self.error = error

    def read(self, rng):
        raise self.error


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (TypeError("no"), "TypeError: no"),
        (ValueError("of another module, where nobody has said what to do"), "raised elsewhere"),
    ],
)
def test_errors_that_are_no_refusals(script, error, problem):
    outcome, found = script.outcome_of(Broken(error), random.Random(0))
    assert outcome == "refused" and found.startswith(problem)


@pytest.mark.parametrize("text", ["two\nlines of a long message", "short", "long " * 2000])
def test_messages_that_are_no_sentences(script, monkeypatch, text):
    monkeypatch.setattr(script, "PACKAGE", str(Path(__file__).parent))
    outcome, found = script.outcome_of(Broken(ImageError(text)), random.Random(0))
    assert outcome == "refused" and found.startswith("no sentence: ImageError")


def followed(script, *reports, hangs=False):
    """Follows a process that sends these reports, and ends or hangs."""
    here, there = multiprocessing.Pipe()
    for report in (None, *reports):
        there.send(report)
    if not hangs:
        there.close()
    fuzz = script.Fuzz("tars", 0)
    return fuzz, fuzz._follow(here, 5)


def test_lost_processes(script, monkeypatch, capsys):
    """The next case goes on after the one that ended or held up the process."""
    read = ("read", None, 1.0, 50.0)
    fuzz, following = followed(script, 5, read, 6, read)
    assert (following, fuzz.counts, fuzz.violations) == (7, {"read": 2}, [])
    fuzz, following = followed(script, 5, read, 6)
    assert (following, fuzz.counts["crashed"]) == (7, 1)
    monkeypatch.setattr(script, "SECONDS", 0.05)
    fuzz, following = followed(script, 5, hangs=True)
    assert (following, fuzz.counts["hangs"]) == (6, 1) and fuzz.violations


def test_memory_beyond_the_bound(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "WARM_UP", 1)
    sizes = (50.0, 60.0, 60.0 + script.KINDS["tars"].bound + 1)
    reports = [x for i, size in enumerate(sizes) for x in (i, ("read", None, 1.0, size))]
    fuzz, _ = followed(script, *reports)
    assert fuzz.counts["too much memory"] == 1
    assert fuzz.summary()["MiB_more"] == script.KINDS["tars"].bound + 1
