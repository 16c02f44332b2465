"""`siglip2 data bench`: rates against a need."""

import json

import pytest

from siglip2_jax.cli import data_bench

RATE = 5e4  # of transport, which has a test of its own


@pytest.fixture
def bench(siglip2, monkeypatch):
    monkeypatch.setattr(data_bench, "_transport", lambda *_: RATE)
    return lambda *words: siglip2("data", "bench", "tiny", "--seconds", 1, *words)


@pytest.mark.slow
def test_rates_of_every_length(bench):
    result = bench("--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    (read,) = summary["read"]
    assert read["share"] == 1 and read["bad"] == 0 and summary["cores"] >= 1
    assert read["images_per_second"] == read["requests_per_second"] > 0  # a file an image
    assert read["megabytes_per_second"] > 0
    assert len(summary["budgets"]) > 1
    for row in summary["budgets"]:
        assert row["prepare"] > 0 and row["transport"] == RATE
        assert row["need"] is None and row["enough"] is None


@pytest.mark.parametrize(
    ("need", "slow"), [(1, []), (10**5, ["read", "prepare", "transport"])], ids=["low", "high"]
)
@pytest.mark.slow
def test_a_need(bench, need, slow):
    result = bench("--budget", 64, "--images-per-second", need)
    assert result.code == int(bool(slow)), result.err
    verdict = f"too slow: {', '.join(slow)}" if slow else "enough"
    assert result.out.splitlines()[-1] == f"  need       {need:,} images/s: {verdict}"
    assert "(100% of the examples)" in result.out and "images/s a core" in result.out


@pytest.mark.slow
def test_transport_is_measured(siglip2):
    result = siglip2("data", "bench", "tiny", "--seconds", 1, "--budget", 64, "--json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["budgets"]
    assert row["transport"] > row["prepare"]  # it does nothing but hand over what is there


def test_the_need_of_a_step(bench):
    """A batch of 32 on two hosts, each of which needs 16 images in 10 ms."""
    row = json.loads(bench("--budget", 64, "--step-ms", 10, "--hosts", 2, "--json").out)
    assert row["budgets"][0]["need"] == pytest.approx(1600)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images-per-second", 5), "the need is of one sequence length and the stage has"),
        (("--budget", 63), "no stage trains with 63 patches; expected one of [32, 64]"),
        (("--stage", "mian"), "there is no stage 'mian'; the config has"),
    ],
)
def test_mistakes(bench, words, message):
    result = bench(*words)
    assert result.code == 2 and message in result.err
