"""Rates are counts over time; MFU is analytic FLOPs over the chips' peak."""

import dataclasses

import jax
import pytest

from siglip2_jax.train import throughput
from siglip2_jax.train.chips import V5E
from siglip2_jax.train.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_rates_and_data_wait(clock):
    meter = Throughput()

    def items():
        for i in range(2):
            clock[0] += 1.0  # making an item takes a second
            yield i

    for _ in meter.waiting(items()):
        clock[0] += 3.0  # and using it three
        meter.count(40, 10**9)
    found = meter.report()
    assert found["examples_per_s"] == pytest.approx(80 / 8)
    assert found["examples_per_s_per_chip"] == pytest.approx(10 / jax.device_count())
    assert found["data_wait"] == pytest.approx(0.25)
    assert "mfu" not in found  # the peak of a CPU is not known


def test_a_report_starts_anew(clock):
    meter = Throughput()
    meter.count(8, 1)
    clock[0] += 1
    assert meter.report()["examples_per_s"] == pytest.approx(8)
    clock[0] += 1
    assert meter.report()["examples_per_s"] == 0


def test_mfu_of_a_known_chip(clock, monkeypatch):
    chip = dataclasses.replace(V5E, device_kinds=(jax.devices()[0].device_kind,))
    monkeypatch.setattr(throughput, "find_chip", lambda kind: chip)
    meter = Throughput()
    meter.count(1, int(197e12))
    clock[0] += 2
    assert meter.report()["mfu"] == pytest.approx(0.5 / jax.device_count())
