"""Ratio of published to estimated times, and the line below tables."""

import dataclasses
import json

import pytest

from siglip2_jax.planner.calibration import CALIBRATION, FILE, Calibration, Comparison

THREE = Calibration(
    kind="programs of a test",
    command="none",
    versions={},
    programs=(
        Comparison("a", "here", 1.5, 1.0),
        Comparison("b", "here", 2.0, 2.0),
        Comparison("c", "here", 5.5, 5.0),
    ),
)


def test_mean_and_spread():
    assert THREE.ratio == pytest.approx((1.5 + 1.0 + 1.1) / 3)
    assert THREE.spread == (1.0, 1.5)
    assert THREE.note == "(published / estimate: 1.20 (1.00-1.50) in programs of a test: a, b, c)"


def test_one_program_has_no_spread():
    one = dataclasses.replace(THREE, programs=THREE.programs[:1])
    assert one.note == "(published / estimate: 1.50 in programs of a test: a)"


def test_json_holds_what_is_printed():
    fields = json.loads(json.dumps(THREE.to_json()))
    assert fields["ratio"] == THREE.ratio
    assert fields["spread"] == [1.0, 1.5]
    assert [x["ratio"] for x in fields["programs"]] == [1.5, 1.0, 1.1]


def test_the_evidence_has_sources_and_versions():
    assert {"jax", "libtpu"} <= CALIBRATION.versions.keys()
    assert all(x.source.startswith("https://") for x in CALIBRATION.programs)
    assert all(0.5 < x.ratio < 2 for x in CALIBRATION.programs)
    assert dataclasses.asdict(CALIBRATION) | {"programs": ()} == json.loads(FILE.read_text()) | {
        "programs": ()
    }
