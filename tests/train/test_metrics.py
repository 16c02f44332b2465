"""Metrics of a run: one line a step, whatever interrupts it."""

import json
import math
import sys
import time
from types import SimpleNamespace

import pytest
from etils import epath

from siglip2_jax.config import Logging
from siglip2_jax.train.metrics import METRICS, JsonLines, MetricWriter


def write(workdir, steps, resumed_at: int = 0, **logging) -> None:
    writer = MetricWriter(workdir, Logging(**logging), {"seed": 0}, resumed_at)
    for step in steps:
        writer.write(step, {"loss": 1 / (step + 2), "data_wait": 0.5})
    writer.close()


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]


def test_lines(tmp_path):
    before = time.time() - 1e-3
    write(tmp_path, [5, 10])
    written = lines(tmp_path)
    times = [line.pop("time") for line in written]
    assert written == [
        {"step": 5, "loss": 1 / 7, "data_wait": 0.5},  # every digit
        {"step": 10, "loss": 1 / 12, "data_wait": 0.5},
    ]
    assert before <= times[0] <= times[1] <= time.time() + 1e-3
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_resumed_run_goes_on(tmp_path):
    write(tmp_path, [5, 10, 15, 20])
    write(tmp_path, [15, 20, 25], resumed_at=12)
    assert [line["step"] for line in lines(tmp_path)] == [5, 10, 15, 20, 25]


@pytest.mark.parametrize("cut", range(1, 75, 7))
def test_half_a_line_is_dropped(tmp_path, cut):
    """Wherever the crash came; a line that lacks only its end stays one line."""
    write(tmp_path, [5, 10])
    whole = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(whole[:-cut])
    write(tmp_path, [15], resumed_at=10)
    assert [line["step"] for line in lines(tmp_path)] == ([5, 10, 15] if cut == 1 else [5, 15])
    assert (tmp_path / METRICS).read_text().endswith("}\n")


def test_each_line_is_there_at_once(tmp_path):
    """A reader, or a crash, sees all lines so far."""
    writer = MetricWriter(tmp_path, Logging(), {}, 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 0.0})
        assert len(lines(tmp_path)) == step
    writer.close()


def test_lines_of_all_steps_stay(tmp_path):
    """Earlier and later ones, in a file that belongs to no checkpoint; half a line does not."""
    path = epath.Path(tmp_path) / "events.jsonl"
    path.write_text('{"step": 9, "event": "start"}\n{"step": 3, "ev')
    JsonLines(path).write(4, {"event": "start", "kind": "cpu"})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["step"], second["step"], second["kind"]) == (9, 4, "cpu")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    write(tmp_path, [5, 10], tensorboard=True)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        record = data[12 : 12 + size]
        assert int.from_bytes(data[12 + size : 16 + size], "little") == masked_crc32c(record)
        event, data = Event.FromString(record), data[16 + size :]
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    assert [(step, tag) for step, tag, _ in found] == [
        (step, tag) for step in (5, 10) for tag in ("loss", "data_wait")
    ]
    assert math.isclose(found[0][2], 1 / 7, rel_tol=1e-6) and found[1][2] == 0.5


def test_weights_and_biases(tmp_path, monkeypatch):
    """Calls of its API; nothing is sent from here."""
    told = []
    run = SimpleNamespace(
        log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end")
    )
    init = lambda **options: told.append(options) or run  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    write(tmp_path, [5], wandb_project="siglip")
    options, line, end = told
    assert options["project"] == "siglip" and options["config"] == {"seed": 0}
    assert options["resume"] == "allow" and options["id"].endswith(tmp_path.name)
    assert (line, end) == ((5, {"loss": 1 / 7, "data_wait": 0.5}), "end")


@pytest.mark.parametrize(
    "module, logging, extra",
    [
        ("tensorboardX", {"tensorboard": True}, "tensorboard"),
        ("wandb", {"wandb_project": "siglip"}, "wandb"),
    ],
)
def test_missing_extra(tmp_path, monkeypatch, module, logging, extra):
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"needs {module}; pip install 'siglip2_jax\[{extra}\]', or"
    with pytest.raises(ValueError, match=message):
        MetricWriter(tmp_path, Logging(**logging), {}, 0)


def test_flush_uploads_to_a_bucket(tmp_path):
    """Lines that cannot be appended are uploaded now and then, and when a save is due."""
    writer = MetricWriter(tmp_path, Logging(), {}, 0)
    writer._sinks[0]._local = False  # as if it were gs://
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
    writer.flush()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
