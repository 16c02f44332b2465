"""`siglip2 plan --embed`: names of releases, the report, and options that do not go together."""

import json

import pytest
from planner.plans import embed_plan, small_model

from siglip2_jax import checkpoints
from siglip2_jax.cli import main
from siglip2_jax.cli.plan_embed import find_sizes, report
from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES
from siglip2_jax.planner.embed import plan_job
from siglip2_jax.planner.host_input import Assumptions

ASSUMED = Assumptions(100.0, 50e3, 100, 0.4e-6)


def test_every_name_of_every_release():
    for release in RELEASES + SIGLIP1_RELEASES:
        for name in (release.name, release.npz, release.hf, release.hf.removeprefix("google/")):
            assert find_sizes(name) == (release.name, release.config), name


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("B/16-256", "B/16 256"),
        ("so400m naflex", "So400m/16 NaFlex"),
        ("b16_naflex", "B/16 NaFlex"),
        ("g-opt 384", "g-opt/16 384"),
    ],
)
def test_short_names(name, release):
    assert find_sizes(name)[0] == release


def test_a_name_of_several():
    with pytest.raises(ValueError, match="may be B/32 256, B/16 256; name one"):
        find_sizes("B 256")


def test_sizes_of_a_checkpoint(model_dir):
    assert find_sizes(str(model_dir)) == (str(model_dir), checkpoints.read(model_dir).config)
    with pytest.raises(OSError, match="there is no file or directory"):
        find_sizes("nothing/here/at/all")


def test_the_report():
    plans = [embed_plan(400, 0.025), embed_plan(), embed_plan(1600, 0.04, gib=17)]
    jobs = [plan_job(plans[1], 1, ASSUMED, items=10**6, dollars_per_chip_hour=1.2)]
    lines = report("a model", plans, plans[1], jobs, ASSUMED).splitlines()
    assert [line[0] for line in lines[2:5]] == [" ", "*", " "]
    assert lines[3].split() == ["*", "100", "2.00", "40.0", "2,500", "0.000"]
    assert lines[4].endswith("DOES NOT FIT")
    assert "20,000 images/s; 8 chips need 200 CPU cores" in lines[5]
    assert "1,000 MB/s" in lines[6] and "200.0 requests/s" in lines[6]
    assert "16.0 GB/s of patches" in lines[7]
    assert "1,000,000 images: 0.0139 hours on 8 chips, 0.111 chip-hours, 0.13 dollars" in lines[8]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a CONFIG, or --embed SOURCE"),
        (["tiny", "--items", "5"], "takes no --items; add --embed SOURCE"),
        (["tiny", "--embed", "B/16 256"], "(--embed) takes no CONFIG; leave it out"),
        (["--embed", "B/16 256", "--search", "--budget", "4"], "no --budget and no --search"),
        (["--embed", "B/16 256", "--slices", "2"], "takes no --slices"),
        (["--embed", "B/16 256", "--topology", "v5e:3x3"], "unknown TPU topology 'v5e:3x3'"),
    ],
)
def test_bad_options(arguments, sentence, capsys):
    if "v5e:3x3" in arguments:
        pytest.importorskip("libtpu")
    assert main(["plan", *arguments]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and len(shown.err.splitlines()) == 1 and not shown.out


@pytest.mark.parametrize("price", ["0", "-1", "nan", "cheap"])
def test_bad_prices(price, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--embed", "B/16 256", "--price", price])
    assert "is not a price above 0" in capsys.readouterr().err


@pytest.mark.tpu
def test_the_command(monkeypatch, capsys):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(
        "siglip2_jax.cli.plan_embed.find_sizes", lambda source: (source, small_model())
    )
    command = ["plan", "--embed", "small", "--topology", "v5e:1x1", "--json"]
    assert main([*command, "--batch-size", "4", "--items", "5000", "--dtype", "float32"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["hosts"], answer["dtype"]) == (1, "float32")
    (batch,) = answer["batches"]
    assert batch["best"] and batch["fits"] and batch["batch_size"] == 4
    assert [job["items"] for job in answer["jobs"]] == [10**6, 5000]
    hours = [job["hours"] for job in answer["jobs"]]
    assert hours[0] == pytest.approx(200 * hours[1])
    assert hours[0] == pytest.approx(10**6 / batch["examples_per_second"] / 3600)
