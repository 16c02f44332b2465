"""Reading a run: growing and replaced files, cut lines, steps that come again."""

import json
import math

import numpy as np
import pytest
from etils import epath
from watch.watched import end, lines, start, text, write

from siglip2_jax.train.metrics import EVENTS, METRICS
from siglip2_jax.watch.events import Stage
from siglip2_jax.watch.history import History, Series
from siglip2_jax.watch.run import WatchedRun
from siglip2_jax.watch.tail import Tail


def history(rows) -> History:
    found = History()
    for row in rows:
        found.add(json.dumps(row).encode())
    return found


def test_steps_that_come_again_replace_the_old_ones():
    """Also those of numbers that the new lines no longer have."""
    old = [{"step": step, "loss": float(step), "old": 1.0} for step in (1, 2, 3, 4)]
    new = [{"step": step, "loss": -float(step), "new": 2.0} for step in (3, 4, 5)]
    found = history(old + new)
    loss = found.get("loss")
    assert dict(zip(loss.steps().tolist(), loss.values().tolist(), strict=True)) == {
        1: 1.0, 2: 2.0, 3: -3.0, 4: -4.0, 5: -5.0
    }  # fmt: skip
    assert found.get("old").steps().tolist() == [1, 2] and found.repeated == 2
    assert (found.step, found.unreadable) == (5, 0)
    again = history([*old, {"step": 1, "loss": 7.0}])
    assert again.series.keys() == {"loss"} and again.get("loss").values().tolist() == [7.0]


def test_lines_that_hold_no_step_are_counted():
    found = History()
    for line in (b'{"step": 1, "loss": 2.0}\n', b'{"st', b"[1]", b"\xff", b'{"loss": 1}', b"\n"):
        found.add(line)
    found.add(b'{"step": 2, "loss": NaN, "name": "x", "none": null}')
    assert found.unreadable == 5 and found.series.keys() == {"loss"}
    assert math.isnan(found.get("loss").newest)


def test_lines_without_numbers_may_come_again():
    found = history([{"step": 1}, {"step": 1}, {"step": 1, "loss": 2.0}])
    assert (found.step, found.repeated, found.unreadable) == (1, 0, 0)
    assert found.get("loss").values().tolist() == [2.0]


def test_columns_keep_extremes():
    series, rng = Series(), np.random.default_rng(0)
    values = rng.normal(size=1000)
    values[[17, 500]] = 40.0, math.nan
    for step, value in enumerate(values, 1):
        series.add(step, value)
    columns = series.columns(0, 1000, 10)
    for i, column in enumerate(columns):
        part = values[100 * i : 100 * (i + 1)]  # steps 100 i + 1 to 100 (i + 1)
        expected = (np.nanmin(part), np.nanmean(part), np.nanmax(part))
        np.testing.assert_allclose(column[1:], expected, rtol=1e-12)
        assert column.step == 100 * (i + 1)
    assert columns[0].high == 40.0
    sparse = Series()
    sparse.add(300, 1.0)
    sparse.add(1000, math.inf)
    assert [bool(x) for x in sparse.columns(0, 1000, 10)] == [x == 2 for x in range(10)]


def test_a_growing_file_is_read_once(tmp_path):
    path = tmp_path / "lines"
    tail = Tail(epath.Path(path))

    def read() -> tuple[bool, list[bytes]]:
        return tail.replaced(), list(tail.lines())

    assert read() == (False, [])
    path.write_bytes(b"1\n2\n3")
    assert read() == (False, [b"1\n", b"2\n"])  # the third lacks its end
    with path.open("ab") as file:
        file.write(b"3\n4\n")
    assert read() == (False, [b"33\n", b"4\n"])
    assert read() == (False, [])
    (tmp_path / "new").write_bytes(b"1\n2\n5\n6\n7\n8\n")
    (tmp_path / "new").rename(path)
    assert read() == (True, [b"1\n", b"2\n", b"5\n", b"6\n", b"7\n", b"8\n"])
    path.write_bytes(b"1\n")  # the same file, shorter
    assert read() == (True, [b"1\n"])
    path.unlink()
    assert read() == (False, [])
    path.write_bytes(b"2\n")
    assert read() == (True, [b"2\n"])


@pytest.mark.parametrize("replace", [False, True])
def test_a_run_that_goes_on(tmp_path, replace):
    """A resumed run rewrites its file without later steps, or, if it was killed, appends."""
    workdir = write(tmp_path / "run", lines(20), [start(), end(150, "SIGTERM")])
    run = WatchedRun(workdir)
    assert (run.step, run.state, run.stage.name) == (200, "stopped", "main")
    kept = lines(15) if replace else lines(20)
    new = lines(190, lambda i: {"loss": -1.0}, first=16)
    (workdir / "temporary").write_text(text(kept + new))
    (workdir / "temporary").rename(workdir / METRICS)
    with (workdir / EVENTS).open("a") as file:
        file.write(text([start(150, after=500.0)]))
    run.refresh()
    loss = run.history.get("loss")
    assert loss.steps().tolist() == list(range(10, 2060, 10))
    assert (loss.values()[15:] == -1.0).all() and (loss.values()[:15] > 0).all()
    assert run.history.repeated == (0 if replace else 5)
    assert (run.step, run.state, run.stage) == (2050, "running", Stage("naflex", 2000, 3000))
    assert [x.before for x in run.starts] == [None, "SIGTERM"]
    with (workdir / EVENTS).open("a") as file:
        file.write(text([start(150, after=600.0), end(3000, "complete")]))
    run.refresh()
    assert (run.starts[-1].before, run.state) == ("", "complete")  # killed, and then done


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run: there is no config.json"):
        WatchedRun(tmp_path)
